"""The console's colors, by the formula of WCAG 2.2 (relative luminance, contrast ratio), in both themes."""

import re
from importlib.resources import files

import pytest

CSS = files("service.api").joinpath("console/console.css").read_text()

TEXT = 4.5  # success criterion 1.4.3, level AA
GRAPHIC = 3.0  # success criterion 1.4.11: edges of fields, lines of charts, the focus

PAIRS = [
    ("ink", "paper", TEXT),
    ("ink", "surface", TEXT),
    ("ink", "sunken", TEXT),
    ("soft", "paper", TEXT),
    ("soft", "surface", TEXT),
    ("soft", "sunken", TEXT),
    ("accent", "paper", TEXT),
    ("accent", "surface", TEXT),
    ("accent-strong", "paper", TEXT),
    ("accent-strong", "surface", TEXT),
    ("on-accent", "accent", TEXT),
    ("on-accent", "accent-strong", TEXT),
    ("on-tint", "tint", TEXT),
    ("on-warn", "warn", TEXT),
    ("bad", "surface", TEXT),
    ("edge", "paper", GRAPHIC),
    ("edge", "surface", GRAPHIC),
    ("accent", "sunken", GRAPHIC),
    ("accent", "tint", GRAPHIC),
    ("accent", "warn", GRAPHIC),
    ("second", "surface", GRAPHIC),
    ("second", "tint", GRAPHIC),
]


def theme(name: str) -> dict[str, str]:
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    chosen = light if name == "light" else dark
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", chosen))


def luminance(color: str) -> float:
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_formula_agrees_with_known_ratios():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("name", ["light", "dark"])
@pytest.mark.parametrize(("front", "back", "least"), PAIRS)
def test_pairs_are_told_apart(name, front, back, least):
    colors = theme(name)

    assert contrast(colors[front], colors[back]) >= least


def test_both_themes_name_the_same_colors_and_the_pairs_name_all_but_the_faint_line():
    paired = {color for front, back, _ in PAIRS for color in (front, back)}

    assert theme("light").keys() == theme("dark").keys() == paired | {"line"}


def test_no_rule_has_a_color_of_its_own():
    rules = re.sub(r":root \{.*?\}", "", CSS, flags=re.DOTALL)

    assert not re.findall(r"#[0-9a-f]{3,8}\b", rules)

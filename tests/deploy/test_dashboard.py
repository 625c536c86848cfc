"""The dashboard: what is committed is what the script writes, and every question of it has an answer."""

import json
import re
import runpy
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.prometheus import DEPLOY, RULES
from support.watched import Watched

GRAFANA = DEPLOY / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "notellm.json"
# What Grafana puts in the place of its variables, for a Prometheus that scrapes every second.
VARIABLES = {"$__rate_interval": "2m"}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Titles of panels with what they ask, variables filled in."""
    found = []
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression
            found.append((panel["title"], expression))
    return found


def test_the_committed_file_is_what_the_script_writes():
    assert runpy.run_path(str(GRAFANA / "dashboard.py"))["text"]() == DASHBOARD.read_text()


def test_panels_have_titles_of_their_own_and_say_what_they_show():
    titles = [panel["title"] for panel in panels()]

    assert len(titles) == len(set(titles))
    assert all(panel["description"].endswith(".") for panel in panels())


def test_no_two_panels_overlap_and_every_row_is_as_wide_as_the_page():
    cells: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & cells, panel["title"]
        cells |= own

    assert cells == {(x, y) for x in range(24) for y in range(max(y for _, y in cells) + 1)}


def test_panels_and_provisioning_name_one_source():
    [source] = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())["datasources"]
    asked = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}

    assert asked == {source["uid"]}


def test_every_query_names_only_what_processes_export_or_rules_record(watched: Watched):
    exported = {
        sample.name
        for text in watched.exported().values()
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    groups = yaml.safe_load(RULES.read_text())["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}

    for title, expression in queries():
        named = set(re.findall(r"\bnotellm[_:][a-zA-Z0-9_:]+", expression))
        assert named, title
        assert named <= exported | recorded, title


def figures(result: list[dict[str, Any]]) -> list[float]:
    return [float(value) for series in result for _, value in series["values"]]


@pytest.mark.parametrize(("title", "expression"), queries())
def test_every_query_returns_figures_after_the_load(watched: Watched, title: str, expression: str):
    result = watched.prometheus.query_range(expression, 120)

    assert any(figure == figure for figure in figures(result))  # NaN is no figure

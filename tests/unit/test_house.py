"""README, ARCHITECTURE, model/README and the pages of docs/ say what the folders hold: rooms, modules, links, sizes."""

import ast
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import click
import pytest

from service.cli.main import cli
from service.settings import environment_names

ROOT = Path(__file__).parents[2]
PRODUCTS = ("service", "model", "indexer")
MOST_MODULES = 14
PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    "model/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]
# Their links lead into the pages above, or nobody else looks after them.
LINKING = [
    *PAGES,
    "CHANGELOG.md",
    "deploy/alerts.md",
    "deploy/metrics.md",
    "deploy/runbook.md",
    "deploy/helm/README.md",
    "deploy/k8s/README.md",
]
# A module with its folders, or a path in the tree, between backticks.
NAMED = re.compile(r"`((?:service|model|indexer)(?:\.\w+)+|(?:service|model|indexer|deploy|docs|tests)/[\w./*-]*)`")
IMPORTED = re.compile(r"^from ((?:service|model|indexer)[\w.]*) import ([\w, ]+)", re.MULTILINE)
SETTING = re.compile(r"\bNOTELLM_[A-Z_]*[A-Z]\b(?!_)")
# A command that a shell would run; not the namespace of kubectl.
COMMAND = re.compile(r"(?<!-n )\bnotellm ((?!&&)[a-z-][^#\n|`;>&)]*)")
TARGET = re.compile(r"\bmake ([a-z0-9-]+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fenced(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shell_of(page: str) -> str:
    """What a page says to type: blocks of shell, and backticks in prose, one a line."""
    text = text_of(page)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", prose(text))]).replace("\\\n", " ")


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def rooms_of(product: str) -> set[str]:
    """The folders in it that git would keep."""
    return {path.name for path in (ROOT / product).iterdir() if path.is_dir() and path.name != "__pycache__"}


def modules_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def tree_of(page: str) -> list[str]:
    """The paths in a drawing of folders: two spaces more for each level, a name that ends in a slash, what it holds."""
    [drawing] = [block for block in fenced(text_of(page)) if block.startswith("service/")]
    paths, above = [], [""]
    for line in drawing.splitlines():
        level = (len(line) - len(line.lstrip())) // 2
        above = [*above[: level + 1], above[level] + line.split()[0]]
        paths.append(above[-1])
    return paths


def layers_of(page: str) -> dict[str, list[str]]:
    """The layers that a page lists for each product, top down."""
    [block] = [block for block in fenced(text_of(page)) if re.match(r"service +\w", block)]
    layers: dict[str, list[str]] = {}
    product = ""
    for line in filter(None, block.splitlines()):
        if not line.startswith(" "):
            product, line = line.split(maxsplit=1)
        layers.setdefault(product, []).append(line.strip())
    return layers


def table_of_modules() -> list[str]:
    """What the first table of model/README.md names in its first column, as paths below model/."""
    table = re.search(r"(?:^\|.*\n)+", text_of("model/README.md"), re.MULTILINE)
    assert table
    rows = table[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


@cache
def names_in(module: Path) -> set[str]:
    """What a module defines or imports at its top."""
    found: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def is_there(name: str) -> bool:
    """Whether a path, or a module, or a name in a module, is in the tree."""
    if "/" in name:
        return any(ROOT.glob(name.rstrip("/")))
    *parts, last = name.split(".")
    folder = ROOT.joinpath(*parts)
    if (folder / last).is_dir() or (folder / f"{last}.py").is_file():
        return True
    for module in (folder.with_suffix(".py"), folder / "__init__.py"):
        if module.is_file() and last in names_in(module):
            return True
    return False


def anchors_of(page: Path) -> set[str]:
    """The places in a page that a link can name, as GitHub makes them of headings."""
    seen: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#+ +(.*)", prose(page.read_text(encoding="utf-8")), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", LINK.sub("]", heading).lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def relative_links(page: str) -> Iterator[str]:
    return (target for target in LINK.findall(prose(text_of(page))) if not re.match(r"[a-z]+:", target))


class TestTrees:
    @pytest.mark.parametrize("product", PRODUCTS)
    def test_the_tree_in_readme_names_every_room_once_and_no_other(self, product):
        drawn = [path.removeprefix(f"{product}/").rstrip("/") for path in tree_of("README.md")]
        below = [name for path, name in zip(tree_of("README.md"), drawn, strict=True) if path.startswith(f"{product}/")]

        assert sorted(filter(None, below)) == sorted(rooms_of(product))

    def test_everything_in_the_tree_is_there(self):
        assert [path for path in tree_of("README.md") if not (ROOT / path).is_dir()] == []

    @pytest.mark.parametrize("product", PRODUCTS)
    def test_the_layers_in_architecture_are_those_that_import_linter_holds(self, product):
        contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
        [held] = [contract["layers"] for contract in contracts if contract.get("containers") == [product]]

        assert layers_of("ARCHITECTURE.md")[product] == held

    @pytest.mark.parametrize("product", PRODUCTS)
    def test_every_room_with_code_is_in_the_layers_of_architecture(self, product):
        listed = {room for layer in layers_of("ARCHITECTURE.md")[product] for room in layer.split(" | ")}
        code = {room for room in rooms_of(product) if any((ROOT / product / room).glob("*.py"))}

        assert code | set(modules_in(ROOT / product)) == listed

    def test_contracts_that_architecture_quotes_are_contracts(self):
        contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
        quoted = set(re.findall(r'^- "([^"]+)"', text_of("ARCHITECTURE.md"), re.MULTILINE))

        assert quoted
        assert quoted <= {contract["name"] for contract in contracts}

    def test_the_table_of_the_model_names_what_is_there(self):
        named = table_of_modules()
        missing = [
            name
            for name in named
            if not any((ROOT / "model" / f"{name.rstrip('/')}{end}").exists() for end in ("", ".py"))
        ]

        assert missing == []

    def test_the_table_of_the_model_has_every_room_and_module(self):
        named = table_of_modules()
        covered = {name.split("/")[0] for name in named}
        code = {room for room in rooms_of("model") if any((ROOT / "model" / room).rglob("*.py"))}

        assert code | set(modules_in(ROOT / "model")) <= covered


class TestNames:
    @pytest.mark.parametrize("page", PAGES)
    def test_every_module_and_path_that_a_page_names_is_there(self, page):
        assert [name for name in NAMED.findall(text_of(page)) if not is_there(name)] == []

    @pytest.mark.parametrize("page", PAGES)
    def test_what_a_page_imports_can_be_imported(self, page):
        imported = [
            f"{module}.{name.strip()}" for module, names in IMPORTED.findall(text_of(page)) for name in names.split(",")
        ]

        assert [name for name in imported if not is_there(name)] == []

    @pytest.mark.parametrize("page", PAGES)
    def test_every_command_is_one_and_takes_the_options_that_it_is_given(self, page):
        for line in COMMAND.findall(shell_of(page)):
            found: click.Command = cli
            words = shlex.split(line)
            while isinstance(found, click.Group) and words and not words[0].startswith("-"):
                assert words[0] in found.commands, line
                found = found.commands[words.pop(0)]
            options = {name for parameter in found.params for name in parameter.opts} | {"--help"}

            assert {word for word in words if word.startswith("--")} <= options, line

    @pytest.mark.parametrize("page", PAGES)
    def test_every_target_of_make_is_one(self, page):
        targets = set(re.findall(r"^([a-z0-9-]+):", text_of("Makefile"), re.MULTILINE))

        assert set(TARGET.findall(shell_of(page))) <= targets

    @pytest.mark.parametrize("page", PAGES)
    def test_every_setting_that_a_page_names_is_one(self, page):
        known = {*environment_names(), "NOTELLM_KEY"}
        named = {name for name in SETTING.findall(text_of(page)) if name not in known}
        prefixes = set(re.findall(r"(NOTELLM_[A-Z_]+_)\*", text_of(page)))

        assert named == set()
        assert [prefix for prefix in prefixes if not any(fnmatch(name, f"{prefix}*") for name in known)] == []


class TestLinks:
    @pytest.mark.parametrize("page", LINKING)
    def test_every_relative_link_leads_to_a_file_and_to_a_place_in_it(self, page):
        lost = []
        for target in relative_links(page):
            file, _, anchor = target.partition("#")
            to = (ROOT / page).parent / file if file else ROOT / page
            if not to.exists() or (anchor and to.suffix == ".md" and anchor not in anchors_of(to)):
                lost.append(target)

        assert lost == []

    def test_every_page_of_docs_can_be_reached_from_readme(self):
        reached, to_follow = set(), ["README.md"]
        while to_follow:
            page = to_follow.pop()
            reached.add(page)
            for target in relative_links(page):
                to = ((ROOT / page).parent / target.partition("#")[0]).resolve()
                name = str(to.relative_to(ROOT))
                if to.suffix == ".md" and name in PAGES and name not in reached:
                    to_follow.append(name)

        assert set(PAGES) - reached == set()

    def test_the_index_of_decisions_has_every_record_under_its_title_and_status(self):
        index = text_of("docs/decisions/README.md")
        for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
            record = path.read_text(encoding="utf-8")
            number, title = re.match(r"# (\d{3})\. (.+)", record).groups()  # type: ignore[union-attr]
            status = re.search(r"^\*\*Status\.\*\* (\w+)", record, re.MULTILINE)[1].lower()  # type: ignore[index]
            row = re.compile(
                rf"^\| \[{number}\]\({re.escape(path.name)}\) \| {re.escape(title)} \| .+ \| {status} \|$", re.M
            )

            assert path.name.startswith(f"{number}-")
            assert row.search(index), path.name


class TestSizes:
    def test_readme_has_150_lines_at_most(self):
        assert len(text_of("README.md").splitlines()) <= 150

    def test_architecture_has_900_words_at_most(self):
        assert len(text_of("ARCHITECTURE.md").split()) <= 900

    @pytest.mark.parametrize("product", PRODUCTS)
    def test_no_folder_shows_more_than_a_few_modules(self, product):
        folders = [ROOT / product, *(path for path in (ROOT / product).rglob("*") if path.is_dir())]
        crowded = {str(folder.relative_to(ROOT)): len(modules_in(folder)) for folder in folders}

        assert {folder: count for folder, count in crowded.items() if count > MOST_MODULES} == {}

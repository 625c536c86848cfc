"""The release workflow: it asks for what there is, may do no more than it has to, and its scripts do what they say."""

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
MOST_MANAGERS = 12
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in JOBS.items():
        yield from ((name, step) for step in job["steps"])


def script(job: str, name: str) -> str:
    [found] = [step["run"] for step in JOBS[job]["steps"] if step.get("name") == name]
    return str(found)


def run(text: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_target_of_make_is_there():
    targets = set(re.findall(r"(?m)^([a-z0-9-]+):", (ROOT / "Makefile").read_text()))
    asked = {
        word
        for _, step in steps()
        for line in re.findall(r"\bmake ([a-z -]+)", step.get("run", ""))
        for word in line.split()
    }
    assert asked == {"wheels", "chart"}
    assert asked <= targets
    assert any(".ci/run" in step.get("run", "") for step in JOBS["test"]["steps"])


def test_nothing_is_published_before_tests_and_packages():
    def before(job: str) -> set[str]:
        needs = JOBS[job].get("needs", [])
        named = {needs} if isinstance(needs, str) else set(needs)
        return named.union(*map(before, named))

    assert {name: before(name) for name in JOBS} == {
        "test": set(),
        "packages": {"test"},
        "install": {"test", "packages"},
        "images": {"test"},
        "publish": {"test", "packages", "install", "images"},
    }


def test_every_job_has_the_rights_that_it_needs_and_an_end():
    assert WORKFLOW["permissions"] == {}
    writing = {
        name: {right for right, how in job["permissions"].items() if how == "write"} for name, job in JOBS.items()
    }
    assert writing == {
        "test": set(),
        "packages": set(),
        "install": set(),
        "images": {"packages"},
        "publish": {"contents", "packages", "id-token"},
    }
    assert all(0 < job["timeout-minutes"] <= 120 for job in JOBS.values())


def test_every_action_has_a_version_and_checkouts_leave_no_token():
    used = [step for _, step in steps() if "uses" in step]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+|[0-9a-f]{40})", step["uses"]) for step in used)
    assert all(step["with"]["persist-credentials"] is False for step in used if "checkout" in step["uses"])


def test_no_script_holds_what_the_one_who_tags_may_write():
    """A name of a tag in a script would be run by it: it comes by the environment."""
    assert [step["run"] for _, step in steps() if "${{" in step.get("run", "")] == []


@pytest.mark.parametrize("text", [step["run"] for _, step in steps() if "run" in step])
def test_every_script_can_be_read_by_bash(text):
    assert subprocess.run(["bash", "-n", "-c", text], check=False).returncode == 0


def test_every_image_is_built_for_the_platforms_that_its_requirements_have_hashes_for():
    built = {one["target"]: one["platforms"] for one in JOBS["images"]["strategy"]["matrix"]["include"]}
    locked = {path.stem: path.read_text() for path in (ROOT / "deploy/requirements").glob("*.txt")}
    assert built.keys() == locked.keys() - {"build"}
    for target, platforms in built.items():
        assert re.search(rf"(?m)^FROM \w+ AS {target}$", DOCKERFILE)
        compiled = re.search(r"(?m)^(orjson|msgpack|numpy)==.*", locked[target])
        assert compiled
        assert ("arm64" in platforms) == (compiled[0].count("--hash=") == 2), target


@pytest.mark.parametrize(("tag", "ends"), [(f"v{VERSION}", 0), ("v9.9.9", 1)])
def test_a_tag_that_is_not_the_version_ends_the_release(tag, ends):
    assert run(script("test", "The tag is the version"), ROOT, TAG=tag).returncode == ends


def test_the_notes_of_a_release_are_its_part_of_the_changelog(tmp_path):
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## 0.2.0\n\nNew.\n\n### More\n\n## 0.1.0 (unreleased)\n\nOld.\n"
    )
    for tag, notes in (("v0.2.0", "\nNew.\n\n### More\n\n"), ("v0.1.0", "\nOld.\n")):
        assert run(script("publish", "Changelog"), tmp_path, TAG=tag).returncode == 0
        assert (tmp_path / "notes.md").read_text() == notes
    assert run(script("publish", "Changelog"), tmp_path, TAG="v0.3.0").returncode == 1
    assert f"\n## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheels_say_the_pythons_that_they_are_tried_on():
    tried = JOBS["install"]["strategy"]["matrix"]["python"]
    for file in ("pyproject.toml", "deploy/client/pyproject.toml"):
        project = tomllib.loads((ROOT / file).read_text())["project"]
        said = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", one) for one in project["classifiers"]]
        assert [found[1] for found in said if found] == tried
        assert project["requires-python"].startswith(f">={tried[0]}")
        assert project["version"] == VERSION


@pytest.mark.parametrize("folder", ["indexer", "model", "service"])
def test_every_python_that_the_wheels_name_can_compile_them(folder):
    """Where 19 context managers nest, the compiler of 3.12.1 crashes, and so did pip that installed us."""
    deepest = {path: depth(ast.parse(path.read_text())) for path in (ROOT / folder).rglob("*.py")}
    assert {path: found for path, found in deepest.items() if found > MOST_MANAGERS} == {}


def depth(node: ast.AST, above: int = 0) -> int:
    """How many context managers are open at once in any function."""
    if isinstance(node, ast.With | ast.AsyncWith):
        above += len(node.items)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        above = 0
    return max([above, *(depth(child, above) for child in ast.iter_child_nodes(node))])


def test_the_docs_say_what_every_extra_is_for_that_is_not_for_tests():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    [section] = re.findall(r"(?ms)^## With pip\n(.*?)^## ", (ROOT / "docs/deployment.md").read_text())
    said = {name for row in re.findall(r"(?m)^\| (`.*?`) \|", section) for name in re.findall(r"`([\w-]+)`", row)}
    assert said == extras - {"bench", "browser", "deploy", "dev", "test", "vllm-test", "vocabularies"}

"""The Dockerfile and the table of images, without building any; `make images-test` builds them."""

import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from support.images import TABLE, Contents, problems

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
REQUIREMENTS = ROOT / "deploy" / "requirements"
GOOD = Contents(200_000_000, 10001, ["notellm", "numpy"], None, [], [], ["/var/lib/notellm/index"])


def test_hadolint_finds_nothing():
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", *ROOT.glob("Dockerfile"), *ROOT.glob("tests/images/*/Dockerfile")],
        capture_output=True,
        text=True,
    )

    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_an_image_as_it_should_be_is_no_problem():
    assert problems("gateway", GOOD) == []
    assert problems("worker", replace(GOOD, torch="cpu", packages=["torch"])) == []


@pytest.mark.parametrize(
    ("target", "change", "line"),
    [
        ("gateway", {"size_bytes": 900_000_000}, "gateway: 900 MB, and deploy/images.toml allows"),
        ("gateway", {"packages": ["torch"]}, "gateway: holds torch, which it must not"),
        ("gateway", {"packages": ["faiss-cpu"]}, "gateway: holds faiss-cpu, which it must not"),
        ("worker", {"torch": "13.0"}, "worker: torch is the build for CUDA 13.0, not cpu"),
        ("trainer", {"torch": "13.0"}, "trainer: torch is the build for CUDA 13.0, not cpu"),
        ("indexer", {"user": 0}, "indexer: runs as root"),
        ("indexer", {"tools": ["pip"]}, "indexer: holds pip, which only builds or installs"),
        ("indexer", {"setuid": ["/bin/su"]}, "indexer: /bin/su lets a process become another user"),
        ("indexer", {"writable": ["/opt/notellm/lib"]}, "indexer: its user may write to /opt/notellm/lib"),
    ],
)
def test_what_is_wrong_with_an_image_is_one_clear_line(target, change, line):
    [said] = problems(target, replace(GOOD, **change))

    assert said.startswith(line)


def test_every_image_has_its_limits_and_its_requirements():
    last = set(re.findall(r"^FROM (?:process|served) AS (\w[\w-]*)$", DOCKERFILE, re.MULTILINE)) - {"served"}
    limited = tomllib.loads(TABLE.read_text())

    assert last == {"gateway", "indexer", "worker", "worker-cuda", "trainer", "trainer-cuda"}
    assert set(limited) == last - {"worker-cuda", "trainer-cuda"}
    assert {path.stem for path in REQUIREMENTS.glob("*.txt")} == last | {"build"}
    assert all(0 < rule["mb"] <= rule["max_mb"] for rule in limited.values())


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_package_is_pinned_by_version_and_hash_and_names_no_host(path):
    comment, *lines = path.read_text().splitlines()
    # A second one is that of the file for arm64.
    hashes = r"( --hash=sha256:[0-9a-f]{64})" + ("{1,2}" if path.stem in ("gateway", "indexer") else "")

    assert comment.startswith("#")
    for line in lines:
        assert re.fullmatch(r"[a-z0-9.-]+==[\w.+!]+( ; python_full_version < '3.11.3')?" + hashes, line), line
    assert "//" not in path.read_text()


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.stem)
def test_pins_are_those_that_the_tests_ran_with(path):
    """constraints.txt is what `make test` installs; an image with other versions would be another product."""
    constrained: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        constrained.setdefault(_plain(name), set()).add(version)
    pinned = dict(line.split()[0].split("==") for line in path.read_text().splitlines()[1:])

    differ = {
        name: version
        for name, version in pinned.items()
        if _plain(name) in constrained and version.partition("+")[0] not in constrained[_plain(name)]
    }

    assert differ == {}


def test_torch_is_the_cpu_build_wherever_no_gpu_is_asked_for():
    found = {
        path.stem: re.search(r"^torch==(\S+)", path.read_text(), re.MULTILINE) for path in REQUIREMENTS.glob("*.txt")
    }
    builds = {target: match[1] for target, match in found.items() if match}

    assert {target for target, version in builds.items() if version.endswith("+cpu")} == {"worker", "trainer"}
    assert {target for target, version in builds.items() if "+" not in version} == {"worker-cuda", "trainer-cuda"}


def test_the_label_of_the_version_is_the_projects():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert f"ARG VERSION={version}\n" in DOCKERFILE


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

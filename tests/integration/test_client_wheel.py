"""The wheel `notellm-client`, built from the checkout and installed by itself, as an application has it."""

import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from support.checkpoint import tiny_checkpoint
from support.service import Service, running

import service.client

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "deploy" / "client"
INFO = "notellm_client-0.1.0.dist-info"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
HEAVY = {"fastapi", "msgpack", "numpy", "orjson", "prometheus-client", "redis", "starlette", "uvicorn"}
BLOCKING, ASYNCIO = re.findall(r"```python\n(.*?)```", (SOURCES / "README.md").read_text(), re.DOTALL)
# Nothing answers at these proxies.
PROXIES = {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}

APPLICATION = """
import importlib
import pkgutil
import sys

import notellm_client

for module in pkgutil.walk_packages(notellm_client.__path__, "notellm_client."):
    importlib.import_module(module.name)
print(*sorted(name for name in ("service", "model", "indexer", "numpy") if name in sys.modules))
print(*notellm_client.__all__)

import model
import service

print(service.OWNER, model.OWNER, notellm_client.NoteLLMClient.__module__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(SOURCES, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel, and what it asks for."""
    folder = tmp_path_factory.mktemp("application") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [*PIP, "--python", str(python), "install", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True, timeout=240)
    return python


@pytest.fixture(scope="module")
def notellm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    tiny_checkpoint(folder / "checkpoint")
    with running(Service(folder, folder / "checkpoint")) as service:
        yield service


def build(source: Path, target: Path) -> Path:
    """The wheel of a source tree or an sdist."""
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(target), str(source)], check=True)
    [wheel] = target.glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def run(python: Path, script: str, folder: Path, **environment: str) -> str:
    """What a script prints when it is run from its own folder, as an application is."""
    (folder / "application.py").write_text(script)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, "application.py"], cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_holds_the_sources_of_the_client_and_its_types_and_nothing_else(wheel):
    files = contents(wheel)
    packaged = {name: text for name, text in files.items() if not name.startswith(INFO)}
    ours = {
        f"notellm_client/{name}/{path.name}": path.read_bytes()
        for name in ("client", "contract")
        for path in (ROOT / "service" / name).glob("*.py")
    }

    assert packaged.keys() - ours.keys() == {"notellm_client/__init__.py", "notellm_client/py.typed"}
    assert ours.items() <= packaged.items()
    assert files[f"{INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_is_described_as_the_project_is(wheel):
    said: Message = email.message_from_bytes(contents(wheel)[f"{INFO}/METADATA"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert (said["Version"], said["License-Expression"]) == (project["version"], project["license"])
    assert set(said["Requires-Python"].split(",")) == set(project["requires-python"].split(","))
    assert set(said.get_all("Requires-Dist")) == {
        one for one in project["dependencies"] if re.match(r"(httpx|pydantic)\b(?!-)", one)
    }


def test_is_the_same_from_an_sdist(wheel, tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=SOURCES, check=True, capture_output=True)
    [sdist] = tmp_path.glob("*.tar.gz")

    assert contents(build(sdist, tmp_path)) == contents(wheel)


@pytest.mark.timeout(420)
def test_brings_httpx_and_pydantic_and_nothing_of_the_service(python, tmp_path):
    script = "from importlib.metadata import distributions\nprint(*(one.name.lower() for one in distributions()))"

    installed = {name.replace("_", "-") for name in run(python, script, tmp_path).split()}

    assert {"notellm-client", "httpx", "pydantic"} <= installed
    assert installed.isdisjoint(HEAVY)
    assert len(installed) <= 15


def test_works_in_an_application_with_packages_service_and_model_of_its_own(python, tmp_path):
    for name in ("service", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OWNER = 'application'\n")

    loaded, names, owners = run(python, APPLICATION, tmp_path).splitlines()

    assert loaded == ""
    assert names.split() == service.client.__all__
    assert owners == "application application notellm_client.client.client"


@pytest.mark.parametrize(
    ("example", "printed"),
    [(BLOCKING, "kyoto-5 Kyoto by bus\n404 note_not_found\n"), (ASYNCIO, "1000 []\n1000 []\n500 []\n")],
    ids=["blocking", "asyncio"],
)
@pytest.mark.timeout(420)
def test_does_as_its_readme_shows_on_a_real_service_with_any_proxy_set(python, notellm, tmp_path, example, printed):
    assert "http://127.0.0.1:8000" in example

    assert run(python, example.replace("http://127.0.0.1:8000", notellm.api), tmp_path, **PROXIES) == printed

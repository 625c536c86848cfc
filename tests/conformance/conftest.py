"""One real service for everything in this folder, with a tiny model: whole processes, real sockets."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.checkpoint import tiny_checkpoint
from support.service import Service, running

from service.keys import create_key


@pytest.fixture(scope="session")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="session")
def key(keys_file: Path) -> str:
    """What every request here shows."""
    return create_key(keys_file, ["admin"])[1]


@pytest.fixture(scope="session")
def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, key: str, keys_file: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("conformance")
    tiny_checkpoint(folder / "model")
    service = Service(folder, folder / "model")
    service.environment["NOTELLM_KEYS_FILE"] = str(keys_file)
    service.environment["NOTELLM_HTTP__TAGS_S"] = "3"  # some tests wait it out
    with running(service):
        yield service


@pytest.fixture(scope="session")
def http(service: Service, headers: dict[str, str]) -> Iterator[httpx.Client]:
    """A client that knows nothing of the service but its address and a key."""
    with httpx.Client(base_url=service.api, headers=headers, timeout=30) as http:
        yield http

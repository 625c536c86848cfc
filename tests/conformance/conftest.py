"""One real service for everything in this folder, with a tiny model: whole processes, real sockets."""

from collections.abc import Iterator

import httpx
import pytest
from support.checkpoint import tiny_checkpoint
from support.service import Service, running


@pytest.fixture(scope="session")
def key() -> str | None:
    """What every request here shows, if anything: the one place to switch keys on."""
    return None


@pytest.fixture(scope="session")
def headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, key: str | None) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("conformance")
    tiny_checkpoint(folder / "model")
    service = Service(folder, folder / "model")
    service.environment["NOTELLM_HTTP__TAGS_S"] = "3"  # some tests wait it out
    with running(service):
        yield service


@pytest.fixture(scope="session")
def http(service: Service, headers: dict[str, str]) -> Iterator[httpx.Client]:
    """A client that knows nothing of the service but its address and, with keys on, a key."""
    with httpx.Client(base_url=service.api, headers=headers, timeout=30) as http:
        yield http

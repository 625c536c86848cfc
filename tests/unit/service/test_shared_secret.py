"""Every process knows the secret before it connects or listens, and says so when anybody may call it."""

import gc
import importlib
import logging
import sys
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from indexer.rpc import secret
from service.setting_groups import IndexSettings, WorkerSettings
from service.settings import Settings
from service.wiring.process import share_secret


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a process sets once for itself."""
    monkeypatch.setattr(secret, "SECRET", None)
    monkeypatch.setattr("service.traces.configure", lambda name: None)
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)


@pytest.mark.parametrize("name", ["gateway", "worker", "indexer"])
def test_a_process_begins_with_the_secret(name, monkeypatch):
    known = []

    async def begin(settings: Settings) -> None:
        known.append(secret.SECRET)

    process = importlib.import_module(f"service.wiring.{name}")
    monkeypatch.setattr(process, "_serve", begin)
    process.run(Settings(rpc_secret=SecretStr("0123456789abcdef")))

    assert known == [b"0123456789abcdef"]


@pytest.mark.parametrize(
    ("index", "worker", "shared", "told"),
    [
        ("127.0.0.1:9200", "/run/w.sock", None, False),
        ("[::1]:9200", "localhost:9100", None, False),
        ("/run/a.sock", "worker:9100", None, True),
        ("127.0.0.1:9200,indexer-0b:9200", "/run/w.sock", None, True),
        ("0.0.0.0:9200", "/run/w.sock", None, True),
        ("0.0.0.0:9200", "worker:9100", "0123456789abcdef", False),
    ],
)
def test_a_port_beyond_this_machine_without_a_secret_is_told(index, worker, shared, told, caplog):
    addresses = {"index": IndexSettings(addresses=(index,)), "worker": WorkerSettings(addresses=(worker,))}
    with caplog.at_level(logging.WARNING):
        share_secret(Settings(rpc_secret=shared and SecretStr(shared), **addresses))

    assert [record.message for record in caplog.records] == ["rpc_open"] * told

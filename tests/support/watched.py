"""The demo under the eyes of a Prometheus, made once for all tests that look at it."""

import math
import time
from dataclasses import dataclass
from itertools import count, islice

import httpx
import pytest
from support.prometheus import Prometheus
from support.service import Service

from model.data.samples.generate import sample_notes
from service.client import Refused

WINDOWS = ("5m", "30m", "1h", "6h", "3d")
NOTES = 120
LOAD_S = 120
PROMISES = [f"notellm:{name}:ratio_rate{window}" for name in ("freshness_late", "errors") for window in WINDOWS]


@dataclass
class Watched:
    """A service and the Prometheus that watches it; its rules do not wait before they fire."""

    service: Service
    prometheus: Prometheus

    def exported(self) -> dict[str, str]:
        """What each process answers to /metrics, by its role: gateway, worker, indexer."""
        files = sorted((self.service.state / "run").glob("*.ops"))
        ports = {path.stem.partition("-")[0]: path.read_text() for path in files}
        return {
            role: httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text for role, port in ports.items()
        }


def targets(service: Service) -> list[str]:
    """The operations listeners of a service's processes."""
    return [f"127.0.0.1:{path.read_text()}" for path in sorted((service.state / "run").glob("*.ops"))]


def load(service: Service, notes: int = NOTES) -> None:
    """What a community does: notes that are written, read, clicked and drafted, and a mistake."""
    samples = list(islice(sample_notes(), notes))
    with service.client(timeout_s=LOAD_S, patience_s=30) as notellm:
        for note in samples:
            notellm.put(note.id, {"title": note.title, "content": note.content, "hashtags": list(note.hashtags)})
        notellm.put("last", {"title": "A harbour at dusk"}, wait_s=10)
        give_up = time.monotonic() + LOAD_S
        while notellm.status().notes.searchable <= notes:
            assert time.monotonic() < give_up
            time.sleep(0.2)
        for note in samples:
            notellm.related(note.id)
        click = {"event_id": "e1", "user_id": "u1", "note_id": "last", "type": "click", "ts": time.time()}
        notellm.record([click, click])
        notellm.tags("A weekend of ramen in Osaka", "Four bowls in two days, ranked.")
        with pytest.raises(Refused):
            notellm.get("nobody-wrote-this")
        # The model is not asked twice: the same text in another note, and the same note under another category.
        notellm.put("copy", {"title": "A harbour at dusk"}, wait_s=10)
        notellm.put("copy", {"title": "A harbour at dusk", "category": "Travel"}, wait_s=10)
        notellm.put("last", {"title": "A harbour at dawn"}, wait_s=10)


def promises(prometheus: Prometheus) -> list[float]:
    """The share of writes or requests that broke each promise over each window; NaN where nothing changed in it."""
    samples = [sample for name in PROMISES for sample in prometheus.query(name)]
    return [float(sample["value"][1]) for sample in samples]


def write_until_promises_are_measured(service: Service, prometheus: Prometheus) -> None:
    """A rate is a change between two scrapes, and on a slow machine the whole load may lie between two."""
    times = count()
    with service.client() as notellm:

        def measured() -> bool:
            notellm.put("last", {"title": f"A harbour at noon, picture {next(times)}"}, wait_s=10)
            return len(promises(prometheus)) == len(PROMISES) and not any(map(math.isnan, promises(prometheus)))

        prometheus.until(measured)

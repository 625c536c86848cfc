import time
from collections.abc import Iterator

import pytest
from support.prometheus import Prometheus
from support.service import Service, running
from support.watched import NOTES, Watched, load, targets, write_until_promises_are_measured

from service.settings import MINI


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """After the load, and after Prometheus has seen what it did."""
    folder = tmp_path_factory.mktemp("watched")
    with running(Service(folder, MINI)) as service:
        prometheus = Prometheus(folder / "prometheus", targets(service), patient=False)
        try:
            prometheus.start()
            load(service)
            prometheus.until(lambda: prometheus.query(f"sum(notellm_index_notes) > {NOTES}"))
            write_until_promises_are_measured(service, prometheus)
            prometheus.until(lambda: prometheus.query("count(notellm_index_recall >= 0) == 2"))
            time.sleep(3)  # three scrapes more, so that a rate has something to go by
            yield Watched(service, prometheus)
        finally:
            prometheus.stop()

"""How far the lists of today and yesterday reach into the catalog, as figures."""

from contextlib import suppress

import numpy as np

from model.evaluation.online.reach import Reach, reach
from service import metrics
from service.errors import StoreUnavailable
from service.store.attribution.log import RedisAnswerLog

EVERY_S = 60.0


class ReachWatch:
    """``latest`` are the last figures; None before the first list."""

    def __init__(self, log: RedisAnswerLog) -> None:
        self._log = log
        self.latest: Reach | None = None

    async def __call__(self) -> None:
        """Measure; without the store the last figures stay."""
        with suppress(StoreUnavailable):
            times, notes = await self._log.listed()
            self.latest = found = reach(np.array(times, dtype=np.int64), notes)
            if found:
                metrics.REACH_COVERAGE.set(found.coverage)
                metrics.REACH_GINI.set(found.gini)
                metrics.REACH_HUBS.set(found.hubs)

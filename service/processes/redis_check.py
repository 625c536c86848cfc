"""What is wrong with the Redis of a process: refused at its start, and watched from then on.

`service.store.requirements` has the rules. A problem stands in /readyz and `/status`, in a metric, and in the log when
it comes and goes.
"""

import logging
import math
from collections.abc import Sequence
from functools import partial

from service import metrics
from service.errors import StoreUnavailable
from service.processes.health import Readiness
from service.settings import SetupError
from service.store.cluster.keys import FIRST
from service.store.info import examine
from service.store.requirements import UNSAFE, UNUSABLE, Report, joined

log = logging.getLogger(__name__)

EVERY_S = 10.0


class RedisCheck:
    """Looks at one Redis for one process; its problems are warnings of ``readiness``.

    They do not make it unready: what is on disk can still be read, and open connections outlive a change of the
    password. What a process cannot reach now, `Readiness.missing` says.
    """

    def __init__(self, url: str, readiness: Readiness, replicas: int = 0, cells: Sequence[str] = (FIRST,)) -> None:
        """``replicas`` are those that writes wait for. Looked at are the nodes of these cells."""
        self._url = url
        self._cells = cells
        self._replicas = replicas
        self._readiness = readiness
        self._report = Report()

    async def start(self) -> None:
        """Look before anything else is done. Raises SetupError when nothing works on this Redis.

        One that does not answer may still be starting.
        """
        await self.look()
        if self._report.unusable:
            raise SetupError(self._report.unusable)

    async def look(self) -> None:
        """Look once; call it periodically. While Redis does not answer, it is taken to be as it was."""
        try:
            # What is denied once is not asked again: every time would stand in the log of Redis' ACL.
            denied = self._report.unknown
            ask = partial(examine, denied=denied, replicas=self._replicas, cells=len(self._cells))
            found = joined([await ask(self._url, cell=cell) for cell in self._cells])
        except StoreUnavailable:
            return
        before, self._report = self._report, found
        self._readiness.warnings = found.lines
        causes = {problem.cause for problem in found.problems}
        for cause in (*UNUSABLE, *UNSAFE):
            metrics.REDIS_PROBLEM.labels(cause).set(math.nan if cause in found.unknown else cause in causes)
        for problem in found.problems:
            if problem not in before.problems:
                log.error("redis_problem", extra={"cause": problem.cause, "problem": problem.line})
        if gone := {problem.cause for problem in before.problems} - causes:
            log.info("redis_mended", extra={"causes": sorted(gone)})
        if found.unknown - before.unknown:
            log.info("redis_unknown", extra={"causes": sorted(found.unknown)})

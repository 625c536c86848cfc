"""The webhook: one URL of the community's that is told what happened, soon after it did.

Requests follow the Standard Webhooks specification (standardwebhooks.com): the headers ``webhook-id``,
``webhook-timestamp`` and ``webhook-signature``. Each notice is told at least once, and its id is the same each time.
"""

import base64
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import orjson

from service import metrics
from service.errors import StoreUnavailable
from service.store.webhook.notices import Batch, Notice, RedisNotices, without

if TYPE_CHECKING:
    import httpx

    from indexer.types import Searcher

log = logging.getLogger(__name__)

EVERY_S = 1.0
# A request is tried again after 1, 2, 4 and so on up to 300 seconds, and given up when the first was an hour ago.
FIRST_WAIT_S, LONGEST_WAIT_S, GIVE_UP_S = 1.0, 300.0, 3600.0
# So long after its vector was published a note that no index has is one that was deleted meanwhile, or refused.
_PATIENCE_S = 60.0
_LOOKUP_S = 1.0
_TRY_AGAIN = {408, 425, 429}


class Webhook:
    """Tells what `RedisNotices` has, in the gateway that holds them. Called every second, in the background.

    Args:
        model: the model that answers now.
        searcher: the index of a model, of so many ``shards``.
        clock: seconds.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        notices: RedisNotices,
        searcher: "Callable[[str], Searcher]",
        shards: int,
        client: "httpx.AsyncClient",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._secret = secret.encode()
        self._notices = notices
        self._searcher = searcher
        self._shards = shards
        self._client = client
        self._clock = clock
        self._wait_s = FIRST_WAIT_S
        self._not_before = 0.0
        self._failing_since: float | None = None

    async def __call__(self) -> None:
        """Tell all there is; nothing while a failed request waits to be tried again, or another gateway tells."""
        with suppress(StoreUnavailable):  # the next call finds everything where it was
            # Held while it waits, too: another gateway would not know that it has to.
            while await self._notices.hold() and self._clock() >= self._not_before and await self._tell_next():
                pass

    async def _tell_next(self) -> bool:
        """Tell one batch; whether another one is there at once."""
        batch = await self._findable(await self._notices.read())
        if batch.notices and not await self._post(batch.notices):
            return False
        await self._notices.tell(batch.told)
        return bool(batch.more)

    async def _findable(self, batch: Batch) -> Batch:
        """The batch, of each cell up to the first note that its shard lacks yet; without those that none will have."""
        changes = [one for one in batch.notices if one.type == "note.searchable"]
        if not changes:
            return batch
        searcher = self._searcher(str(changes[0].data["model"]))
        versions = await searcher.versions([str(one.data["note_id"]) for one in changes], timeout_s=_LOOKUP_S)
        missing = [one for one in changes if versions.get(str(one.data["note_id"]), -1) < int(one.data["version"])]
        if not missing:
            return batch
        all_answer = len(await searcher.status(timeout_s=_LOOKUP_S)) == self._shards
        gone, waiting = set(), set()
        for one in missing:
            if one.cell in waiting:
                continue
            if not all_answer or batch.now_ms / 1000 - one.time.timestamp() < _PATIENCE_S:
                batch = without(batch, one)
                waiting.add(one.cell)
            else:
                gone.add(one.id)
        batch.notices[:] = [one for one in batch.notices if one.id not in gone]
        return batch

    async def _post(self, notices: Sequence[Notice]) -> bool:
        """Whether the notices are done with: told, refused, or given up."""
        outcome = await self._asked(body_of(notices), notices)
        if outcome == "failed":
            now = self._clock()
            metrics.WEBHOOK_REQUESTS_FAILED.inc()
            self._failing_since = now if self._failing_since is None else self._failing_since
            if now - self._failing_since < GIVE_UP_S:
                self._not_before = now + self._wait_s
                self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
                return False
            outcome = "dropped"
        metrics.WEBHOOK_NOTICES.labels(outcome).inc(len(notices))
        self._failing_since = None  # the next ones have an hour of their own
        if outcome != "dropped":
            self._wait_s = FIRST_WAIT_S
        return True

    async def _asked(self, body: bytes, notices: Sequence[Notice]) -> str:
        import httpx

        name = hashlib.blake2b("".join(one.id for one in notices).encode(), digest_size=16).hexdigest()
        stamp = str(int(time.time()))
        headers = {
            "content-type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": stamp,
            "webhook-signature": f"v1,{signature(self._secret, name, stamp, body)}",
        }
        try:
            status = (await self._client.post(self._url, content=body, headers=headers)).status_code
        except httpx.HTTPError as error:
            log.warning("webhook_failed", extra={"reason": type(error).__name__})
            return "failed"
        if status < 300:
            return "told"
        if status >= 500 or status in _TRY_AGAIN:
            log.warning("webhook_failed", extra={"status": status})
            return "failed"
        log.error("webhook_refused", extra={"status": status, "notices": len(notices)})
        return "refused"


def signature(secret: bytes, name: str, stamp: str, body: bytes) -> str:
    """HMAC-SHA256 of id, time and body, as base64."""
    signed = b".".join((name.encode(), stamp.encode(), body))
    return base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()


def body_of(notices: Sequence[Notice]) -> bytes:
    """The JSON that is sent: ``{"events": [{"id", "type", "time", ...}]}``."""
    events = [{"id": one.id, "type": one.type, "time": one.time, **one.data} for one in notices]
    return orjson.dumps({"events": events}, option=orjson.OPT_UTC_Z)

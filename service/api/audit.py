"""The audit log: who wrote what, and who was refused. JSON lines of the logger `notellm.audit`.

::

    {"time": "...", "level": "info", "logger": "notellm.audit", "event": "write", "request_id": "...",
     "key": "5f0c2a9e", "method": "PUT", "route": "/notes/{note_id}", "status": 202, "notes": ["n1"]}

``write``: a request to a route with the scope ``write`` or ``admin``, answered or refused; ``notes`` are the ids that
it named, ``hashtags`` those whose rule it changed, ``erased`` the reader who was (`service.store.records.digest_of`),
and status 0 means that the caller disconnected before the answer.
``refusal``: any other request that was answered 401, 403, 408, 413 or 429. ``refusals``: more of both, counted, one
line a second for each key, route and status: those that admission refused with 429 or 503, and those that the
application refused with any 4xx beyond `Refusals.LINES` a second. A line holds ids of keys and notes, never a key or
the text of a note.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import Request

from service.contract.fields import ID_PATTERN
from service.keys import Key
from service.logs import JsonFormatter

log = logging.getLogger("notellm.audit")
access = logging.getLogger("service.api.app")
log.setLevel(logging.INFO)  # independent of the other loggers

_WRITES = frozenset({"write", "admin"})
_REFUSALS = frozenset({401, 403, 408, 413, 429})
_ID = re.compile(ID_PATTERN)


class Refusal(NamedTuple):
    """A request that was refused: its route, its key's id, and the error, of which the application tells the status."""

    method: str
    route: str
    key: str | None
    status: int
    code: str | None = None


class Refusals:
    """What the application refused with 4xx: so many lines a second for each key, and the others counted.

    Without a bound, callers without any key would decide how much is written to the disk.
    """

    LINES = 20

    def __init__(self) -> None:
        """Of one gateway process. Every call comes from its event loop."""
        self._lines = Counter[str | None]()
        self._counted = Counter[tuple[Refusal, bool]]()

    def has_line(self, refusal: Refusal, *, audited: bool) -> bool:
        """Whether it gets a line of its own; if not, it is counted. ``audited``: whether the audit log tells it."""
        self._lines[refusal.key] += 1
        if self._lines[refusal.key] <= self.LINES:
            return True
        self._counted[refusal, audited] += 1
        return False

    async def report(self) -> None:
        """One line for many, to the access log and to the audit log; to be called once a second."""
        counted, self._counted = self._counted, Counter()
        self._lines.clear()
        for (refusal, audited), count in counted.items():
            access.info("requests", extra=_told(refusal) | {"count": count})
            if audited:
                record_refusals(refusal, count)


def configure(file: Path | None) -> None:
    """Write to this file, which may be rotated; without one, to the other logs. Raises OSError if it does not open."""
    if file is None:
        return
    handler = WatchedFileHandler(file, encoding="utf-8")
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    log.propagate = False


def name_notes(request: Request, note_ids: Sequence[str]) -> None:
    """Add the notes that a request names in its body to its line; the one in its path is known."""
    request.state.note_ids = note_ids


def name(request: Request, **named: Sequence[str]) -> None:
    """Add what else a request names to its line, by kind."""
    request.state.named = named


def concerns(scope: Mapping[str, Any], status: int) -> bool:
    """Whether a request has a line here: it is a write or a refusal."""
    return _is_write(scope) or status in _REFUSALS


def key_id(scope: Mapping[str, Any]) -> str | None:
    """The id of a request's key, once the request has shown one that is known."""
    key: Key | None = scope["state"].get("key")
    return key.id if key else None


def record(scope: Mapping[str, Any], method: str, route: str, status: int) -> None:
    """Write the line of a request that this log `concerns`. ``route`` is a template, ``method`` a known one."""
    line = {
        "request_id": scope["state"]["request_id"],
        "key": key_id(scope),
        "method": method,
        "route": route,
        "status": status,
    }
    if note_ids := _note_ids(scope):
        line["notes"] = note_ids
    log.info("write" if _is_write(scope) else "refusal", extra=line | scope["state"].get("named", {}))


def record_refusals(refusal: Refusal, count: int) -> None:
    """Write one line for ``count`` equal refusals."""
    log.info("refusals", extra=_told(refusal) | {"count": count})


def _told(refusal: Refusal) -> dict[str, Any]:
    return {name: value for name, value in refusal._asdict().items() if name != "code" or value}


def _is_write(scope: Mapping[str, Any]) -> bool:
    policy = getattr(scope.get("route"), "policy", None)
    return policy is not None and policy.scope in _WRITES


def _note_ids(scope: Mapping[str, Any]) -> Sequence[str]:
    named: Sequence[str] = scope["state"].get("note_ids", ())
    in_path = scope.get("path_params", {}).get("note_id", "")
    # A path that holds no valid id may hold text.
    return [in_path, *named] if _ID.fullmatch(in_path) else named

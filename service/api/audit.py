"""The audit log: who wrote which notes, and who was refused. JSON lines of the logger `notellm.audit`.

::

    {"time": "...", "level": "info", "logger": "notellm.audit", "event": "write", "request_id": "...",
     "key": "5f0c2a9e", "method": "PUT", "route": "/notes/{note_id}", "status": 202, "notes": ["n1"]}

``write``: a request to a route with the scope ``write``, answered or refused; ``notes`` are the ids that it named, and
status 0 means that the caller disconnected before the answer. ``refusal``: any other request that was answered 401,
403, 408, 413 or 429. ``refusals``: requests that admission refused with 429 or 503, one line a second for each key and
route, with their ``count``. A line holds ids of keys and notes, never a key or the text of a note.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import Request

from service.contract.fields import ID_PATTERN
from service.keys import Key
from service.logs import JsonFormatter

log = logging.getLogger("notellm.audit")
log.setLevel(logging.INFO)  # independent of the other loggers

_REFUSALS = frozenset({401, 403, 408, 413, 429})
_ID = re.compile(ID_PATTERN)


class Refusal(NamedTuple):
    """A request that admission refused: its route, its key's id, and the error."""

    method: str
    route: str
    key: str | None
    status: int
    code: str


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


def record(scope: Mapping[str, Any], method: str, route: str, status: int) -> None:
    """Write a request's line, if it is a write or a refusal. ``route`` is a template, ``method`` a known one."""
    policy = getattr(scope.get("route"), "policy", None)
    is_write = policy is not None and policy.scope == "write"
    if not is_write and status not in _REFUSALS:
        return
    state = scope["state"]
    key: Key | None = state.get("key")
    line = {
        "request_id": state["request_id"],
        "key": key and key.id,
        "method": method,
        "route": route,
        "status": status,
    }
    if note_ids := _note_ids(scope):
        line["notes"] = note_ids
    log.info("write" if is_write else "refusal", extra=line)


def record_refusals(refusal: Refusal, count: int) -> None:
    """Write one line for ``count`` equal refusals."""
    log.info("refusals", extra=refusal._asdict() | {"count": count})


def _note_ids(scope: Mapping[str, Any]) -> Sequence[str]:
    named: Sequence[str] = scope["state"].get("note_ids", ())
    in_path = scope.get("path_params", {}).get("note_id", "")
    # A path that holds no valid id may hold text.
    return [in_path, *named] if _ID.fullmatch(in_path) else named

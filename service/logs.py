"""Structured logs: one JSON object a line on stderr, an event with fields.

``log.info("batch_embedded", extra={"notes": 12})`` gives, on one line::

    {"time": "2026-01-31T12:00:00.123Z", "level": "info", "logger": "service.worker.worker",
     "event": "batch_embedded", "notes": 12}

Lines of a request carry its ``request_id``. No field may hold text of a note. An exception's message may quote some, so
only its type and its places in the code are written.
"""

import json
import logging
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_FRAMES = 5

# Of the request that this task answers; empty outside of one.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; never raises, whatever a field holds."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's event and fields, with the outline of its exception."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}
        if record.exc_info and record.exc_info[1]:
            line |= outline(record.exc_info[1])
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # a number beyond 64 bits, or half of a surrogate pair
            return json.dumps(line, default=str)


def outline(error: BaseException) -> dict[str, Any]:
    """An exception's type and its innermost places in the code (``file:line function``), not its message."""
    return {"error": type(error).__name__, "places": _places(error.__traceback__)}


def configure(level: str) -> None:
    """Send every log record from ``level`` up to stderr as JSON. Replaces earlier handlers."""
    # Spare each record the fields that no line shows (see Optimization in the logging HOWTO).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _places(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)[-_FRAMES:]]

"""The trace that the current work belongs to, and the seam for a recorder of traces. It records none itself."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

# In the format of W3C Trace Context; None without a trace.
TRACEPARENT: ContextVar[str | None] = ContextVar("traceparent", default=None)


def _nothing(_method: str, _parent: str) -> AbstractContextManager[None]:
    return nullcontext()


# Surrounds the handler of a call with a traceparent; takes its method and traceparent. Set once, at start.
around: Callable[[str, str], AbstractContextManager[None]] = _nothing

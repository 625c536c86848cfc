"""Which trace the work at hand belongs to, and the seam for who records traces. By itself it records none."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

# As W3C's Trace Context writes it. None: nobody asked for a trace.
TRACEPARENT: ContextVar[str | None] = ContextVar("traceparent", default=None)


def _nothing(_method: str, _parent: str) -> AbstractContextManager[None]:
    return nullcontext()


# What surrounds the serving of a call that came with a traceparent: given the method and that. Set once, at start.
around: Callable[[str, str], AbstractContextManager[None]] = _nothing

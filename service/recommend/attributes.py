"""Names in filters that no note has: such a filter matches nothing, and its author wants to know."""

import asyncio

from service.deadlines import within
from service.errors import StoreUnavailable
from service.recommend.query import RelatedQuery
from service.store.interfaces import NoteStore

# The names of fields that every note may have.
_OWN = {"category", "author", "language", "exposure", "created_at", "hashtags"}
_FRESH_S = 1.0
_TIMEOUT_S = 0.25


class Attributes:
    """The names of all notes' attributes, asked for once a second at most."""

    def __init__(self, store: NoteStore) -> None:
        self._store = store
        self._known: frozenset[str] = frozenset()
        self._asked_s = -_FRESH_S

    async def unknown(self, query: RelatedQuery) -> list[str]:
        """Names in a query's filters that no note ever had. Raises StoreUnavailable."""
        names = query.names - _OWN
        if names <= self._known:
            return []
        now_s = asyncio.get_running_loop().time()
        if now_s - self._asked_s >= _FRESH_S:
            async with within(_TIMEOUT_S, StoreUnavailable):
                self._known = frozenset(await self._store.attribute_types())
            self._asked_s = now_s
        return sorted(names - self._known)

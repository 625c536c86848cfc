"""The community's hashtags: suggestions in the spelling that its notes use, and only those in use if that is wanted."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from service.store import NoteStore
from service.tags import Tag

Vocabulary = Literal["open", "known"]


async def in_use(suggested: Sequence[Tag], count: int, vocabulary: Vocabulary, store: NoteStore) -> list[Tag]:
    """The first ``count`` suggestions, in order, each as most live notes that carry it write it.

    Of the known vocabulary are those that some live note carries, wherever they stand; of the open one the others, too,
    as they were suggested. One round trip. Raises StoreUnavailable.
    """
    asked = suggested if vocabulary == "known" else suggested[:count]
    spellings = await store.spellings([tag.tag for tag in asked])
    known = [
        replace(tag, tag=spelling or tag.tag)
        for tag, spelling in zip(asked, spellings, strict=True)
        if spelling or vocabulary == "open"
    ]
    return known[:count]

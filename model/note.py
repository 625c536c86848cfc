"""The note: the one type that every module of `model` imports."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """One post of the community, as the paper defines it: title, hashtags, category, content (section 3).

    ``exposure`` counts how often the note was shown; it is not part of any prompt.
    """

    id: str
    title: str = ""
    content: str = ""
    hashtags: tuple[str, ...] = ()
    category: str | None = None
    exposure: int = 0

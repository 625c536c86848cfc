"""Readers of published data sets: each turns one published layout into ours.

Ours is that of `model.data.notes` and `model.data.events`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from model.data.readers import amazon_reviews, mind, qilin
from model.data.readers.layout import Source, Written, write

READERS: Mapping[str, Callable[[Path], Source]] = {
    "amazon-reviews": amazon_reviews.load,
    "mind": mind.load,
    "qilin": qilin.load,
}


def convert(layout: str, source: Path, out: Path, *, clicks_only: bool = False) -> Written:
    """Load ``source``, in the layout of that name, and write it to ``out``; see `write`. Raises DataError."""
    return write(out, READERS[layout](source), clicks_only=clicks_only)

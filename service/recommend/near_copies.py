"""Near copies: notes that say the same words, however they are dressed.

The fingerprint of a text is its set of word 3-grams (shingles: Broder, "On the resemblance and containment of
documents", 1997), after NFKC and case folding and without #tags, emoji and punctuation. Reposts change those; two notes
on one subject in other words share hardly a 3-gram. Long texts keep the lowest hashes alone, a sketch of the set.
"""

import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.text.hashtags import CJK

NEAR = 0.8
# Texts of up to so many different 3-grams are compared exactly. A longer one takes 1 KiB, and its similarity is an
# estimate with a standard error below 0.03.
LARGEST_SKETCH = 256

_TAG = re.compile(r"#\w+")
_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")
_WORDS = 3
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))
_HIGH = np.uint64(32)


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """``lowest`` are the lowest hashes of a text's 3-grams, ascending; ``grams`` counts all of them."""

    lowest: NDArray[np.uint32]
    grams: int

    @classmethod
    def of(cls, title: str, content: str) -> "Fingerprint":
        """The fingerprint of a note. A text of fewer than three words has one 3-gram: all of it."""
        text = unicodedata.normalize("NFKC", f"{title}\n{content}").casefold()
        words = _WORD.findall(_TAG.sub(" ", text))
        if len(words) < _WORDS:
            words = ["\0", *words, *[""] * (_WORDS - 1 - len(words))]  # no text has such a word
        hashes_W = np.fromiter((zlib.crc32(word.encode()) + 1 for word in words), np.uint64, len(words))
        grams_G = hashes_W[:-2] * _MIX[0] + hashes_W[1:-1] * _MIX[1] + hashes_W[2:] * _MIX[2]
        grams_G = (grams_G ^ (grams_G >> _HIGH)) * _MIX[1]
        lowest = np.unique((grams_G >> _HIGH).astype(np.uint32))
        return cls(lowest[:LARGEST_SKETCH].copy(), len(lowest))

    def similarity(self, other: "Fingerprint") -> float:
        """3-grams that both have, over the larger number of them, 0..1; an estimate for long texts."""
        most = max(self.grams, other.grams)
        if most <= LARGEST_SKETCH:
            return _shared(self.lowest, other.lowest) / most
        union = np.union1d(self.lowest, other.lowest)[:LARGEST_SKETCH]
        resemblance = _shared(_up_to(self.lowest, union[-1]), _up_to(other.lowest, union[-1])) / len(union)
        shared = resemblance / (1 + resemblance) * (self.grams + other.grams)
        return min(shared / most, 1.0)

    @property
    def prefix(self) -> NDArray[np.uint32]:
        """Hashes of which a near copy has at least one in its own: it lacks no more than a fifth of the 3-grams.

        That is prefix filtering (Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", 2007).
        """
        return self.lowest[: len(self.lowest) // 5 + 1]


def different(fingerprints: Sequence[Fingerprint], origins: Sequence[Fingerprint] = ()) -> list[int]:
    """Places of the fingerprints that are no near copy of an origin or of a kept one before them; ascending."""
    everyone = [*origins, *fingerprints]
    prefixes = [fingerprint.prefix for fingerprint in everyone]
    if not prefixes or _are_distinct(np.concatenate(prefixes)):  # as mostly
        return list(range(len(fingerprints)))
    rarest = _rarest(everyone)
    if _are_distinct(np.concatenate(rarest)):
        return list(range(len(fingerprints)))
    by_gram = defaultdict[int, list[Fingerprint]](list)
    kept = []
    for place, (fingerprint, prefix) in enumerate(zip(everyone, rarest, strict=True), start=-len(origins)):
        grams = prefix.tolist()
        alike = chain.from_iterable(by_gram[gram] for gram in grams)
        if place >= 0:
            if any(fingerprint.similarity(other) >= NEAR for other in alike):
                continue
            kept.append(place)
        for gram in grams:
            by_gram[gram].append(fingerprint)
    return kept


def _rarest(fingerprints: Sequence[Fingerprint]) -> list[NDArray[np.int64]]:
    """As `Fingerprint.prefix`, of the 3-grams that fewest of these have: phrases that many texts share are no sign."""
    lengths = [len(fingerprint.lowest) for fingerprint in fingerprints]
    owners = np.repeat(np.arange(len(lengths)), lengths)
    hashes = np.concatenate([fingerprint.lowest for fingerprint in fingerprints])
    _, grams, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    order = np.lexsort((grams, counts[grams], owners))
    starts = np.cumsum([0, *lengths[:-1]])
    return [grams[order[start : start + length // 5 + 1]] for start, length in zip(starts, lengths, strict=True)]


def _are_distinct(values: NDArray[Any]) -> bool:
    return len(np.unique(values)) == len(values)


def _shared(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> int:
    return len(np.intersect1d(one, other, assume_unique=True))


def _up_to(hashes: NDArray[np.uint32], last: np.uint32) -> NDArray[np.uint32]:
    return hashes[: np.searchsorted(hashes, last, side="right")]

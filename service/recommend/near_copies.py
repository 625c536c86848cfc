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

import numpy as np
from numpy.typing import NDArray

from model.text.hashtags import CJK

NEAR = 0.8
# Texts of up to so many different 3-grams are compared exactly. A longer one takes 1 KiB, and its similarity is an
# estimate with a standard error below 0.03.
LARGEST_SKETCH = 256

_FIRST = np.array([True])
_TAG = re.compile(r"#\w+")
_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")
_WORDS = 3
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))
_HIGH = np.uint64(32)
_MOST_LETTERS = np.uint64(2**32 - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """The lowest hashes of a text's 3-grams, uint32, those of the most letters first; ``grams`` counts all.

    ``prefix`` are the first of them, of which a near copy has at least one in its own: it lacks no more than a fifth of
    the 3-grams. That is prefix filtering (Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", 2007).
    Rare 3-grams have to come first, and those of long words are rare (Zipf's law of abbreviation): mostly no two texts
    have one. ``rest`` are the others. Bytes, since an answer touches those of many notes: an array is two objects more.
    """

    prefix: bytes
    rest: bytes
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
        hashes_G = ((grams_G ^ (grams_G >> _HIGH)) * _MIX[1]) >> _HIGH
        letters_W = np.fromiter(map(len, words), np.uint64, len(words))
        letters_G = letters_W[:-2] + letters_W[1:-1] + letters_W[2:]
        # Both in one number: the hash in its low half, in the high one what orders by descending letters.
        keys = ((_MOST_LETTERS - letters_G) << _HIGH) | hashes_G
        keys.sort()
        keys = keys[np.concatenate((_FIRST, keys[1:] != keys[:-1]))]  # np.unique takes three times as long
        hashes = keys.astype(np.uint32)
        if len(keys) > LARGEST_SKETCH:
            hashes = hashes[hashes <= np.partition(hashes, LARGEST_SKETCH - 1)[LARGEST_SKETCH - 1]]
        end = len(hashes) // 5 + 1
        return cls(hashes[:end].tobytes(), hashes[end:].tobytes(), len(keys))

    @property
    def hashes(self) -> NDArray[np.uint32]:
        """All of them."""
        return np.frombuffer(self.prefix + self.rest, np.uint32)

    def similarity(self, other: "Fingerprint") -> float:
        """3-grams that both have, over the larger number of them, 0..1; an estimate for long texts."""
        most = max(self.grams, other.grams)
        own, others = self.hashes, other.hashes
        if most <= LARGEST_SKETCH:
            return _shared(own, others) / most
        last = np.union1d(own, others)[:LARGEST_SKETCH][-1]
        own, others = own[own <= last], others[others <= last]
        both = _shared(own, others)
        resemblance = both / (len(own) + len(others) - both)
        shared = resemblance / (1 + resemblance) * (self.grams + other.grams)
        return min(shared / most, 1.0)


def different(fingerprints: Sequence[Fingerprint], origins: Sequence[Fingerprint] = ()) -> list[int]:
    """Places of the fingerprints that are no near copy of an origin or of a kept one before them; ascending."""
    everyone = [*origins, *fingerprints]
    suspects = _suspects(everyone)
    if not suspects:
        return list(range(len(fingerprints)))
    copies = set()
    by_gram = defaultdict[int, list[Fingerprint]](list)
    for place, prefix in zip(suspects, _rarest([everyone[place] for place in suspects]), strict=True):
        fingerprint, grams = everyone[place], prefix.tolist()
        if place >= len(origins):
            alike = chain.from_iterable(by_gram[gram] for gram in grams)
            if any(fingerprint.similarity(other) >= NEAR for other in alike):
                copies.add(place - len(origins))
                continue
        for gram in grams:
            by_gram[gram].append(fingerprint)
    return [place for place in range(len(fingerprints)) if place not in copies]


def _suspects(fingerprints: Sequence[Fingerprint]) -> list[int]:
    """Places of those whose prefix has a hash in common with another's: all near copies, and mostly none; ascending."""
    prefixes = [fingerprint.prefix for fingerprint in fingerprints]
    hashes = np.frombuffer(b"".join(prefixes), np.uint32)
    ordered = np.sort(hashes)
    common = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(common):
        return []
    owners = np.repeat(np.arange(len(prefixes)), [len(prefix) // hashes.itemsize for prefix in prefixes])
    places: list[int] = np.unique(owners[np.isin(hashes, common)]).tolist()
    return places


def _rarest(fingerprints: Sequence[Fingerprint]) -> list[NDArray[np.int64]]:
    """As `Fingerprint.prefix`, of the 3-grams that fewest of these have: phrases that many texts share are no sign."""
    hashes_of = [fingerprint.hashes for fingerprint in fingerprints]
    lengths, hashes = list(map(len, hashes_of)), np.concatenate(hashes_of)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    _, grams, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    order = np.lexsort((grams, counts[grams], owners))
    starts = np.cumsum([0, *lengths[:-1]])
    return [grams[order[start : start + length // 5 + 1]] for start, length in zip(starts, lengths, strict=True)]


def _shared(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> int:
    both = np.concatenate((one, other))
    both.sort()
    return int(np.count_nonzero(both[1:] == both[:-1]))

"""Lists of hashtags, ``citywalk, 旅行``, as an automaton over the bytes of UTF-8, the same for every tokenizer.

A token may hold a part of a character, or the end of a hashtag with the comma behind it: it is allowed wherever the
automaton survives its bytes. A part of a character is refused as soon as no allowed character begins like it.
"""

import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

from model.text.hashtags import Kind, kind_of

# Training teaches the first; the others stand there in texts of Chinese, Japanese and Arabic.
SEPARATORS = ",，、،"

# States between two characters; those above `FULL` are in the middle of one. No byte leaves `REFUSED`.
REFUSED, START, NEXT, SPACED, LETTER, DIGIT, GAP, FULL = range(8)
# Where a list may end: before its first hashtag and behind a whole one, but not behind a separator.
MAY_END = frozenset({START, LETTER, DIGIT, GAP, FULL})

# Codes of characters are the columns of `_AFTER`, with 0 for all that no hashtag has. Codes from 6 on stand for the
# first bytes of a character.
_CODES: dict[Kind | None, int] = {None: 0, "letter": 1, "digit": 2, "mark": 3}
_SPACE, _SEPARATOR, _PARTS = 4, 5, 6
# A space may stand before a hashtag, where tokenizers put it, and between its words: WordPiece writes ``city _ walk``.
_AFTER = {
    REFUSED: (REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED),
    START: (REFUSED, LETTER, DIGIT, REFUSED, SPACED, REFUSED),
    NEXT: (REFUSED, LETTER, DIGIT, REFUSED, SPACED, REFUSED),
    SPACED: (REFUSED, LETTER, DIGIT, REFUSED, REFUSED, REFUSED),
    LETTER: (REFUSED, LETTER, DIGIT, LETTER, GAP, NEXT),
    DIGIT: (REFUSED, LETTER, DIGIT, REFUSED, GAP, NEXT),
    GAP: (REFUSED, LETTER, DIGIT, REFUSED, REFUSED, NEXT),
    FULL: (REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, NEXT),
}
# Beyond this Unicode has no letters.
_POINTS = 0x40000


@cache
def transitions() -> NDArray[np.int16]:
    """The state after each byte, of S states, shape (S, 256); what is not UTF-8 is refused."""
    lead, parts = _utf8(np.array([_code(chr(point)) for point in range(_POINTS)]))
    places = len(_AFTER)
    # After each place: a whole character, or the first bytes of one, which remember the place.
    of_parts = places + np.arange(places * len(parts)).reshape(places, -1)
    after = np.hstack([np.array(list(_AFTER.values())), of_parts])
    after[REFUSED] = REFUSED
    table = np.zeros((places + of_parts.size, 256), dtype=np.int16)
    table[:places] = after[:, lead]
    table[places:, 0x80:0xC0] = after[:, parts].reshape(-1, 64)
    for _ in range(3):  # the longest character has three bytes behind its first
        # Parts with the same future are one state, and those without any are refused.
        _, first, alike = np.unique(table, axis=0, return_index=True, return_inverse=True)
        same_S = np.concatenate([np.arange(places), first[alike.reshape(-1)][places:]])
        table = same_S.astype(np.int16)[table]
    return table


def _code(character: str) -> int:
    if character == " ":
        return _SPACE
    if character in SEPARATORS:
        return _SEPARATOR
    # ⑸ counts as alphanumeric, but clean it is (5).
    is_word = all(kind_of(letter) for letter in unicodedata.normalize("NFKC", character))
    return _CODES[kind_of(character) if is_word else None]


def _utf8(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The codes of all first bytes, shape (256,), and for each part of a character the codes of its next 64 bytes."""
    parts: list[NDArray[np.int64]] = []

    def joined(codes: NDArray[np.int64], first: int = 0) -> NDArray[np.int64]:
        """The code of each 64, those before ``first`` refused: they have a shorter form. Equal ones share a code."""
        codes = np.where(np.arange(len(codes)) < first, 0, codes)
        rows, place = np.unique(codes.reshape(-1, 64), axis=0, return_inverse=True)
        numbers = _PARTS + sum(map(len, parts)) + np.arange(len(rows))
        parts.append(rows)
        return np.where(rows.any(axis=1), numbers, 0)[place.reshape(-1)]

    lead = np.zeros(256, dtype=codes.dtype)
    lead[:0x80] = codes[:0x80]
    last = joined(codes)
    lead[0xC2:0xE0] = last[2:32]
    lead[0xE0:0xF0] = joined(last[:1024], first=32)
    lead[0xF0:0xF1] = joined(joined(last, first=1024))
    return lead, np.concatenate(parts)

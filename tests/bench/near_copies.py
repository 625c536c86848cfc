"""How well near copies are told from notes on one subject, and what it costs.

    python tests/bench/near_copies.py

Reposts are made from sample notes: other case, emoji, hashtags, punctuation, spaces, and up to a twentieth of the words
replaced by words of other notes. Hard negatives are the sample notes nearest to each other by the vectors of
model/mini: two texts on one subject. The last line is one JSON object.
"""

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.data.samples.generate import sample_notes
from model.inference.many import HASHTAGS
from model.network.checkpoint import load_manifest
from service.recommend.near_copies import NEAR, Fingerprint, different
from service.store.records import source_of
from service.worker import precomputed

MINI = Path(__file__).parents[2] / "model" / "mini"
PAIRS, LIST, SEED = 2000, 15, 0
DRESSES: dict[str, Callable[[str, random.Random], str]] = {
    "case": lambda text, _: text.upper(),
    "emoji": lambda text, chance: re.sub(" ", lambda _: chance.choice([" ", " 🌸 ", " ✨"]), text),
    "hashtags": lambda text, chance: f"#repost {text} #{chance.choice(['daily', 'love', '生活'])}",
    "punctuation": lambda text, _: re.sub(r"[.,:;!?]", " … ", text),
    "spaces": lambda text, _: text.replace(" ", "\n\u3000"),
}


def main() -> None:
    chance = random.Random(SEED)
    vectors = {one.source: one.vector for one in precomputed.read(MINI, load_manifest(MINI).fingerprint)}
    notes = [note for note in sample_notes() if source_of(note, HASHTAGS) in vectors]
    vectors_ND = np.stack([vectors[source_of(note, HASHTAGS)] for note in notes])
    words = [word for note in notes for word in note.content.split()]
    prints = [Fingerprint.of(note.title, note.content) for note in notes]
    found = dict.fromkeys([*DRESSES, "words", "all"], 0)
    made = dict.fromkeys(found, 0)
    for _ in range(PAIRS):
        place = chance.randrange(len(notes))
        kind = chance.choice(list(found))
        made[kind] += 1
        title, content = notes[place].title, notes[place].content
        if kind in ("words", "all"):
            content = _reworded(content, words, chance)
        for dress in DRESSES if kind == "all" else [kind]:
            if dress in DRESSES:
                title, content = DRESSES[dress](title, chance), DRESSES[dress](content, chance)
        found[kind] += Fingerprint.of(title, content).similarity(prints[place]) >= NEAR
    negatives = [prints[one].similarity(prints[other]) for one, other in _nearest(vectors_ND)]
    wrong = sum(similarity >= NEAR for similarity in negatives)
    right = sum(found.values())
    print(
        json.dumps(
            {
                "pairs": PAIRS,
                "recall": round(right / PAIRS, 4),
                "recall_by_change": {kind: round(found[kind] / made[kind], 4) for kind in found},
                "hard_negatives": len(negatives),
                "taken_for_copies": wrong,
                "precision": round(right / (right + wrong), 4),
                "most_similar_negative": round(max(negatives), 4),
                "fingerprint_us": round(_microseconds(lambda: Fingerprint.of(notes[0].title, notes[0].content)), 1),
                f"list_of_{LIST}_us": round(_microseconds(lambda: different(prints[:LIST])), 1),
                "bytes_a_note": round(sum(one.hashes.nbytes for one in prints) / len(prints)),
            }
        )
    )


def _reworded(text: str, words: list[str], chance: random.Random) -> str:
    own = text.split()
    for place in chance.sample(range(len(own)), max(1, len(own) // 20)):
        own[place] = chance.choice(words)
    return " ".join(own)


def _nearest(vectors_ND: NDArray[np.float32]) -> list[tuple[int, int]]:
    """The pairs of notes with the highest cosines, at most three of a note."""
    cosines_NN = vectors_ND @ vectors_ND.T
    np.fill_diagonal(cosines_NN, -1)
    nearest_N3 = np.argsort(-cosines_NN, axis=1)[:, :3]
    pairs = {
        (min(one, int(other)), max(one, int(other))) for one, row in enumerate(nearest_N3.tolist()) for other in row
    }
    return sorted(pairs, key=lambda pair: -cosines_NN[pair])[:PAIRS]


def _microseconds(call: Callable[[], object], calls: int = 2000) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


if __name__ == "__main__":
    main()

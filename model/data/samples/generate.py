"""Sample notes and clicks, so that the demo and the mini model need no download.

The notes in ``material/`` are written by hand, one file a category. The clicks are drawn by a seeded model of readers,
described at `clicks`; nobody read these notes, so nothing can be learned from them about real readers.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.note import Note

SESSIONS = 24_000
_MATERIAL = Path(__file__).parent / "material"


def sample_notes() -> list[Note]:
    """All sample notes, by category and place in its file; ``travel-07`` is the seventh of travel.txt.

    Raises:
        ValueError: if a file of the material is malformed, with file and block.
    """
    return [note for path in sorted(_MATERIAL.glob("*.txt")) for note in _load(path)]


def clicks(notes: Sequence[Note], sessions: int = SESSIONS, seed: int = 0) -> Iterator[tuple[str, str, int]]:
    """Clicks as (user, note, place in the session), one user a session.

    A reader opens a note (some are far more popular than others), then 2 to 7 more: mostly notes that share rare
    hashtags with the first, at times another of the same category, now and then anything.
    """
    rng = random.Random(seed)
    popularity = [1.0 / (rank + 20) for rank in range(len(notes))]
    rng.shuffle(popularity)
    cumulative = list(accumulate(popularity))
    near, weights = _neighbors(notes)
    same = {name: [i for i, n in enumerate(notes) if n.category == name] for name in {n.category for n in notes}}
    for session in range(sessions):
        [first] = rng.choices(range(len(notes)), cum_weights=cumulative)
        seen = {first: None}
        for _ in range(rng.randint(2, 7)):
            mood = rng.random()
            if mood < 0.80:
                [following] = rng.choices(near[first], weights=weights[first])
            elif mood < 0.93:
                following = rng.choice(same[notes[first].category])
            else:
                [following] = rng.choices(range(len(notes)), cum_weights=cumulative)
            seen[following] = None
        for place, note in enumerate(seen, start=1):
            yield f"s{session:05d}", notes[note].id, place


def write(folder: Path, sessions: int = SESSIONS, seed: int = 0) -> tuple[int, int]:
    """Write ``notes.jsonl`` and ``events.jsonl``, and count both. A note's exposure is 20 times its clicks."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = sample_notes()
    log = list(clicks(notes, sessions, seed))
    clicked: dict[str, int] = {}
    for _, note_id, _ in log:
        clicked[note_id] = clicked.get(note_id, 0) + 1
    notes = [replace(note, exposure=20 * clicked.get(note.id, 0)) for note in notes]
    with (folder / "notes.jsonl").open("w", encoding="utf-8") as file:
        for note in notes:
            record = asdict(note)
            record["note_id"] = record.pop("id")
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    with (folder / "events.jsonl").open("w", encoding="utf-8") as file:
        for user_id, note_id, place in log:
            event = {"user_id": user_id, "note_id": note_id, "ts": place, "event": "click"}
            file.write(json.dumps(event) + "\n")
    return len(notes), len(log)


def _load(path: Path) -> Iterator[Note]:
    head, *blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    if not head.startswith("category: "):
        raise ValueError(f"{path.name} must begin with 'category: '")
    for number, block in enumerate(blocks, start=1):
        lines = block.split("\n")
        if len(lines) != 3:
            raise ValueError(f"{path.name} block {number} has {len(lines)} lines, not title, content, hashtags")
        title, content, tags = lines
        yield Note(
            id=f"{path.stem}-{number:02d}",
            title=title,
            content=content,
            hashtags=tuple(tag.removeprefix("#") for tag in tags.split()),
            category=head.removeprefix("category: "),
        )


def _neighbors(notes: Sequence[Note], count: int = 12) -> tuple[list[list[int]], list[list[float]]]:
    """For each note the notes nearest by shared hashtags, rare ones counting more, and their weights."""
    tags = sorted({tag for note in notes for tag in note.hashtags})
    column = {tag: place for place, tag in enumerate(tags)}
    carried: NDArray[np.float64] = np.zeros((len(notes), len(tags)))
    for row, note in enumerate(notes):
        carried[row, [column[tag] for tag in note.hashtags]] = 1.0
    carried *= np.log(len(notes) / carried.sum(axis=0))
    carried /= np.linalg.norm(carried, axis=1, keepdims=True)
    categories = np.array([note.category for note in notes])
    alike = carried @ carried.T + 0.2 * (categories[:, None] == categories[None, :])
    np.fill_diagonal(alike, -1.0)
    near = np.argsort(-alike, axis=1, kind="stable")[:, :count]
    weights = np.take_along_axis(alike, near, axis=1) ** 2
    return near.tolist(), weights.tolist()

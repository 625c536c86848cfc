"""A small community in which a model can learn something within seconds: readers stay with one topic.

A topic has words of its own, which no other topic uses, so that notes of one topic are related, and a model that was
not trained knows nothing of that.
"""

import json
import random
from pathlib import Path
from typing import Any

TOPICS = 8
SYLLABLES = ("ka", "lo", "mi", "ru", "te", "sa", "vo", "ne", "du", "fi", "gab", "hol", "jin", "kep", "lum", "mor")
DAY = 86_400


def topic_notes(count: int = 240, seed: int = 0) -> list[dict[str, Any]]:
    """Notes in the order in which they were written; note ``i`` is of topic ``i % TOPICS``."""
    draw = random.Random(seed)
    words = [["".join(draw.choices(SYLLABLES, k=3)) for _ in range(12)] for _ in range(TOPICS)]
    return [
        {
            "note_id": f"n{number:03}",
            "title": " ".join(draw.sample(words[number % TOPICS], 3)),
            "content": " ".join(draw.sample(words[number % TOPICS], 6)),
            "hashtags": [f"topic{number % TOPICS}", draw.choice(words[number % TOPICS])],
            "category": ("Baking", "Home Decor", "Travel")[number % 3],
        }
        for number in range(count)
    ]


def topic_events(notes: list[dict[str, Any]], readers: int = 160, seed: int = 1) -> list[dict[str, Any]]:
    """Clicks: every reader reads a run of neighboring notes of one topic, on the days on which they were written."""
    draw = random.Random(seed)
    events = []
    for reader in range(readers):
        own = [place for place in range(len(notes)) if place % TOPICS == reader % TOPICS]
        start = draw.randrange(len(own) - 4)
        for step, place in enumerate(own[start : start + 5]):
            ts = 1_700_000_000 + place * DAY // 4 + step * 60
            events.append({"user_id": f"u{reader}", "note_id": notes[place]["note_id"], "ts": ts, "event": "click"})
    return events


def write_topics(folder: Path, **more: Any) -> Path:
    """Notes and events as files."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = topic_notes(**more)
    for name, rows in (("notes", notes), ("events", topic_events(notes))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder

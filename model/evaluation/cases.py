"""Cases to look at, as in figure 3: the first related note of each method, and its hashtags, beside each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.data.files import DataError
from model.data.pairs import Pairs
from model.evaluation.baselines import Ranker
from model.evaluation.hashtag_baselines import NeighborTags
from model.evaluation.hashtags import HASHTAGS, Predict, has_hashtags, sample_notes
from model.evaluation.retrieval import NOTELLM
from model.note import Note
from model.text.prompt import plain_text

MOST_CHARS = 400
_WIDTH = 72


@dataclass(frozen=True, slots=True)
class Found:
    """The note of the pool that a method puts first. ``related``: whether it is a gold pair; None where none are."""

    method: str
    note: Note
    score: float
    related: bool | None


@dataclass(frozen=True, slots=True)
class Case:
    """A note with each method's first related note, and its own and each method's hashtags by name."""

    note: Note
    found: list[Found]
    hashtags: Mapping[str, Sequence[str]]


def choose_notes(pool: Sequence[Note], gold: Pairs | None, count: int, ids: Sequence[str] = ()) -> list[Note]:
    """The notes of these ids, or ``count`` that are drawn by their ids alone: the same ones in every run.

    Where gold pairs are known, notes without any are not drawn.

    Raises:
        DataError: if an id is not in the pool.
    """
    by_id = {note.id: note for note in pool}
    if unknown := [note_id for note_id in ids if note_id not in by_id]:
        raise DataError(
            f"{len(unknown)} of {len(ids)} notes are not in the pool of {len(pool):,}, {unknown[0]!r} for one"
        )
    if ids:
        return [by_id[note_id] for note_id in ids]
    targets = set(gold.note_ids) if gold else set(by_id)
    return sample_notes([note for note in pool if note.id in targets], count)


def find_cases(
    rankers: Sequence[Ranker],
    pool: Sequence[Note],
    gold: Pairs | None,
    chosen: Sequence[Note],
    hashtags: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> list[Case]:
    """A case for each chosen note of the pool, in order; of notes with one score the first in the pool is taken.

    ``hashtags``: each method's for the chosen notes, in order.
    """
    place = {note.id: row for row, note in enumerate(pool)}
    targets = [place[note.id] for note in chosen]
    pairs = set(gold.ends()) if gold else None
    found: list[list[Found]] = [[] for _ in chosen]
    for ranker in rankers:
        score_TN = ranker.scores(targets)
        score_TN[np.arange(len(targets)), targets] = -np.inf
        for row, (note, best) in enumerate(zip(chosen, score_TN.argmax(axis=1).tolist(), strict=True)):
            related = None if pairs is None else (note.id, pool[best].id) in pairs
            found[row].append(Found(ranker.name, pool[best], float(score_TN[row, best]), related))
    tags = {name: list(each) for name, each in (hashtags or {}).items()}
    return [
        Case(note, found[row], {name: each[row] for name, each in tags.items()} if tags else {})
        for row, note in enumerate(chosen)
    ]


def hashtags_of(chosen: Sequence[Note], training: Sequence[Note], predict: Predict) -> dict[str, list[list[str]]]:
    """The notes' own hashtags, those predicted from title and content, and those of the nearest training notes."""
    drafts = [replace(note, hashtags=(), category=None) for note in chosen]
    predicted = [[scored.name for scored in prediction.hashtags] for prediction in predict(drafts)]
    hashtags = {"the author's hashtags": [list(note.hashtags) for note in chosen], f"{NOTELLM}'s hashtags": predicted}
    if tagged := [note for note in training if has_hashtags(note)]:
        neighbors = NeighborTags(tagged)
        hashtags[neighbors.name] = [tags[:HASHTAGS] for tags in neighbors.tags(drafts)]
    return hashtags


def format_cases(cases: Sequence[Case]) -> str:
    """The cases as text for a terminal: a line a method, cut to a screen's width."""
    return "\n\n".join("\n".join(_lines(number, case)) for number, case in enumerate(cases, start=1))


def cases_page(cases: Sequence[Case], title: str, about: str) -> str:
    """The cases as one HTML page that needs nothing else; every text is escaped, long ones are cut."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("model.evaluation", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = _cut
    return environment.get_template("cases.html").render(cases=cases, title=title, about=about)


def _lines(number: int, case: Case) -> list[str]:
    width = max(len(name) for name in [*(found.method for found in case.found), *case.hashtags])
    lines = [f"{number}. {_cut(_line_of(case.note), _WIDTH)}"]
    for found in case.found:
        mark = "*" if found.related else " "
        lines.append(f"   {found.method:<{width}} {mark} {_cut(_line_of(found.note), _WIDTH)}")
    for name, tags in case.hashtags.items():
        lines.append(f"   {name:<{width}}   {_cut(' '.join(f'#{tag}' for tag in tags), _WIDTH)}")
    return lines


def _line_of(note: Note) -> str:
    """A note's title, or the beginning of its text, or its hashtags."""
    return note.title.strip() or note.content.strip() or " ".join(f"#{tag}" for tag in note.hashtags)


def _cut(text: str, most: int = MOST_CHARS) -> str:
    """The text without control characters, on one line, and not longer than that."""
    text = plain_text(text[: 4 * most])
    return text if len(text) <= most else f"{text[: most - 1]}…"

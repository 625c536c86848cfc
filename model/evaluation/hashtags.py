"""How well a model predicts categories and hashtags, and how much better than opponents without one (table 4).

Shapes: Q held-out notes are predicted; the answer is never in their prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from model.backend import Prediction
from model.evaluation.baselines import Embeddings
from model.evaluation.hashtag_baselines import MostFrequentTags, NeighborTags, TagBaseline, nearest_notes
from model.evaluation.metrics import (
    Interval,
    accuracy,
    bleu4,
    bleu4_public_code,
    bootstrap,
    f1_of_each,
    illegal_share,
    paired_bootstrap,
    rouge_of_each,
)
from model.evaluation.retrieval import NOTELLM, Embed
from model.evaluation.tables import markdown, percent, percent_interval
from model.note import Note
from model.text.hashtags import clean_tags
from model.text.prompt import topics_text
from model.text.suggestions import Scores, TaggedNeighbors, Uncalibrated, candidates, usual_spellings
from model.text.words import how_cut

HASHTAGS = 5
WITH_NEIGHBORS = "NoteLLM + neighbors"
NEIGHBORS_ALONE = "hashtags of NoteLLM neighbors"
LEAD_METRICS = {"ROUGE1": "rouge1", f"F1@{HASHTAGS}": "f1"}

Predict = Callable[[Sequence[Note]], Sequence[Prediction]]
"""A model's predictions of notes, in order, with up to five hashtags each."""
Write = Callable[[Sequence[Note]], Sequence[str]]
"""The categories that a model writes freely for notes, in order: nothing holds it to the closed set."""


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """Figures of generated categories of ``notes`` notes that have one; shares in 0..1 with 95% intervals.

    ``accuracy`` and ``illegal``: held to the closed set. ``unconstrained``: written freely, as in the paper; None where
    none were.
    """

    notes: int
    accuracy: Interval
    illegal: Interval
    unconstrained_accuracy: Interval | None = None
    unconstrained_illegal: Interval | None = None


@dataclass(frozen=True, slots=True)
class HashtagRow:
    """Figures of suggested hashtags for ``notes`` notes that have some; shares in 0..1, F1 at five.

    Those that are means over the notes have a 95% interval. ``bleu4_public_code`` is no BLEU: see
    `model.evaluation.metrics.bleu4_public_code`.
    """

    name: str
    notes: int
    bleu4: float
    bleu4_public_code: float
    rouge1: Interval
    rouge2: Interval
    rouge_l: Interval
    f1: Interval


@dataclass(frozen=True, slots=True)
class HashtagLead:
    """How far ``name`` is ahead of ``over`` in one of `LEAD_METRICS`, by a paired bootstrap over the notes."""

    name: str
    over: str
    metric: str
    lead: Interval


@dataclass(frozen=True, slots=True)
class HashtagReport:
    """NoteLLM's hashtags and its opponents', for the same notes.

    ``words`` says how the words were told apart that BLEU and ROUGE count, where spaces do not: see `how_cut`.
    """

    rows: list[HashtagRow]
    leads: list[HashtagLead]
    words: str


def evaluate_categories(
    predicted: Sequence[str | None],
    truth: Sequence[str],
    categories: Sequence[str],
    written: Sequence[str] | None = None,
) -> CategoryRow:
    """Acc. and Ill. of generated categories; ``categories`` is the closed set. ValueError without any.

    ``written``: the categories that were written freely.
    """
    held = {name: bootstrap(values) for name, values in judge_categories(predicted, truth, categories).items()}
    row = CategoryRow(len(truth), held["accuracy"], held["illegal"])
    if written is None:
        return row
    free = {name: bootstrap(values) for name, values in judge_categories(written, truth, categories).items()}
    return replace(row, unconstrained_accuracy=free["accuracy"], unconstrained_illegal=free["illegal"])


def judge_categories(
    predicted: Sequence[str | None], truth: Sequence[str], categories: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """``accuracy`` and ``illegal`` of each category, each of shape (Q,); ``categories`` is the closed set."""
    right = [accuracy([name], [true]) for name, true in zip(predicted, truth, strict=True)]
    return {
        "accuracy": np.array(right),
        "illegal": np.array([illegal_share([name], categories) for name in predicted]),
    }


class JudgedHashtags:
    """Overlap of suggested hashtags with the true ones, both cleaned as the service cleans them.

    BLEU and ROUGE count as many suggested hashtags as the note has, which is the number j in the paper's prompt; F1
    counts five. ``of_each`` has the figures of each note by name, each of shape (Q,). Raises ValueError without any.
    """

    def __init__(self, name: str, predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> None:
        suggested = [clean_tags(list(tags)) for tags in predicted]
        true = [clean_tags(list(tags)) for tags in truth]
        self.name = name
        self._texts = [topics_text(tags[: len(own)]) for tags, own in zip(suggested, true, strict=True)]
        self._true_texts = [topics_text(tags) for tags in true]
        rouge = rouge_of_each(self._texts, self._true_texts)
        self.of_each = {"rouge1": rouge["rouge1"], "rouge2": rouge["rouge2"], "rouge_l": rouge["rougeL"]}
        self.of_each["f1"] = f1_of_each(suggested, true, HASHTAGS)

    def at_once(self) -> dict[str, float]:
        """The figures of all texts at once, by name."""
        texts = (self._texts, self._true_texts)
        return {"bleu4": bleu4(*texts), "bleu4_public_code": bleu4_public_code(*texts)}

    def row(self) -> HashtagRow:
        """The means over the notes, with their intervals."""
        at_once, means = self.at_once(), {name: bootstrap(values) for name, values in self.of_each.items()}
        return HashtagRow(
            self.name,
            len(self._texts),
            at_once["bleu4"],
            at_once["bleu4_public_code"],
            means["rouge1"],
            means["rouge2"],
            means["rouge_l"],
            means["f1"],
        )

    def lead(self, other: "JudgedHashtags", metric: str) -> HashtagLead:
        """How far it is ahead of the other in one of `LEAD_METRICS`."""
        figure = LEAD_METRICS[metric]
        lead = paired_bootstrap(self.of_each[figure], other.of_each[figure])
        return HashtagLead(self.name, other.name, metric, lead)


def evaluate_tags(
    training: Sequence[Note],
    held_out: Sequence[Note],
    predict: Predict,
    embed: Embed | None = None,
    *,
    limit: int | None = None,
    scores: Scores | None = None,
) -> HashtagReport | None:
    """Compare generated hashtags with opponents that need no generation, on the same held-out notes; needs no events.

    The opponents are fitted on the training notes: hashtags of TF-IDF neighbors, and the most frequent ones. With
    ``embed`` there are the hashtags of NoteLLM's own nearest training notes, too, and NoteLLM's hashtags merged with
    those, as the service does.

    Args:
        predict: sees title and content alone.
        embed: sees the training notes whole; its vectors have the size of the predictions'.
        limit: notes to predict at most, see `sample_notes`.
        scores: order the merged hashtags, as the checkpoint's calibration does.

    Returns:
        None if no held-out note has both hashtags and text. Without hashtags on the training notes NoteLLM stands
        alone.
    """
    asked = sample_notes([note for note in held_out if has_hashtags(note)], limit)
    training = [note for note in training if has_hashtags(note)]
    if not asked:
        return None
    drafts = [replace(note, hashtags=(), category=None) for note in asked]
    predictions = predict(drafts)
    written = [[(scored.name, scored.score) for scored in prediction.hashtags] for prediction in predictions]
    ours = {NOTELLM: [[name for name, _ in tags] for tags in written]}
    opponents: list[TagBaseline] = [NeighborTags(training), MostFrequentTags(training)] if training else []
    theirs = {opponent.name: opponent.tags(drafts) for opponent in opponents}
    if training and embed is not None:
        carried = [note.hashtags for note in training]
        query_QD = np.stack([prediction.vector for prediction in predictions])
        near = nearest_notes(query_QD, Embeddings(NOTELLM, embed(training)).unit_ND, carried)
        suggest = partial(_suggestions, near=near, usual=usual_spellings(carried), scores=scores or Uncalibrated())
        ours[WITH_NEIGHBORS] = suggest(written)
        theirs = {NEIGHBORS_ALONE: suggest([[] for _ in written]), **theirs}
    return compare_hashtags(ours, theirs, [note.hashtags for note in asked])


def compare_hashtags(
    ours: Mapping[str, Sequence[Sequence[str]]],
    theirs: Mapping[str, Sequence[Sequence[str]]],
    truth: Sequence[Sequence[str]],
) -> HashtagReport:
    """A row for each list of suggestions by name, and the lead of each of ours over each of theirs."""
    first = [JudgedHashtags(name, predicted, truth) for name, predicted in ours.items()]
    second = [JudgedHashtags(name, predicted, truth) for name, predicted in theirs.items()]
    return HashtagReport(
        [judged.row() for judged in [*first, *second]],
        [one.lead(other, metric) for one in first for other in second for metric in LEAD_METRICS],
        how_cut(tag for tags in truth for tag in tags),
    )


def has_hashtags(note: Note) -> bool:
    """Whether it has hashtags to predict, and text to predict them from."""
    return bool(clean_tags(list(note.hashtags)) and (note.title + note.content).strip())


def sample_notes(notes: Sequence[Note], limit: int | None) -> list[Note]:
    """``limit`` of the notes in order, drawn by the hashes of their ids: the same ones in every run. None means all."""
    if limit is None or limit >= len(notes):
        return list(notes)
    drawn = sorted(notes, key=lambda note: blake2b(f"sample:{note.id}".encode("utf-8", "surrogatepass")).digest())
    chosen = {note.id for note in drawn[:limit]}
    return [note for note in notes if note.id in chosen]


def format_categories(row: CategoryRow) -> str:
    """Acc. and Ill. in percent with 95% intervals, as a Markdown table."""
    body = [["held to the closed set", f"{row.notes:,}", *map(percent_interval, (row.accuracy, row.illegal))]]
    if row.unconstrained_accuracy is not None and row.unconstrained_illegal is not None:
        free = [percent_interval(row.unconstrained_accuracy), percent_interval(row.unconstrained_illegal)]
        body.append(["unconstrained", f"{row.notes:,}", *free])
    return markdown(["category", "notes", "Acc. (95% interval)", "Ill. (95% interval)"], body)


def format_hashtags(report: HashtagReport) -> str:
    """Every row in percent, how words were told apart, and the leads in points, as Markdown; with 95% intervals."""
    of_each = [f"{figure} (95% interval)" for figure in ("ROUGE1", "ROUGE2", "ROUGEL", f"F1@{HASHTAGS}")]
    header = ["hashtags", "notes", "BLEU4", "BLEU4 of the public code", *of_each]
    body = []
    for row in report.rows:
        shares = [percent(row.bleu4), percent(row.bleu4_public_code)]
        means = map(percent_interval, (row.rouge1, row.rouge2, row.rouge_l, row.f1))
        body.append([row.name, f"{row.notes:,}", *shares, *means])
    parts = [markdown(header, body)]
    if report.words:
        parts.append(report.words)
    if report.leads:
        leads = [[lead.name, lead.over, lead.metric, percent_interval(lead.lead)] for lead in report.leads]
        parts.append(markdown(["hashtags of", "ahead of", "in", "points (95% interval)"], leads))
    return "\n\n".join(parts)


def _suggestions(
    written: Sequence[Sequence[tuple[str, float]]],
    near: Sequence[TaggedNeighbors],
    usual: Mapping[str, str],
    scores: Scores,
) -> list[list[str]]:
    """The service's suggestions for drafts: the model's written hashtags, if any, merged with the neighbors'."""
    suggested = []
    for tags, neighbors in zip(written, near, strict=True):
        merged = sorted(candidates(tags, neighbors), key=lambda candidate: -scores.suggestion(candidate))
        suggested.append([usual.get(candidate.key, candidate.tag) for candidate in merged])
    return suggested

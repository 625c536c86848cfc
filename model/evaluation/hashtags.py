"""How well a model predicts categories and hashtags, and how much better than opponents without one (section 5.5).

Shapes: Q held-out notes are predicted; the answer is never in their prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.backend import Prediction
from model.data.cooccurrence import HOLDOUT, SEED, split_notes
from model.data.notes import load_notes
from model.evaluation.baselines import Embeddings
from model.evaluation.hashtag_baselines import MostFrequentTags, NeighborTags, TagBaseline, nearest_notes
from model.evaluation.metrics import (
    Interval,
    accuracy,
    bleu4,
    bleu4_public_code,
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
from model.text.suggestions import Scores, Uncalibrated, candidates, usual_spellings

HASHTAGS = 5
WITH_NEIGHBORS = "NoteLLM + neighbors"
LEAD_METRICS = {"ROUGE1": "rouge1", f"F1@{HASHTAGS}": "f1"}

Predict = Callable[[Sequence[Note]], Sequence[Prediction]]
"""A model's predictions of notes, in order, with up to five hashtags each."""
Write = Callable[[Sequence[Note]], Sequence[str]]
"""The categories that a model writes freely for notes, in order: nothing holds it to the closed set."""


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """Figures of generated categories of ``notes`` notes that have one; shares in 0..1.

    ``accuracy`` and ``illegal``: held to the closed set. ``unconstrained``: written freely, as in the paper; None where
    none were.
    """

    notes: int
    accuracy: float
    illegal: float
    unconstrained_accuracy: float | None = None
    unconstrained_illegal: float | None = None


@dataclass(frozen=True, slots=True)
class HashtagRow:
    """Figures of suggested hashtags for ``notes`` notes that have some; shares in 0..1, F1 at five.

    ``bleu4_public_code`` is no BLEU: see `model.evaluation.metrics.bleu4_public_code`.
    """

    name: str
    notes: int
    bleu4: float
    bleu4_public_code: float
    rouge1: float
    rouge2: float
    rouge_l: float
    f1: float


@dataclass(frozen=True, slots=True)
class HashtagLead:
    """How far ``name`` is ahead of ``over`` in one of `LEAD_METRICS`, by a paired bootstrap over the notes."""

    name: str
    over: str
    metric: str
    lead: Interval


@dataclass(frozen=True, slots=True)
class HashtagReport:
    """NoteLLM's hashtags and its opponents', for the same notes."""

    rows: list[HashtagRow]
    leads: list[HashtagLead]


def evaluate_categories(
    predicted: Sequence[str | None],
    truth: Sequence[str],
    categories: Sequence[str],
    written: Sequence[str] | None = None,
) -> CategoryRow:
    """Acc. and Ill. of generated categories; ``categories`` is the closed set. ValueError without any.

    ``written``: the categories that were written freely.
    """
    row = CategoryRow(len(truth), accuracy(predicted, truth), illegal_share(predicted, categories))
    if written is None:
        return row
    return replace(
        row,
        unconstrained_accuracy=accuracy(written, truth),
        unconstrained_illegal=illegal_share(written, categories),
    )


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
        """The means over the notes."""
        means = {name: float(values.mean()) for name, values in self.of_each.items()}
        return HashtagRow(self.name, len(self._texts), **self.at_once(), **means)

    def lead(self, other: "JudgedHashtags", metric: str) -> HashtagLead:
        """How far it is ahead of the other in one of `LEAD_METRICS`."""
        figure = LEAD_METRICS[metric]
        lead = paired_bootstrap(self.of_each[figure], other.of_each[figure])
        return HashtagLead(self.name, other.name, metric, lead)


def evaluate_tags(
    data: Path | Sequence[Note],
    predict: Predict,
    embed: Embed | None = None,
    *,
    holdout: float = HOLDOUT,
    seed: int = SEED,
    limit: int | None = None,
    scores: Scores | None = None,
) -> HashtagReport | None:
    """Compare generated hashtags with opponents that need no model, on the same held-out notes; needs no events.

    The opponents are fitted on the notes that are not held out: hashtags of TF-IDF neighbors, and the most frequent
    ones. With ``embed``, NoteLLM's hashtags are also merged with those of its own nearest training notes, as the
    service does.

    Args:
        data: notes, or the file or folder to load them from.
        predict: sees title and content alone.
        embed: sees the training notes whole; its vectors have the size of the predictions'.
        holdout, seed: as when the model was trained.
        limit: notes to predict at most, see `sample_notes`.
        scores: order the merged hashtags, as the checkpoint's calibration does.

    Returns:
        None if no held-out note has both hashtags and text. Without hashtags on the training notes NoteLLM stands
        alone.

    Raises:
        DataError: if the notes cannot be loaded.
    """
    notes = load_notes(data) if isinstance(data, Path) else data
    held_out = split_notes((note.id for note in notes), holdout, seed)
    tagged = [note for note in notes if has_hashtags(note)]
    asked = sample_notes([note for note in tagged if note.id in held_out], limit)
    training = [note for note in tagged if note.id not in held_out]
    if not asked:
        return None
    drafts = [replace(note, hashtags=(), category=None) for note in asked]
    predictions = predict(drafts)
    ours = {NOTELLM: [[scored.name for scored in prediction.hashtags] for prediction in predictions]}
    if training and embed is not None:
        ours[WITH_NEIGHBORS] = _with_neighbors(predictions, training, embed(training), scores or Uncalibrated())
    opponents: list[TagBaseline] = [NeighborTags(training), MostFrequentTags(training)] if training else []
    theirs = {opponent.name: opponent.tags(drafts) for opponent in opponents}
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
    """Acc. and Ill. in percent, as a Markdown table."""
    body = [["held to the closed set", f"{row.notes:,}", percent(row.accuracy), percent(row.illegal)]]
    if row.unconstrained_accuracy is not None and row.unconstrained_illegal is not None:
        free = [percent(row.unconstrained_accuracy), percent(row.unconstrained_illegal)]
        body.append(["unconstrained", f"{row.notes:,}", *free])
    return markdown(["category", "notes", "Acc.", "Ill."], body)


def format_hashtags(report: HashtagReport) -> str:
    """Every row in percent, and the leads in points with 95% intervals, as Markdown tables."""
    header = ["hashtags", "notes", "BLEU4", "BLEU4 of the public code", "ROUGE1", "ROUGE2", "ROUGEL", f"F1@{HASHTAGS}"]
    body = []
    for row in report.rows:
        shares = (row.bleu4, row.bleu4_public_code, row.rouge1, row.rouge2, row.rouge_l, row.f1)
        body.append([row.name, f"{row.notes:,}", *map(percent, shares)])
    tables = [markdown(header, body)]
    if report.leads:
        leads = [[lead.name, lead.over, lead.metric, percent_interval(lead.lead)] for lead in report.leads]
        tables.append(markdown(["hashtags of", "ahead of", "in", "points (95% interval)"], leads))
    return "\n\n".join(tables)


def _with_neighbors(
    predictions: Sequence[Prediction], training: Sequence[Note], emb_ND: NDArray[np.float32], scores: Scores
) -> list[list[str]]:
    """The service's suggestions for each prediction if the training notes were its community."""
    unit_QD = np.stack([prediction.vector for prediction in predictions])
    carried = [note.hashtags for note in training]
    usual = usual_spellings(carried)
    suggested = []
    for prediction, near in zip(
        predictions, nearest_notes(unit_QD, Embeddings(NOTELLM, emb_ND).unit_ND, carried), strict=True
    ):
        merged = candidates([(tag.name, tag.score) for tag in prediction.hashtags], near)
        merged.sort(key=lambda candidate: -scores.suggestion(candidate))
        suggested.append([usual.get(candidate.key, candidate.tag) for candidate in merged])
    return suggested

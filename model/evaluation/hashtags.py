"""How well a model names categories and hashtags, and how much better than without one (section 5.5).

Q held-out notes are asked about; what a note is asked for is never shown.
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
LEAD_METRICS = ("ROUGE1", f"F1@{HASHTAGS}")

Predict = Callable[[Sequence[Note]], Sequence[Prediction]]
"""A model's readings of notes, in order, with five hashtags each if it finds them."""
Write = Callable[[Sequence[Note]], Sequence[str]]
"""What a model writes for the category of notes, in order, when nothing holds it to the closed set."""


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """How generated categories did on ``notes`` notes that have one; shares in 0..1.

    ``accuracy`` and ``illegal``: held to the closed set. The ``unconstrained`` ones: written freely, as in the
    paper; None where that was not asked for.
    """

    notes: int
    accuracy: float
    illegal: float
    unconstrained_accuracy: float | None = None
    unconstrained_illegal: float | None = None


@dataclass(frozen=True, slots=True)
class HashtagRow:
    """How suggested hashtags did on ``notes`` notes that have some; shares in 0..1, F1 at five.

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
    """NoteLLM's hashtags beside those of its opponents, for the same notes."""

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


def evaluate_hashtags(
    predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]], name: str = NOTELLM
) -> HashtagRow:
    """Overlap of suggested hashtags with the true ones, both cleaned as the service cleans them.

    BLEU and ROUGE read as many suggested hashtags as the note has, which is the number j that the paper's
    prompt asks for; F1 reads five. Raises ValueError without any.
    """
    return _Judged(name, predicted, truth).row()


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
    """Compare generated hashtags with those that need no model, on the same held-out notes; needs no events.

    The opponents are fitted on the notes that are not held out: hashtags of TF-IDF neighbors, and the most frequent
    ones. With ``embed``, NoteLLM's hashtags are also merged with those of its own nearest training notes, as the
    service does.

    Args:
        data: notes, or the file or folder to read them from.
        predict: sees title and content alone.
        embed: sees the training notes whole; as long as the predictions' vectors.
        holdout, seed: as when the model was trained.
        limit: notes to ask about at most, see `sample_notes`.
        scores: what the merged hashtags are ordered by, as the checkpoint's calibration has it.

    Returns:
        None if no held-out note has both hashtags and text. Without hashtags on the training notes NoteLLM stands
        alone.

    Raises:
        DataError: if the notes cannot be read.
    """
    notes = load_notes(data) if isinstance(data, Path) else data
    held_out = split_notes((note.id for note in notes), holdout, seed)
    tagged = [note for note in notes if clean_tags(list(note.hashtags)) and (note.title + note.content).strip()]
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
    first = [_Judged(name, predicted, truth) for name, predicted in ours.items()]
    second = [_Judged(name, predicted, truth) for name, predicted in theirs.items()]
    return HashtagReport(
        [judged.row() for judged in [*first, *second]],
        [
            HashtagLead(one.name, other.name, metric, paired_bootstrap(one.by_note[metric], other.by_note[metric]))
            for one in first
            for other in second
            for metric in LEAD_METRICS
        ],
    )


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


class _Judged:
    """One list of suggestions, scored note by note; ``by_note`` are the `LEAD_METRICS`, each of shape (Q,)."""

    def __init__(self, name: str, predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> None:
        said = [clean_tags(list(tags)) for tags in predicted]
        true = [clean_tags(list(tags)) for tags in truth]
        self.name = name
        self._said_texts = [topics_text(tags[: len(wanted)]) for tags, wanted in zip(said, true, strict=True)]
        self._true_texts = [topics_text(tags) for tags in true]
        self._rouge = rouge_of_each(self._said_texts, self._true_texts)
        self._f1_Q = f1_of_each(said, true, HASHTAGS)
        self.by_note: dict[str, NDArray[np.float64]] = dict(
            zip(LEAD_METRICS, (self._rouge["rouge1"], self._f1_Q), strict=True)
        )

    def row(self) -> HashtagRow:
        """The means over the notes."""
        return HashtagRow(
            name=self.name,
            notes=len(self._true_texts),
            bleu4=bleu4(self._said_texts, self._true_texts),
            bleu4_public_code=bleu4_public_code(self._said_texts, self._true_texts),
            rouge1=float(self._rouge["rouge1"].mean()),
            rouge2=float(self._rouge["rouge2"].mean()),
            rouge_l=float(self._rouge["rougeL"].mean()),
            f1=float(self._f1_Q.mean()),
        )


def _with_neighbors(
    predictions: Sequence[Prediction], training: Sequence[Note], emb_ND: NDArray[np.float32], scores: Scores
) -> list[list[str]]:
    """What the service would suggest of each reading if the training notes were its community."""
    unit_QD = np.stack([prediction.vector for prediction in predictions])
    carried = [note.hashtags for note in training]
    usual = usual_spellings(carried)
    suggested = []
    for prediction, near in zip(
        predictions, nearest_notes(unit_QD, Embeddings(NOTELLM, emb_ND).unit_ND, carried), strict=True
    ):
        found = candidates([(tag.name, tag.score) for tag in prediction.hashtags], near)
        found.sort(key=lambda candidate: -scores.suggestion(candidate))
        suggested.append([usual.get(candidate.key, candidate.tag) for candidate in found])
    return suggested

"""Calibration: fitted on held-out notes, and measured on notes that its maps have not seen.

A suggestion is right when the note's author gave it that hashtag. Shapes: C suggestions of all notes together, F
features, N notes that are not held out, Q query notes, D embedding size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.backend import Prediction
from model.data.cooccurrence import HOLDOUT, SEED, split_notes
from model.data.notes import is_blank
from model.evaluation.hashtag_baselines import nearest_notes
from model.evaluation.hashtags import HASHTAGS, Predict, sample_notes
from model.evaluation.metrics import Bin, calibration_error, chance_calibration_error, reliability
from model.evaluation.plots import draw_reliability
from model.evaluation.retrieval import Embed
from model.evaluation.tables import markdown, percent
from model.files import write_bytes
from model.inference.calibration import Calibration, LogitMap, SuggestionMap, logit, strength
from model.network.checkpoint import Manifest, add_calibration
from model.note import Note
from model.text.hashtags import fold
from model.text.suggestions import Candidate, Uncalibrated, candidates

MARKDOWN, PLOT = "reliability.md", "reliability.svg"
LEAST_NOTES = 50
PARTS = 5


class NothingToCalibrate(ValueError):
    """Too few held-out notes have hashtags or a category, or no suggestion for them is right."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Suggestions for held-out notes with hashtags, and whether they were right; none where too few have any.

    ``note_C`` is the note of each candidate. ``category_Q`` are probabilities of the predicted categories, of the notes
    that have one, and ``named_Q`` whether they were right; both empty where too few have one.
    """

    candidates: list[Candidate]
    note_C: NDArray[np.int64]
    right_C: NDArray[np.bool_]
    category_Q: NDArray[np.float64]
    named_Q: NDArray[np.bool_]

    @property
    def notes(self) -> int:
        """How many notes have suggestions, or a category where none has."""
        return len(np.unique(self.note_C)) or len(self.category_Q)

    def part(self, kept_C: NDArray[np.bool_], kept_Q: NDArray[np.bool_]) -> "Evidence":
        """Only these suggestions and categories."""
        kept = [candidate for candidate, keep in zip(self.candidates, kept_C, strict=True) if keep]
        return Evidence(kept, self.note_C[kept_C], self.right_C[kept_C], self.category_Q[kept_Q], self.named_Q[kept_Q])


@dataclass(frozen=True, slots=True)
class Panel:
    """Reliability of scores of one kind: ``before`` are the model's own, ``after`` the calibrated ones.

    ``error`` is `calibration_error`, ``chance`` that of exact scores. Hashtags are the five that a note is shown;
    ``first`` is the share of notes whose first hashtag is right, before and after.
    """

    name: str
    before: list[Bin]
    after: list[Bin]
    error_before: float
    error_after: float
    chance: float
    first: tuple[float, float] | None = None


def gather(
    notes: Sequence[Note],
    predict: Predict,
    embed: Embed,
    *,
    holdout: float = HOLDOUT,
    seed: int = SEED,
    limit: int | None = None,
) -> Evidence:
    """Predict held-out notes as if they were drafts in a community of the others.

    Args:
        predict: sees title and content alone. embed: sees the notes that are not held out whole.
        holdout, seed: as when the model was trained.
        limit: notes to predict at most, see `sample_notes`.

    Raises:
        NothingToCalibrate: if fewer than `LEAST_NOTES` notes have hashtags, and fewer a category.
        ValueError: if all are held out.
    """
    held_out = split_notes((note.id for note in notes), holdout, seed)
    community = [note for note in notes if note.id not in held_out and not is_blank(note)]
    drafts = [note for note in notes if note.id in held_out and (note.title + note.content).strip()]
    tagged = sample_notes([note for note in drafts if any(map(fold, note.hashtags))], limit)
    sorted_in = sample_notes([note for note in drafts if note.category], limit)
    if max(len(tagged), len(sorted_in)) < LEAST_NOTES:
        raise NothingToCalibrate(
            f"{len(tagged)} held-out notes have text and hashtags, and {len(sorted_in)} a category; {LEAST_NOTES} of "
            "either are needed to calibrate: more notes, or a larger holdout in training and here"
        )
    if not community:
        raise ValueError("every note is held out: nothing is left for neighbors")
    tagged, sorted_in = (asked if len(asked) >= LEAST_NOTES else [] for asked in (tagged, sorted_in))
    asked = list({note.id: note for note in [*tagged, *sorted_in]}.values())
    predictions = predict([replace(note, hashtags=(), category=None) for note in asked])
    by_id = {note.id: prediction for note, prediction in zip(asked, predictions, strict=True)}
    suggestions, note_C, right_C = _suggested(tagged, by_id, community, embed)
    named = [
        (predicted.score, predicted.name == note.category)
        for note in sorted_in
        if (predicted := by_id[note.id].category)
    ]
    category_Q, named_Q = np.array(named, dtype=np.float64).reshape(-1, 2).T
    return Evidence(suggestions, note_C, right_C, category_Q, named_Q.astype(bool))


def _suggested(
    tagged: Sequence[Note], predicted: Mapping[str, Prediction], community: Sequence[Note], embed: Embed
) -> tuple[list[Candidate], NDArray[np.int64], NDArray[np.bool_]]:
    """What the model and neighbors in the community suggest for each note, of which, and whether it is right."""
    suggestions: list[Candidate] = []
    rows: list[tuple[int, bool]] = []
    if tagged:
        emb_ND = embed(community)
        unit_ND = emb_ND / np.linalg.norm(emb_ND, axis=1, keepdims=True)
        query_QD = np.stack([predicted[note.id].vector for note in tagged])
        near = nearest_notes(query_QD, unit_ND, [note.hashtags for note in community])
        for row, (note, neighbors) in enumerate(zip(tagged, near, strict=True)):
            truth = set(map(fold, note.hashtags))
            suggested = candidates([(tag.name, tag.score) for tag in predicted[note.id].hashtags], neighbors)
            suggestions += suggested
            rows += [(row, candidate.key in truth) for candidate in suggested]
    note_C, right_C = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    return suggestions, note_C, right_C.astype(bool)


def fit(evidence: Evidence) -> Calibration:
    """The maps that make the evidence likeliest; None without suggestions, or with few categories."""
    suggestions = by_model = by_category = None
    if evidence.candidates:
        generated_C = np.array([candidate.probability is not None for candidate in evidence.candidates], dtype=bool)
        said = [candidate.probability for candidate in evidence.candidates if candidate.probability is not None]
        suggestions = fit_suggestions(evidence.candidates, evidence.right_C)
        by_model = fit_logit(said, evidence.right_C[generated_C])
    if len(evidence.category_Q) >= LEAST_NOTES:
        by_category = fit_logit(evidence.category_Q.tolist(), evidence.named_Q)
    return Calibration(suggestions, by_model, by_category, {})


def fit_suggestions(suggested: Sequence[Candidate], right_C: NDArray[np.bool_]) -> SuggestionMap:
    """The map of hashtags."""
    features_CF = np.array([_features(candidate) for candidate in suggested]).reshape(-1, 4)
    bias, (generated, slope, vote, vote_beside) = _logistic(features_CF, right_C, rising=(1, 2, 3))
    return SuggestionMap(bias, generated, slope, vote, vote_beside)


def fit_logit(probabilities: Sequence[float], right_C: NDArray[np.bool_]) -> LogitMap:
    """The map of one probability."""
    features_CF = np.array([logit(probability) for probability in probabilities]).reshape(-1, 1)
    bias, (slope,) = _logistic(features_CF, right_C, rising=(0,))
    return LogitMap(bias, slope)


def measure(evidence: Evidence, seed: int = 0) -> list[Panel]:
    """How reliable scores are before and after, by cross-fitting: on notes that the maps were not fitted on.

    The notes are dealt into `PARTS` parts, and each part is scored by maps that were fitted on the others. The saved
    maps are fitted on all parts, which is nearly the same.
    """
    part_C = _dealt(int(evidence.note_C.max(initial=-1)) + 1, seed)[evidence.note_C]
    part_Q = _dealt(len(evidence.category_Q), seed)
    after_C, after_Q = np.zeros(len(part_C)), np.zeros(len(part_Q))
    for part in range(PARTS):
        maps = fit(evidence.part(part_C != part, part_Q != part))
        for place in np.flatnonzero(part_C == part):
            after_C[place] = maps.suggestion(evidence.candidates[place])
        for place in np.flatnonzero(part_Q == part):
            after_Q[place] = maps.category(float(evidence.category_Q[place]))
    panels = []
    if evidence.candidates:
        plain = Uncalibrated()
        before_C = np.array([plain.suggestion(candidate) for candidate in evidence.candidates])
        (old, old_first), (new, new_first) = (_shown(score_C, evidence.note_C) for score_C in (before_C, after_C))
        right_C = evidence.right_C
        hashtags = _panel("hashtags", (before_C[old], right_C[old]), (after_C[new], right_C[new]))
        panels.append(replace(hashtags, first=(float(right_C[old_first].mean()), float(right_C[new_first].mean()))))
    if len(part_Q) >= LEAST_NOTES:
        panels.append(_panel("category", (evidence.category_Q, evidence.named_Q), (after_Q, evidence.named_Q)))
    return panels


def calibrate(
    checkpoint: Path,
    out: Path,
    notes: Sequence[Note],
    predict: Predict,
    embed: Embed,
    *,
    holdout: float = HOLDOUT,
    seed: int = SEED,
    limit: int | None = None,
    otherwise: Calibration | None = None,
) -> tuple[Manifest, list[Panel]]:
    """Fit a checkpoint's calibration, put it into its manifest, and write how reliable it is to ``out``.

    See `gather`. ``otherwise`` has maps for hashtags or categories of which the notes tell nothing; their panel is
    missing.

    Raises:
        NothingToCalibrate, ValueError: as `gather` does, and if no suggestion is right.
        CheckpointError: if there is no checkpoint.
    """
    evidence = gather(notes, predict, embed, holdout=holdout, seed=seed, limit=limit)
    if not evidence.right_C.any():
        wrong = len(evidence.candidates)
        evidence = evidence.part(np.zeros(wrong, dtype=bool), np.ones(len(evidence.category_Q), dtype=bool))
        if len(evidence.category_Q) < LEAST_NOTES:
            raise NothingToCalibrate(f"none of {wrong} suggestions is right: there is nothing to calibrate")
    calibration, panels = fit(evidence), measure(evidence)
    if otherwise is not None:
        calibration = calibration.completed(otherwise)
    errors = {panel.name: {"before": panel.error_before, "after": panel.error_after} for panel in panels}
    about = {
        "notes": evidence.notes,
        "suggestions": len(evidence.candidates),
        "holdout": holdout,
        "split_seed": seed,
        "calibration_error": errors,
    }
    manifest = add_calibration(checkpoint, replace(calibration, measured=about).encode())
    write_bytes(out / PLOT, draw_reliability({one.name: {"before": one.before, "after": one.after} for one in panels}))
    write_bytes(out / MARKDOWN, format_reliability(manifest, panels).encode())
    return manifest, panels


def format_calibration(checkpoint: Path, manifest: Manifest) -> str:
    """One line for other reports: the calibration error, and a link to the report; empty without a calibration."""
    if manifest.calibration is None:
        return ""
    about = manifest.calibration["measured"]
    errors = [
        f"{name} {percent(error['after'])} ({percent(error['before'])} before)"
        for name, error in about["calibration_error"].items()
    ]
    more = f"; see [{MARKDOWN}]({checkpoint / MARKDOWN})" if (checkpoint / MARKDOWN).is_file() else ""
    return (
        f"Scores are calibrated on {about['notes']:,} held-out notes, expected calibration error in points: "
        f"{', '.join(errors)}{more}."
    )


def format_reliability(manifest: Manifest, panels: Sequence[Panel]) -> str:
    """The report as Markdown; the plot is in the same folder."""
    about: Any = (manifest.calibration or {})["measured"]
    parts = [
        "# Reliability",
        f"Model {manifest.fingerprint}, {about['notes']:,} held-out notes ({about['holdout']:.0%} of all, split seed "
        f"{about['split_seed']}), asked about as drafts with title and content alone. A hashtag is right if the note "
        "carries it, in any spelling; a category if it is the note's. Of the hashtags these are the five that a draft "
        f"is shown. Each note is scored by maps fitted on the others, {PARTS} parts in turn.",
        "Expected calibration error: how far scores are from the share that is right, over tenths, in points. By "
        "chance: what as many exact scores would show.",
        markdown(
            ["", "scores", "before", "after", "by chance"],
            [
                [panel.name, f"{sum(one.count for one in panel.after):,}", *map(percent, _errors(panel))]
                for panel in panels
            ],
        ),
        f"![Right against score]({PLOT})",
    ]
    for panel in panels:
        if panel.first is not None:
            before, after = map(percent, panel.first)
            parts.append(f"The first hashtag is right for {before}% of the notes before and {after}% after.")
        body = [[percent(one.score), percent(one.right), f"{one.count:,}"] for one in panel.after]
        parts += [f"## {panel.name.capitalize()}", markdown(["score (mean of a tenth)", "right", "scores"], body)]
    return "\n\n".join(parts) + "\n"


def _features(candidate: Candidate) -> tuple[float, float, float, float]:
    """Whether the model wrote it, the logit of its probability, and the votes without the model and with it."""
    vote = strength(candidate.vote)
    if candidate.probability is None:
        return 0.0, 0.0, vote, 0.0
    return 1.0, logit(candidate.probability), 0.0, vote


def _logistic(
    features_CF: NDArray[np.float64], right_C: NDArray[np.bool_], rising: Sequence[int]
) -> tuple[float, list[float]]:
    """Bias and weights of a logistic regression; a weight of ``rising`` features that would be negative is 0.

    Where none or all are right the map is flat, next to 0 or 1.
    """
    from sklearn.linear_model import LogisticRegression

    if right_C.all() or not right_C.any():  # of none at all, too
        return logit((right_C.sum() + 0.5) / (len(right_C) + 1)), [0.0] * features_CF.shape[1]
    kept = list(range(features_CF.shape[1]))
    while True:
        fitted = LogisticRegression(max_iter=1000).fit(features_CF[:, kept], right_C) if kept else None
        weights = dict(zip(kept, fitted.coef_[0].tolist() if fitted else [], strict=True))
        falling = [place for place in kept if place in rising and weights[place] < 0]
        if not falling:
            break
        kept = [place for place in kept if place not in falling]
    bias = float(fitted.intercept_[0]) if fitted else float(np.log(right_C.mean() / (1 - right_C.mean())))
    return bias, [weights.get(place, 0.0) for place in range(features_CF.shape[1])]


def _dealt(count: int, seed: int) -> NDArray[np.int64]:
    """The part of each of ``count`` notes, drawn; parts differ by one note at most."""
    part_Q: NDArray[np.int64] = np.random.default_rng(seed).permutation(count) % PARTS
    return part_Q


def _shown(score_C: NDArray[np.float64], note_C: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Places of the first five of each note by score, and of the first alone; ties as they come."""
    shown: list[int] = []
    first: list[int] = []
    for note in np.unique(note_C):
        own = np.flatnonzero(note_C == note)
        best = own[np.argsort(-score_C[own], kind="stable")][:HASHTAGS].tolist()
        shown += best
        first += best[:1]
    return shown, first


Judged = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Scores, and which of them were right."""


def _panel(name: str, before: Judged, after: Judged) -> Panel:
    return Panel(
        name,
        reliability(*before),
        reliability(*after),
        calibration_error(*before),
        calibration_error(*after),
        chance_calibration_error(after[0]),
    )


def _errors(panel: Panel) -> tuple[float, float, float]:
    return panel.error_before, panel.error_after, panel.chance

"""The evaluation of section 5 on held-out notes: related notes, categories, hashtags, popularity debias."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from model.data.files import DataError
from model.data.pairs import Pairs
from model.evaluation.baselines import BM25, Embeddings, Popularity, Ranker, SameCategory, TfIdf, clicks_of
from model.evaluation.debias import DEPTH, STEPS, evaluate_debias, fit_popularity_weight, validation_notes
from model.evaluation.hashtags import Predict, Write, evaluate_categories, evaluate_tags, sample_notes
from model.evaluation.held_out import HeldOut
from model.evaluation.report import ALL_PAIRS, DebiasReport, GoldResult, Report, supported_pairs
from model.evaluation.retrieval import (
    KS,
    NOTELLM,
    Embed,
    evaluate_rankers,
    exposure_of,
    fitting,
    leads,
    pairs_by_clicks,
    ranker_rows,
)
from model.text.suggestions import Scores


def evaluate(
    held_out: HeldOut,
    embed: Embed | None = None,
    predict: Predict | None = None,
    write: Write | None = None,
    *,
    encoders: Mapping[str, Embed] | None = None,
    categories: Sequence[str] | None = None,
    ks: Sequence[int] = KS,
    limit: int | None = None,
    scores: Scores | None = None,
) -> Report:
    """Compare popularity, words, sentence encoders and NoteLLM (if given) on held-out notes.

    Notes of which nothing says what is related are judged by their categories and hashtags alone.

    Args:
        embed: NoteLLM's embeddings, of training notes too, for the debias and for hashtags.
        predict: NoteLLM's predictions of notes, whose category or hashtags it does not see.
        write: NoteLLM's unconstrained categories; needs ``predict``.
        encoders: other models' embeddings, by the names of their rows.
        categories: the model's closed set; by default every category of the predicted notes.
        ks: the k of Recall@k; those that the pool is too small for are left out.
        limit: notes to predict at most for categories, and for hashtags; see `sample_notes`.
        scores: order NoteLLM's hashtags merged with the neighbors'.

    Raises:
        ValueError: if the pool is too small for every k.
        DataError: if there is nothing to measure.
    """
    if held_out.gold is None and predict is None:
        raise DataError("nothing says which notes are related, and no model predicts their categories and hashtags")
    report = Report(pool=len(held_out.pool), blank=held_out.blank, origin=held_out.origin)
    if held_out.gold is not None:
        report = _with_related(report, held_out, held_out.gold, embed, encoders or {}, ks)
    if predict is not None:
        report = _with_categories(report, held_out, predict, write, categories, limit)
        hashtags = evaluate_tags(held_out.training, held_out.pool, predict, embed, limit=limit, scores=scores)
        report = replace(report, hashtags=hashtags)
    return report


def _with_related(
    report: Report,
    held_out: HeldOut,
    gold: Pairs,
    embed: Embed | None,
    encoders: Mapping[str, Embed],
    ks: Sequence[int],
) -> Report:
    """The report with the rankings of the pool."""
    pool, kept = held_out.pool, fitting(ks, len(held_out.pool))
    left_out = [f"Recall@{k:,} is left out: the pool has {len(pool):,} notes." for k in ks if k not in kept]
    rankers, debias = _rankers(held_out, encoders), None
    if embed is not None:
        ours = Embeddings(NOTELLM, embed(pool))
        rankers.append(ours)
        debias = _debias(ours, embed, held_out, gold.supported_by(held_out.min_users), kept)
    return replace(
        report,
        gold=_by_gold(rankers, held_out, gold, kept),
        debias=debias,
        remarks=[*report.remarks, *left_out],
    )


def _with_categories(
    report: Report,
    held_out: HeldOut,
    predict: Predict,
    write: Write | None,
    categories: Sequence[str] | None,
    limit: int | None,
) -> Report:
    """The report with the predicted categories, unless the model knows none of the notes'."""
    notes = sample_notes([note for note in held_out.pool if note.category], limit)
    truth = [note.category or "" for note in notes]
    closed = sorted(set(truth)) if categories is None else categories
    unknown = {*truth} - {*closed}
    if unknown:
        remark = (
            f"{len(unknown)} of {len({*truth})} categories are not in the model's closed set, {min(unknown)!r} for one."
        )
        report = replace(report, remarks=[*report.remarks, remark])
    if not {*truth} & {*closed}:
        return report
    drafts = [replace(note, category=None) for note in notes]
    predicted = [prediction.category.name if prediction.category else None for prediction in predict(drafts)]
    written = None if write is None else write(drafts)
    return replace(report, categories=evaluate_categories(predicted, truth, closed, written))


def _rankers(held_out: HeldOut, encoders: Mapping[str, Embed]) -> list[Ranker]:
    """The opponents; those by popularity need events."""
    pool, rankers = held_out.pool, list[Ranker]()
    if held_out.events is not None:
        popularity = Popularity(pool, held_out.events)
        rankers.append(popularity)
        if any(note.category for note in pool):
            rankers.append(SameCategory(pool, popularity))
    return [*rankers, TfIdf(pool), BM25(pool), *(Embeddings(name, encode(pool)) for name, encode in encoders.items())]


def _by_gold(rankers: Sequence[Ranker], held_out: HeldOut, gold: Pairs, ks: Sequence[int]) -> list[GoldResult]:
    """The rows on the supported pairs and on all; a truth's rank is the same in both."""
    pool, min_users = held_out.pool, held_out.min_users
    clicks_N = None if held_out.events is None else clicks_of(pool, held_out.events)
    rows = evaluate_rankers(rankers, pool, gold, ks, clicks_N)
    sets = {ALL_PAIRS: (gold, rows)}
    kept = gold.users >= min_users
    if not kept.all():
        supported = gold.supported_by(min_users)
        few = ranker_rows({row.name: row.ranks[kept] for row in rows}, pool, supported, ks, clicks_N)
        sets = {supported_pairs(min_users): (supported, few), **sets}
    return [
        GoldResult(
            name,
            len(pairs),
            len(set(pairs.note_ids)),
            rows,
            leads(rows, pairs),
            {} if clicks_N is None else pairs_by_clicks(pool, pairs, clicks_N),
        )
        for name, (pairs, rows) in sets.items()
    ]


def _debias(ours: Embeddings, embed: Embed, held_out: HeldOut, gold: Pairs, ks: Sequence[int]) -> DebiasReport | None:
    """None where exposure says nothing, or too few notes are left to fit on."""
    validation = validation_notes(held_out.training, held_out.seed)
    exposure = exposure_of(validation)
    if len(validation) < 2 * DEPTH or exposure.min() == exposure.max():
        return None
    weight = fit_popularity_weight(embed(validation), exposure)
    steps = STEPS if weight else STEPS[:1]
    return DebiasReport(weight, len(validation), evaluate_debias(ours, weight, held_out.pool, gold, steps, ks))

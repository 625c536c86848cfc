"""The evaluation of section 5 on a folder's held-out notes: related notes, categories, hashtags, popularity debias."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model.data.cooccurrence import HOLDOUT, SEED, PairRules, related_pairs, split_notes
from model.data.events import EventTable, load_events
from model.data.notes import is_blank, load_notes
from model.data.pairs import Pairs
from model.data.rows import DataError
from model.evaluation.baselines import BM25, MINILM, Embeddings, Popularity, Ranker, SameCategory, TfIdf, minilm_vectors
from model.evaluation.debias import DEPTH, STEPS, evaluate_debias, fit_popularity_weight, validation_notes
from model.evaluation.hashtags import CategoryRow, Predict, Write, evaluate_categories, evaluate_tags, sample_notes
from model.evaluation.report import ALL_PAIRS, MIN_USERS, DebiasReport, GoldResult, Report, supported_pairs
from model.evaluation.retrieval import (
    KS,
    NOTELLM,
    Embed,
    RankerRow,
    evaluate_rankers,
    exposure_of,
    leads,
    ranker_rows,
)
from model.network.minilm import has_minilm
from model.note import Note
from model.text.suggestions import Scores


def evaluate(
    data: Path,
    embed: Embed | None = None,
    predict: Predict | None = None,
    write: Write | None = None,
    *,
    categories: Sequence[str] | None = None,
    holdout: float = HOLDOUT,
    seed: int = SEED,
    min_users: int = MIN_USERS,
    ks: Sequence[int] = KS,
    limit: int | None = None,
    scores: Scores | None = None,
) -> Report:
    """Compare popularity, words, MiniLM (if installed) and NoteLLM (if given) on held-out notes.

    Pairs are ordered where every event has a time. Pool and pairs are without blank notes.

    Args:
        data: folder with notes and events, see `load_notes` and `load_events`.
        embed: NoteLLM's embeddings, of training notes too, for the debias and for hashtags.
        predict: NoteLLM's predictions of notes, whose category or hashtags it does not see.
        write: NoteLLM's unconstrained categories; needs ``predict``.
        categories: the closed set for Ill.; by default every category of the predicted notes.
        holdout, seed: as when the training pairs were made, or NoteLLM is tested on its training notes.
        min_users: users behind the pairs of the first set of gold pairs; the second is all pairs.
        ks: the k of Recall@k.
        limit: notes to predict at most for categories, and for hashtags; see `sample_notes`.
        scores: order NoteLLM's hashtags merged with the neighbors'.

    Raises:
        DataError: if a file is not what it should be, or leaves no gold pair.
    """
    notes, events = load_notes(data), load_events(data)
    held_out = split_notes((note.id for note in notes), holdout, seed)
    pool = [note for note in notes if note.id in held_out and not is_blank(note)]
    gold = related_pairs(events, PairRules(ordered=not events.untimed), within=frozenset(note.id for note in pool))
    supported = gold.supported_by(min_users)
    if not supported:
        raise DataError(
            f"{data}: no pair of the {len(pool)} held-out notes has {min_users} users behind it; "
            "more events, a larger holdout or fewer users a pair are needed"
        )
    rankers = _baselines(pool, events)
    if embed is not None:
        rankers.append(Embeddings(NOTELLM, embed(pool)))
    training = [note for note in notes if note.id not in held_out and not is_blank(note)]
    return Report(
        pool=len(pool),
        blank=len(held_out) - len(pool),
        skipped_users=gold.skipped_users,
        ordered=not events.untimed,
        holdout=holdout,
        seed=seed,
        gold=_by_gold(evaluate_rankers(rankers, pool, gold, ks), pool, gold, min_users),
        categories=_categories(
            sample_notes([note for note in pool if note.category], limit), predict, write, categories
        ),
        hashtags=None
        if predict is None
        else evaluate_tags(notes, predict, embed, holdout=holdout, seed=seed, limit=limit, scores=scores),
        debias=None
        if embed is None
        else _debias(rankers[-1], embed, validation_notes(training, seed), pool, supported, ks),
    )


def _baselines(pool: Sequence[Note], events: EventTable) -> list[Ranker]:
    popularity = Popularity(pool, events)
    rankers: list[Ranker] = [popularity]
    if any(note.category for note in pool):
        rankers.append(SameCategory(pool, popularity))
    rankers += [TfIdf(pool), BM25(pool)]
    if has_minilm():
        rankers.append(Embeddings(MINILM, minilm_vectors(pool)))
    return rankers


def _by_gold(rows: list[RankerRow], pool: Sequence[Note], gold: Pairs, min_users: int) -> list[GoldResult]:
    """The rows on the supported pairs and on all; a truth's rank is the same in both."""
    sets = {ALL_PAIRS: (gold, rows)}
    kept = gold.users >= min_users
    if not kept.all():
        supported = gold.supported_by(min_users)
        few = ranker_rows({row.name: row.ranks[kept] for row in rows}, pool, supported, list(rows[0].recall))
        sets = {supported_pairs(min_users): (supported, few), **sets}
    return [
        GoldResult(name, len(pairs), len(set(pairs.note_ids)), rankers, leads(rankers, pairs))
        for name, (pairs, rankers) in sets.items()
    ]


def _categories(
    notes: Sequence[Note], predict: Predict | None, write: Write | None, categories: Sequence[str] | None
) -> CategoryRow | None:
    if predict is None or not notes:
        return None
    truth = [note.category or "" for note in notes]
    drafts = [replace(note, category=None) for note in notes]
    predicted = [prediction.category.name if prediction.category else None for prediction in predict(drafts)]
    return evaluate_categories(
        predicted,
        truth,
        sorted(set(truth)) if categories is None else categories,
        None if write is None else write(drafts),
    )


def _debias(
    ranker: Ranker,
    embed: Embed,
    validation: Sequence[Note],
    pool: Sequence[Note],
    gold: Pairs,
    ks: Sequence[int],
) -> DebiasReport | None:
    """None where exposure says nothing, or too few notes are left to fit on."""
    exposure = exposure_of(validation)
    if len(validation) < 2 * DEPTH or exposure.min() == exposure.max():
        return None
    weight = fit_popularity_weight(embed(validation), exposure)
    steps = STEPS if weight else STEPS[:1]
    return DebiasReport(weight, len(validation), evaluate_debias(ranker, weight, pool, gold, steps, ks))

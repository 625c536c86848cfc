"""One run of a reproduction: train if need be, rank the pool, read some notes; each stage is kept before the next."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.data.events import EventTable
from model.data.pairs import Pairs
from model.evaluation.baselines import BM25, Embeddings, Popularity, Ranker, SameCategory, TfIdf, minilm_vectors
from model.evaluation.debias import STEPS, Debiased, fit_popularity_weight
from model.evaluation.hashtag_baselines import MostFrequentTags, NeighborTags
from model.evaluation.hashtags import Predict, Write, evaluate_categories, evaluate_hashtags
from model.evaluation.retrieval import Embed, truth_ranks
from model.files import write_json
from model.network.checkpoint import load_manifest
from model.note import Note
from model.recipes import Recipe
from model.reproduction.grid import Run, Untrained, must_read
from model.reproduction.results import ANSWERS, RANKS, RESULT, Result, load_result, ranks_name, write_arrays
from model.text.hashtags import clean_tags

Train = Callable[[Recipe, Sequence[Note], Sequence[tuple[str, str]], Path], object]
"""Writes a checkpoint to a folder, going on from what an interrupted call left there."""
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Split:
    """The data, split by note: what training may see, and what every run is asked.

    ``gold``: every pair of pool notes, whatever the number of its users. ``categorised`` and ``tagged``: the pool's
    notes that are asked for their category and for their hashtags, the same ones for every run. ``categories``: the
    closed set. ``validation``: training notes to fit the debias on, none where exposure says nothing.
    """

    events: EventTable
    training_notes: list[Note]
    training: Pairs
    pool: list[Note]
    gold: Pairs
    categorised: list[Note]
    tagged: list[Note]
    categories: tuple[str, ...]
    validation: list[Note]

    def places(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Positions in the pool, shape (len(names),)."""
        place = {note.id: row for row, note in enumerate(self.pool)}
        return np.array([place[name] for name in names], dtype=np.int64)


def has_tags(note: Note) -> bool:
    """Whether it has hashtags to ask for and text to find them in."""
    return bool(clean_tags(list(note.hashtags)) and (note.title + note.content).strip())


def train_here(recipe: Recipe, notes: Sequence[Note], pairs: Sequence[tuple[str, str]], out: Path) -> None:
    """`model.training.train.train`."""
    from model.training.train import train

    train(recipe, notes, pairs, out)


def embedder(recipe: Recipe, checkpoint: Path) -> Embed:
    """What embeds notes with a trained checkpoint, whatever its architecture: (N notes) -> (N, D)."""
    if recipe.architecture == "encoder":
        from model.inference.sentence_encoder import SentenceEncoder

        return _in_bfloat16(SentenceEncoder.open(checkpoint).embed)
    from model.inference.many import embed_all
    from model.inference.open import open_backend

    backend = open_backend("hf", checkpoint)
    return _in_bfloat16(partial(embed_all, backend))


def writer(checkpoint: Path) -> tuple[Predict, Write]:
    """What reads notes with a trained decoder, and what writes their categories unconstrained."""
    from model.inference.hf import HfBackend
    from model.inference.many import predict_all

    backend = HfBackend.open(checkpoint)
    return (
        _in_bfloat16(partial(predict_all, backend)),
        _in_bfloat16(lambda notes: backend.write_categories(backend.tokenize(notes))),
    )


def zero_shot(recipe: Recipe) -> Embed:
    """What embeds notes with the recipe's base model as it comes."""
    from model.evaluation.zero_shot import last_token

    return _in_bfloat16(partial(last_token, recipe))


def _in_bfloat16(work: Callable[[Sequence[Note]], Answer]) -> Callable[[Sequence[Note]], Answer]:
    """The work with its matrix products in bfloat16, as training computes them."""

    def run(notes: Sequence[Note]) -> Answer:
        import torch

        with torch.autocast("cpu", torch.bfloat16):
            return work(notes)

    return run


@dataclass(frozen=True, slots=True)
class Runners:
    """What does the work of a run."""

    train: Train = train_here
    embedder: Callable[[Recipe, Path], Embed] = embedder
    writer: Callable[[Path], tuple[Predict, Write]] = writer
    zero_shot: Callable[[Recipe], Embed] = zero_shot


class Trial:
    """Does runs on one material."""

    def __init__(self, material: Split, tag_notes: int, tools: Runners) -> None:
        self._material = material
        self._tag_notes = tag_notes
        self._tools = tools

    def do(self, run: Run, measures: bool) -> None:
        """Train, rank and read what of it is not done; each step is on disk before the next begins."""
        result = load_result(run.folder)
        if result is not None and not must_read(run, result, self._tag_notes):
            return
        trained_on = self._train(run) if isinstance(run.method, Recipe) else None
        if not measures:
            return
        if result is None:
            ranks, weight = self._ranked(run)
            write_arrays(run.folder / RANKS, **ranks)
            result = Result(asdict(run.method), trained_on, weight)
            write_json(run.folder / RESULT, asdict(result))
        if must_read(run, result, self._tag_notes):
            write_json(run.folder / RESULT, asdict(replace(result, generation=self._read(run))))

    def _train(self, run: Run) -> Mapping[str, Any]:
        assert isinstance(run.method, Recipe)
        trained_on = run.trained_on()
        if trained_on is None:
            notes, pairs = self._material.training_notes, self._material.training.ends()
            self._tools.train(run.method, notes, pairs, run.checkpoint)
            trained_on = load_manifest(run.checkpoint).trained_on
        return trained_on

    def _ranked(self, run: Run) -> tuple[dict[str, NDArray[np.int64]], float | None]:
        """Ranks by their name in the file, and the weight of the debias if there is any."""
        material = self._material
        if not isinstance(run.method, Recipe):
            return {ranks_name(0.0): self._ranks(self._untrained(run.method))}, None
        embed = self._tools.embedder(run.method, run.checkpoint)
        ranker = self._embeddings(run.method.name, embed)
        ranks = {ranks_name(0.0): self._ranks(ranker)}
        if not (run.debiases and material.validation):
            return ranks, None
        weight = fit_popularity_weight(
            embed(material.validation), np.array([note.exposure for note in material.validation])
        )
        exposure_N = np.array([note.exposure for note in material.pool])
        for step in filter(None, STEPS):
            ranks[ranks_name(step)] = self._ranks(Debiased(ranker, exposure_N, step * weight))
        return ranks, weight

    def _ranks(self, ranker: Ranker) -> NDArray[np.int64]:
        material = self._material
        targets, truths = material.places(material.gold.note_ids), material.places(material.gold.related_ids)
        return truth_ranks(ranker, targets, truths, len(material.pool))

    def _untrained(self, method: Untrained) -> Ranker:
        pool, events = self._material.pool, self._material.events
        match method.kind:
            case "popularity":
                return Popularity(pool, events)
            case "same-category":
                return SameCategory(pool, Popularity(pool, events))
            case "tf-idf":
                return TfIdf(pool)
            case "bm25":
                return BM25(pool)
            case "minilm":
                return self._embeddings(method.name, _in_bfloat16(minilm_vectors))
            case "last-token":
                assert method.recipe is not None
                return self._embeddings(method.name, self._tools.zero_shot(method.recipe))

    def _embeddings(self, name: str, embed: Embed) -> Ranker:
        return Embeddings(name, embed(self._material.pool))

    def _read(self, run: Run) -> Mapping[str, Any]:
        """Save how right each answer is, and return the figures over all of them."""
        of_each, at_once = self._judged(run)
        write_arrays(run.folder / ANSWERS, **of_each)
        means = {name: float(values.mean()) for name, values in of_each.items()}
        return {"wanted": self._tag_notes, "means": means, "at_once": at_once}

    def _judged(self, run: Run) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
        """Figures of every note, and those of all notes at once."""
        categorised, tagged = self._material.categorised, self._material.tagged
        answers = self._answers(
            run,
            [replace(note, category=None) for note in categorised],
            [replace(note, hashtags=(), category=None) for note in tagged],
        )
        of_each: dict[str, NDArray[np.float64]] = {}
        at_once: dict[str, float] = {}
        if categorised and answers.categories is not None:
            truth = [note.category or "" for note in categorised]
            of_each |= judge_categories(answers.categories, answers.written, truth, self._material.categories)
        if tagged:
            of_tags, at_once = judge_hashtags(answers.tags, [note.hashtags for note in tagged])
            of_each |= of_tags
        return of_each, at_once

    def _answers(self, run: Run, categorised: Sequence[Note], tagged: Sequence[Note]) -> "_Answers":
        if isinstance(run.method, Recipe):
            predict, write = self._tools.writer(run.checkpoint)
            return _Answers(
                [prediction.category.name if prediction.category else None for prediction in predict(categorised)],
                write(categorised),
                [[scored.name for scored in prediction.hashtags] for prediction in predict(tagged)],
            )
        training = self._material.training_notes
        carriers = [note for note in training if has_tags(note)]
        if run.method.kind == "popularity":
            most = _most_frequent([note.category for note in training if note.category])
            return _Answers([most] * len(categorised), None, MostFrequentTags(carriers).tags(tagged))
        return _Answers(None, None, NeighborTags(carriers).tags(tagged) if carriers else [[] for _ in tagged])


@dataclass(frozen=True, slots=True)
class _Answers:
    """Categories, held to the closed set and written freely, and hashtags; None for who does not name categories."""

    categories: Sequence[str | None] | None
    written: Sequence[str] | None
    tags: Sequence[Sequence[str]]


def judge_categories(
    said: Sequence[str | None], written: Sequence[str] | None, truth: Sequence[str], categories: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Acc. and Ill. of each category that was said, and of each that was written freely, each of shape (notes,)."""
    rows = [
        evaluate_categories([name], [true], categories, None if written is None else [written[place]])
        for place, (name, true) in enumerate(zip(said, truth, strict=True))
    ]
    names = ["accuracy", "illegal", *(["unconstrained_accuracy", "unconstrained_illegal"] if written else [])]
    return {name: np.array([getattr(row, name) for row in rows]) for name in names}


def judge_hashtags(
    said: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """ROUGE and F1 of each note's hashtags, each of shape (notes,), and the figures of all notes' at once."""
    rows = [evaluate_hashtags([tags], [true]) for tags, true in zip(said, truth, strict=True)]
    together = evaluate_hashtags(said, truth)
    of_each = {name: np.array([getattr(row, name) for row in rows]) for name in ("rouge1", "rouge2", "rouge_l", "f1")}
    return of_each, {"bleu4": together.bleu4, "bleu4_public_code": together.bleu4_public_code}


def _most_frequent(names: Sequence[str]) -> str | None:
    count = Counter(names)
    return min(count, key=lambda name: (-count[name], name), default=None)

"""A run of one cell: train if need be, rank the pool, predict some notes; each stage is saved before the next."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.evaluation.baselines import BM25, Embeddings, Popularity, Ranker, SameCategory, TfIdf, minilm_vectors
from model.evaluation.debias import STEPS, Debiased, fit_popularity_weight
from model.evaluation.hashtag_baselines import MostFrequentTags, NeighborTags
from model.evaluation.hashtags import JudgedHashtags, Predict, Write, has_hashtags, judge_categories
from model.evaluation.retrieval import Embed, exposure_of, places_of, truth_ranks
from model.files import write_json
from model.network.checkpoint import load_manifest
from model.note import Note
from model.recipes import Recipe
from model.reproduction.grid import OURS_NAME, Cell, Untrained
from model.reproduction.results import ANSWERS, RANKS, RESULT, Result, load_result, ranks_name, write_arrays
from model.reproduction.split import Data, Split

Output = TypeVar("Output")


class Runners:
    """The parts of this package that do a run's work."""

    def train(self, recipe: Recipe, notes: Sequence[Note], pairs: Sequence[tuple[str, str]], out: Path) -> None:
        """Write a checkpoint to ``out``; resumes an interrupted call there."""
        from model.training.train import train

        train(recipe, notes, pairs, out)

    def embedder(self, recipe: Recipe, checkpoint: Path) -> Embed:
        """Embeds notes with a trained checkpoint of any architecture."""
        if recipe.architecture == "encoder":
            from model.inference.sentence_encoder import SentenceEncoder

            return SentenceEncoder.open(checkpoint).embed
        from model.inference.many import embed_all
        from model.inference.open import open_backend

        return partial(embed_all, open_backend("hf", checkpoint))

    def predictor(self, checkpoint: Path) -> tuple[Predict, Write]:
        """Predicts notes with a trained decoder, and writes their categories unconstrained."""
        from model.inference.hf import HfBackend
        from model.inference.many import predict_all

        backend = HfBackend.open(checkpoint)
        return partial(predict_all, backend), lambda notes: backend.write_categories(backend.tokenize(notes))

    def zero_shot(self, recipe: Recipe) -> Embed:
        """Embeds notes with the recipe's base model as it comes."""
        from model.evaluation.zero_shot import last_token

        return partial(last_token, recipe)


class Run:
    """Runs a cell on a split of the data."""

    def __init__(self, cell: Cell, data: Data, split: Split, tag_notes: int, runners: Runners) -> None:
        self._cell = cell
        self._data = data
        self._split = split
        self._tag_notes = tag_notes
        self._runners = runners

    def do(self, measures: bool) -> None:
        """Every stage that is not done yet; training alone unless ``measures``."""
        cell, result = self._cell, load_result(self._cell.folder)
        if result is not None and not cell.must_predict(result, self._tag_notes):
            return
        trained_on = self._train(cell.method) if isinstance(cell.method, Recipe) else None
        if not measures:
            return
        if result is None:
            ranks, weight = self._rank()
            write_arrays(cell.folder / RANKS, **ranks)
            result = Result(asdict(cell.method), trained_on, weight)
            write_json(cell.folder / RESULT, asdict(result))
        if cell.must_predict(result, self._tag_notes):
            write_json(cell.folder / RESULT, asdict(replace(result, generation=self._generation())))

    def _train(self, recipe: Recipe) -> Mapping[str, Any]:
        trained_on = self._cell.trained_on()
        if trained_on is None:
            self._runners.train(recipe, self._split.training_notes, self._split.training.ends(), self._cell.checkpoint)
            trained_on = load_manifest(self._cell.checkpoint).trained_on
        return trained_on

    def _rank(self) -> tuple[dict[str, NDArray[np.int64]], float | None]:
        """Ranks by their name in the file, and the weight of the debias if there is any."""
        method, split = self._cell.method, self._split
        if isinstance(method, Untrained):
            return {ranks_name(0.0): self._ranks(self._opponent(method))}, None
        embed = self._runners.embedder(method, self._cell.checkpoint)
        ranker = Embeddings(method.name, _in_bfloat16(embed, split.pool))
        ranks = {ranks_name(0.0): self._ranks(ranker)}
        if method.name != OURS_NAME or not split.validation:
            return ranks, None
        weight = fit_popularity_weight(_in_bfloat16(embed, split.validation), exposure_of(split.validation))
        for step in filter(None, STEPS):
            ranks[ranks_name(step)] = self._ranks(Debiased(ranker, exposure_of(split.pool), step * weight))
        return ranks, weight

    def _ranks(self, ranker: Ranker) -> NDArray[np.int64]:
        return truth_ranks(ranker, *places_of(self._split.pool, self._split.gold), len(self._split.pool))

    def _opponent(self, method: Untrained) -> Ranker:
        pool, events = self._split.pool, self._data.events
        match method.name:
            case "popularity":
                return Popularity(pool, events)
            case "same-category":
                return SameCategory(pool, Popularity(pool, events))
            case "tf-idf":
                return TfIdf(pool)
            case "bm25":
                return BM25(pool)
        embed = minilm_vectors if method.recipe is None else self._runners.zero_shot(method.recipe)
        return Embeddings(method.name, _in_bfloat16(embed, pool))

    def _generation(self) -> Mapping[str, Any]:
        """Save how right each prediction is, and return the figures over all of them."""
        categorized, tagged = self._split.categorized, self._split.tagged
        named, written, hashtags = self._predicted(
            [replace(note, category=None) for note in categorized],
            [replace(note, hashtags=(), category=None) for note in tagged],
        )
        of_each: dict[str, NDArray[np.float64]] = {}
        at_once: dict[str, float] = {}
        truth = [note.category or "" for note in categorized]
        for prefix, names in (("", named), ("unconstrained_", written)):
            if names:
                judged = judge_categories(names, truth, self._data.categories)
                of_each |= {f"{prefix}{figure}": values for figure, values in judged.items()}
        if tagged:
            suggested = JudgedHashtags(self._cell.method.name, hashtags, [note.hashtags for note in tagged])
            of_each, at_once = of_each | suggested.of_each, suggested.at_once()
        write_arrays(self._cell.folder / ANSWERS, **of_each)
        means = {name: float(values.mean()) for name, values in of_each.items()}
        return {"wanted": self._tag_notes, "means": means, "at_once": at_once}

    def _predicted(
        self, categorized: Sequence[Note], tagged: Sequence[Note]
    ) -> tuple[Sequence[str | None], Sequence[str], Sequence[Sequence[str]]]:
        """Categories of the closed set and categories written freely, none if it predicts none, and hashtags."""
        if isinstance(self._cell.method, Recipe):
            predict, write = self._runners.predictor(self._cell.checkpoint)
            return (
                [one.category.name if one.category else None for one in _in_bfloat16(predict, categorized)],
                _in_bfloat16(write, categorized),
                [[scored.name for scored in one.hashtags] for one in _in_bfloat16(predict, tagged)],
            )
        training = self._split.training_notes
        carriers = [note for note in training if has_hashtags(note)]
        if self._cell.method.name == "popularity":
            count = Counter(note.category for note in training if note.category)
            most = min(count, key=lambda name: (-count[name], name), default=None)
            return [most] * len(categorized), [], MostFrequentTags(carriers).tags(tagged)
        return [], [], NeighborTags(carriers).tags(tagged) if carriers else [[] for _ in tagged]


def _in_bfloat16(work: Callable[[Sequence[Note]], Output], notes: Sequence[Note]) -> Output:
    """The work on notes with matrix products in bfloat16, as training computes them."""
    import torch

    with torch.autocast("cpu", torch.bfloat16):
        return work(notes)

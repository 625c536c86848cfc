"""A run of one cell: train if need be, rank the pools, predict some notes; each stage is saved before the next."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.backend import Backend
from model.evaluation.baselines import BM25, Embeddings, Popularity, Ranker, SameCategory, TfIdf, open_sentence_bert
from model.evaluation.debias import STEPS, Debiased, fit_popularity_weight
from model.evaluation.hashtag_baselines import MostFrequentTags, NeighborTags
from model.evaluation.hashtags import JudgedHashtags, Predict, Write, has_hashtags, judge_categories
from model.evaluation.retrieval import Embed, exposure_of, places_of, truth_ranks
from model.files import write_json
from model.inference.open import Runtime, default_device, open_backend
from model.note import Note
from model.recipes import Recipe
from model.reproduction.grid import OURS_NAME, Cell, Untrained
from model.reproduction.results import (
    ANSWERS,
    DEBIAS_WEIGHT,
    RESULT,
    Result,
    load_result,
    ranks_file,
    ranks_name,
    write_arrays,
)
from model.reproduction.split import Pool, Split

if TYPE_CHECKING:
    from model.training.distributed import Strategy

Output = TypeVar("Output")


class Runners:
    """The parts of this package that do a run's work.

    Args:
        backend: runs trained decoders, see `model.inference.open.BACKENDS`; the others run on transformers.
        runtime: how it runs them; its ``dtype`` is that of all networks. For auto, products are in bfloat16, as in
            training.
        strategy: how the processes of torchrun, if any, hold the weights while they train.

    Raises:
        ModuleNotFoundError: if the backend is not installed: now, and not after hours of training.
    """

    def __init__(self, backend: str = "hf", runtime: Runtime | None = None, strategy: "Strategy" = "ddp") -> None:
        if backend == "vllm" and find_spec("vllm") is None:
            raise ModuleNotFoundError("vllm is not installed", name="vllm")
        self._backend = backend
        self._runtime = runtime or Runtime()
        self._strategy = strategy
        self._opened: Backend | None = None

    def train(self, recipe: Recipe, notes: Sequence[Note], pairs: Sequence[tuple[str, str]], out: Path) -> None:
        """Write a checkpoint to ``out``; resumes an interrupted call there."""
        from model.training.train import train

        train(recipe, notes, pairs, out, strategy=self._strategy)

    def embedder(self, recipe: Recipe, checkpoint: Path) -> Embed:
        """Embeds notes with a trained checkpoint of any architecture.

        Without contrastive learning the head was never trained: there the state before [EMB] is the embedding.
        """
        if recipe.architecture == "encoder":
            from model.inference.sentence_encoder import SentenceEncoder

            return self._products(SentenceEncoder.open(checkpoint, dtype=self._runtime.dtype).embed)
        if not recipe.contrastive:
            return self.zero_shot(replace(recipe, base_model=str(checkpoint)))
        from model.inference.many import embed_all

        return self._products(partial(embed_all, self._open(checkpoint)))

    def predictor(self, checkpoint: Path) -> tuple[Predict, Write]:
        """Predicts notes with a trained decoder, and writes their categories unconstrained."""
        from model.inference.many import predict_all, write_all

        backend = self._open(checkpoint)
        return self._products(partial(predict_all, backend)), self._products(partial(write_all, backend))

    def zero_shot(self, recipe: Recipe) -> Embed:
        """Embeds notes with the recipe's base model as it comes."""
        from model.evaluation.zero_shot import last_token

        return self._products(partial(last_token, recipe, dtype=self._runtime.dtype))

    def encoder(self, name: str) -> Embed:
        """Embeds notes with an encoder as it comes."""
        return self._products(open_sentence_bert(name, self._runtime.dtype))

    def _products(self, work: Callable[[Sequence[Note]], Output]) -> Callable[[Sequence[Note]], Output]:
        """The work on notes, with matrix products in bfloat16 unless another precision was asked for."""

        def with_products(notes: Sequence[Note]) -> Output:
            import torch

            with torch.autocast(default_device().type, torch.bfloat16, enabled=self._runtime.dtype == "auto"):
                return work(notes)

        return with_products

    def close(self) -> None:
        """Free the memory of the backend that was opened, if any: beside an engine a GPU has no room to train."""
        close, self._opened = getattr(self._opened, "close", None), None
        if close is not None:
            close()

    def _open(self, checkpoint: Path) -> Backend:
        """The backend of a checkpoint, the same one until `close`."""
        if self._opened is None:
            self._opened = open_backend(self._backend, checkpoint, self._runtime)
        return self._opened


class Run:
    """Trains and measures a cell.

    Args:
        pools: the pools that cells rank, by key; the first is of the split.
    """

    def __init__(self, cell: Cell, split: Split, pools: Mapping[str, Pool], tag_notes: int, runners: Runners) -> None:
        self.name = cell.folder.name
        self._cell = cell
        self._split = split
        self._pools = pools
        self._tag_notes = tag_notes
        self._runners = runners

    def train(self) -> None:
        """Train the cell's recipe, unless that is done or nothing is left to measure."""
        cell, split = self._cell, self._split
        if isinstance(cell.method, Recipe) and cell.trained_on() is None and cell.state(self._tag_notes) != "done":
            self._runners.train(cell.method, split.training_notes, split.training.ends(), cell.checkpoint)

    def measure(self) -> None:
        """Rank and predict what is not done yet; nothing before the cell is trained."""
        cell, trained_on = self._cell, self._cell.trained_on()
        if cell.state(self._tag_notes) == "done" or (isinstance(cell.method, Recipe) and trained_on is None):
            return
        for key in cell.unranked():
            write_arrays(cell.folder / ranks_file(key), **self._ranks(key))
        result = load_result(cell.folder)
        if result is None:
            result = Result(asdict(cell.method), trained_on)
            write_json(cell.folder / RESULT, asdict(result))
        if cell.must_predict(result, self._tag_notes):
            write_json(cell.folder / RESULT, asdict(replace(result, generation=self._generation())))
        self._runners.close()

    def _ranks(self, key: str) -> dict[str, NDArray[Any]]:
        """Ranks in a pool by their name in the file, and the weight of the debias if there is any."""
        method, pool, validation = self._cell.method, self._pools[key], self._split.validation
        if isinstance(method, Untrained):
            return {ranks_name(0.0): _ranks_of(self._opponent(method, pool), pool)}
        embed = self._runners.embedder(method, self._cell.checkpoint)
        ranker = Embeddings(method.name, embed(pool.notes))
        ranks: dict[str, NDArray[Any]] = {ranks_name(0.0): _ranks_of(ranker, pool)}
        if method.name != OURS_NAME or not validation or pool is not self._split.pool:
            return ranks
        weight = fit_popularity_weight(embed(validation), exposure_of(validation))
        for step in filter(None, STEPS):
            ranks[ranks_name(step)] = _ranks_of(Debiased(ranker, exposure_of(pool.notes), step * weight), pool)
        return ranks | {DEBIAS_WEIGHT: np.array([weight])}

    def _opponent(self, method: Untrained, pool: Pool) -> Ranker:
        notes = pool.notes
        match method.name:
            case "popularity":
                return Popularity(notes, pool.data.events)
            case "same-category":
                return SameCategory(notes, Popularity(notes, pool.data.events))
            case "tf-idf":
                return TfIdf(notes)
            case "bm25":
                return BM25(notes)
        embed = self._runners.zero_shot(method.recipe) if method.recipe else self._runners.encoder(method.encoder or "")
        return Embeddings(method.name, embed(notes))

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
                judged = judge_categories(names, truth, self._split.pool.data.categories)
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
                [one.category.name if one.category else None for one in predict(categorized)],
                write(categorized),
                [[scored.name for scored in one.hashtags] for one in predict(tagged)],
            )
        training = self._split.training_notes
        carriers = [note for note in training if has_hashtags(note)]
        if self._cell.method.name == "popularity":
            count = Counter(note.category for note in training if note.category)
            most = min(count, key=lambda name: (-count[name], name), default=None)
            return [most] * len(categorized), [], MostFrequentTags(carriers).tags(tagged)
        return [], [], NeighborTags(carriers).tags(tagged) if carriers else [[] for _ in tagged]


def _ranks_of(ranker: Ranker, pool: Pool) -> NDArray[np.int64]:
    return truth_ranks(ranker, *places_of(pool.notes, pool.gold), len(pool.notes))

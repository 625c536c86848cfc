"""One training run: from related pairs to a checkpoint."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.inference import golden
from model.network.base_models import open_base
from model.network.checkpoint import HEAD, Manifest, load_head, load_manifest, save, special_ids
from model.network.lora import add_adapters, fold_adapters
from model.network.notellm import NoteLLM, add_embedding_token
from model.network.sentence_bert import SentenceBert, encoder_builder, open_encoder
from model.network.sentence_bert import special_ids as encoder_ids
from model.note import Note
from model.recipes import Recipe
from model.text.prompt import TEMPLATES, PromptBuilder, SpecialIds
from model.training.distributed import Ranks, Strategy, gather_weights, spread
from model.training.examples import TrainingSet
from model.training.head_init import follow_teacher, whiten_head
from model.training.loop import SAVE_EVERY, fit
from model.training.state import RUN, Pairs, TrainingState, run_identity
from model.training.step import Losses, Step
from model.training.teacher import principal_components, teacher_folder, teacher_vectors

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
) -> tuple[Manifest, list[Losses]]:
    """Train from the recipe's base model on related pairs and write a checkpoint to ``out``.

    A killed run resumes from its last saved state in ``out``. The same recipe, notes and pairs give the same losses on
    the same kind of machine and number of threads, interrupted or not.

    Args:
        pairs: none are needed for a recipe that is not contrastive.
        categories: the closed set; by default every category of the notes.
        strategy: how the processes of `torchrun`, if any, hold the weights.
        save_every: steps between saved states.

    Raises:
        TrainingError: if a loss is not finite, or ``out`` holds the state of another run.
        BaseModelError, ValueError: see `open_base` and `TrainingSet`.
    """
    if not recipe.contrastive and not pairs:
        # Pairs only decide which notes share a batch then.
        pairs = [(first.id, second.id) for first, second in zip(notes[::2], notes[1::2], strict=False)]
    with Ranks.join() as ranks:
        torch.manual_seed(recipe.seed)
        start = _encoder(recipe, notes, pairs) if recipe.architecture == "encoder" else _decoder(recipe, notes, pairs)
        network = start.network
        step = Step(spread(network, ranks, strategy), recipe, ranks, start.teacher_ND)
        state = TrainingState(out / RUN, run_identity(recipe, notes, pairs), ranks)
        history = fit(network, start.training_set, step, state, save_every)
        gather_weights(network)
        fold_adapters(network.backbone)
        closed = categories or {note.category for note in notes if note.category}
        trained_on = {"notes": len(notes), "pairs": len(pairs), **_outcome(history)}
        if ranks.first:
            save(out, network, start.tokenizer, start.special, recipe, tuple(sorted(closed)), trained_on)
            if recipe.architecture == "decoder":
                golden.record(out)
            state.delete()
        ranks.wait()
        manifest = load_manifest(out)
    return manifest, history


@dataclass(frozen=True, slots=True)
class _Start:
    """The start of a run. ``teacher_ND`` has a unit vector for each note."""

    network: NoteLLM | SentenceBert
    tokenizer: Tokenizer
    special: SpecialIds
    training_set: TrainingSet
    teacher_ND: Tensor | None = None


def _encoder(recipe: Recipe, notes: Sequence[Note], pairs: Pairs) -> _Start:
    """SentenceBERT, with every weight as it was pre-trained."""
    folder = teacher_folder(recipe.base_model)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = encoder_ids(tokenizer)
    network = SentenceBert(open_encoder(folder), special.pad, recipe.tau)
    builder = encoder_builder(tokenizer, special, recipe.title_tokens, recipe.content_tokens)
    return _Start(network, tokenizer, special, TrainingSet(notes, pairs, builder))


def _decoder(recipe: Recipe, notes: Sequence[Note], pairs: Pairs) -> _Start:
    """NoteLLM on a causal language model, with head and adapters as the recipe starts them."""
    base = open_base(recipe.base_model, notes, recipe.dtype)
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    if recipe.gradient_checkpointing:
        base.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    network = NoteLLM(base.backbone, recipe.dim, recipe.tau)
    template = TEMPLATES[recipe.template]
    builder = PromptBuilder(base.tokenizer, special, template, recipe.title_tokens, recipe.content_tokens)
    training_set, teacher_ND = TrainingSet(notes, pairs, builder), None
    if recipe.teacher is not None:
        vectors_NH = teacher_vectors(recipe.teacher, notes, recipe)
        teacher_ND = torch.from_numpy(principal_components(vectors_NH, recipe.dim))
        follow_teacher(network, training_set, teacher_ND)
    elif (Path(recipe.base_model) / HEAD).is_file():
        load_head(Path(recipe.base_model), network)
    elif recipe.whitened_head:
        whiten_head(network, training_set)
    if recipe.lora_rank:
        add_adapters(network.backbone, recipe.lora_rank)
    return _Start(network, base.tokenizer, special, training_set, teacher_ND)


def _outcome(history: Sequence[Losses]) -> dict[str, Any]:
    last = [asdict(losses) for losses in history[-_LAST:]]
    means = {name: round(sum(losses[name] for losses in last) / len(last), 4) for name in last[0]}
    return {"steps": len(history), "last_losses": means}

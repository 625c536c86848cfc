"""A base model without a language model to start from: a causal decoder out of a sentence encoder, from text alone.

An encoder's weights in the shape of a decoder (`model.network.bert_as_opt`) see the tokens to the left alone and never
predicted one. Here the decoder learns to give the encoder's own vector of a note in the state before [EMB], for every
prompt, and to predict the next token. No pair, category or hashtag is used. Shapes: C notes of a chunk, L tokens,
H hidden.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from model.network.base_models import open_base, special_ids
from model.network.checkpoint import save_head, save_tokenizer
from model.network.chunk import Chunk
from model.network.notellm import NoteLLM, add_embedding_token, quiet_transformers
from model.note import Note
from model.recipes import Recipe
from model.text.prompt import BARE, EOL, SHARED, PromptBuilder, SpecialIds
from model.training.distributed import Ranks, spread
from model.training.examples import Batch, Sampling
from model.training.head import follow_teacher
from model.training.loop import fit
from model.training.state import RUN, TrainingState, run_identity
from model.training.step import Losses, Step
from model.training.teacher import principal_components, teacher_vectors

_PREDICTED = 0.25  # of a note's tokens: logits cost as much as all the layers of a small network


class TextSet:
    """Notes for `model.training.loop`: prompts of one template a batch, and some of their tokens to predict."""

    def __init__(self, notes: Sequence[Note], tokenizer: Tokenizer, special: SpecialIds, recipe: Recipe) -> None:
        self.notes = list(notes)
        self._builders = [
            PromptBuilder(tokenizer, special, template, recipe.title_tokens, recipe.content_tokens)
            for template in (SHARED, EOL, BARE)
        ]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Each note by itself."""
        return [(place, place) for place in range(len(self.notes))]

    def batches_per_pass(self, pairs_per_batch: int) -> int:
        """Batches in one pass over the notes."""
        return max(1, len(self.notes) // (2 * pairs_per_batch))

    def batch(self, step: int, sampling: Sampling, rank: int = 0, ranks: int = 1) -> Batch:
        """The notes of a step, with the chunks of this rank's share."""
        size = min(2 * sampling.pairs_per_batch, len(self.notes)) // ranks * ranks
        done, place = divmod(step, max(1, len(self.notes) // size))
        order = random.Random(f"{sampling.seed}:pass:{done}").sample(range(len(self.notes)), len(self.notes))
        notes = order[place * size : (place + 1) * size]
        share = size // ranks
        builder = self._builders[step % len(self._builders)]
        rows = range(rank * share, (rank + 1) * share)
        prompts = builder.prompts([self.notes[notes[row]] for row in rows])
        longest_last = sorted(zip(rows, prompts, strict=True), key=lambda pair: len(pair[1]))
        rng = random.Random(f"{sampling.seed}:tokens:{step}:{rank}")
        chunks = [
            self._chunk(longest_last[start : start + sampling.chunk_notes], builder.special.pad, rng)
            for start in range(0, share, sampling.chunk_notes)
        ]
        return Batch(tuple(notes), torch.zeros(size, size, dtype=torch.bool), chunks)

    def prompts(self, notes: Sequence[int], hide_hashtags: float = 0.0) -> Chunk:  # noqa: ARG002
        """Prompts of these notes, in order, with nothing to predict."""
        builder = self._builders[0]
        return Chunk.of_prompts(builder.prompts([self.notes[note] for note in notes]), builder.special.pad)

    def _chunk(self, rows: Sequence[tuple[int, list[int]]], pad: int, rng: random.Random) -> Chunk:
        chunk = Chunk.of_prompts([ids for _, ids in rows], pad)
        predict = [
            row * chunk.ids_CL.shape[1] + position
            for row, (_, ids) in enumerate(rows)
            for position in range(len(ids) - 2)  # [EMB] itself is no target
            if rng.random() < _PREDICTED
        ]
        predict_T = torch.tensor(predict, dtype=torch.long)
        target_T = chunk.ids_CL.flatten()[predict_T + 1]
        return replace(chunk, rows=tuple(row for row, _ in rows), predict_T=predict_T, target_T=target_T)


def adapt(recipe: Recipe, notes: Sequence[Note], out: Path, teacher: str = "minilm") -> list[Losses]:
    """Train the recipe's base model on notes' text and write a folder that serves as a ``base_model``.

    Its head gives the teacher's principal components, strongest first: training starts from the first D. Resumes a
    killed run from its last saved state. Raises as `train` does.
    """
    recipe = replace(recipe, contrastive=False, teacher=teacher)
    with Ranks.join() as ranks:
        torch.manual_seed(recipe.seed)
        base = open_base(recipe.base_model, notes)
        special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
        add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
        network = NoteLLM(base.backbone, base.backbone.config.hidden_size)
        texts = TextSet(notes, base.tokenizer, special, recipe)
        vectors_NH = teacher_vectors(teacher, notes, recipe)
        teacher_ND = torch.from_numpy(principal_components(vectors_NH, network.dim))
        follow_teacher(network, texts, teacher_ND)
        step = Step(spread(network, ranks, "ddp"), recipe, ranks, teacher_ND)
        state = TrainingState(out / RUN, run_identity(recipe, notes, ()), ranks)
        history = fit(network, texts, step, state)
    if ranks.first:
        with quiet_transformers():
            base.backbone.save_pretrained(out)
        save_tokenizer(out, base.tokenizer, special)
        save_head(out, network)
        state.delete()
    return history.losses

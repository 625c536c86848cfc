"""An untrained causal language model as an embedder: the state of a prompt's last token (table 2's first two rows)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model.batching import batches
from model.inference.open import default_device, precision
from model.network.base_models import open_base, special_ids
from model.network.chunk import Chunk
from model.network.notellm import NoteLLM, add_embedding_token
from model.note import Note
from model.progress import bar
from model.recipes import Recipe
from model.text.prompt import TEMPLATES, PromptBuilder

_BATCH_TOKENS = 8192


@torch.inference_mode()
def last_token(recipe: Recipe, notes: Sequence[Note], dtype: str = "auto") -> NDArray[np.float32]:
    """The state before [EMB] of the recipe's base model as it comes, shape (N, H); on the GPU if there is one.

    ``dtype``: see `precision`. With the template ``bare`` that is LLaMA zero-shot, with ``eol`` PromptEOL zero-shot.
    """
    base = open_base(recipe.base_model, notes, precision(dtype))
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    network, device = NoteLLM(base.backbone.eval(), recipe.dim), default_device()
    network.to(device)
    builder = PromptBuilder(
        base.tokenizer, special, TEMPLATES[recipe.template], recipe.title_tokens, recipe.content_tokens
    )
    prompts = builder.prompts(notes)
    states_NH = np.zeros((len(notes), base.backbone.config.hidden_size), dtype=np.float32)
    with bar(f"embed {recipe.template}", len(notes), "note") as progress:
        for positions in batches([len(ids) for ids in prompts], _BATCH_TOKENS):
            chunk = Chunk.of_prompts([prompts[position] for position in positions], special.pad)
            states_NH[positions] = network.states(chunk.to(device)).float().cpu().numpy()
            progress.update(len(positions))
    return states_NH

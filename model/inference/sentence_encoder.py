"""Embeddings by a SentenceBERT: as it comes, or trained here. Shapes: N notes, H values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from model.batching import batches
from model.network.checkpoint import MANIFEST, load_manifest
from model.network.chunk import Chunk
from model.network.sentence_bert import SentenceBert, encoder_builder, open_encoder, special_ids
from model.note import Note
from model.text.prompt import PromptBuilder

TITLE_TOKENS, CONTENT_TOKENS = 20, 80  # as NoteLLM's (section 5.1)
_BATCH_TOKENS = 8192


class SentenceEncoder:
    """A SentenceBERT, trained or as it comes, that embeds notes."""

    def __init__(self, network: SentenceBert, builder: PromptBuilder) -> None:
        self._network = network.eval()
        self._builder = builder

    @classmethod
    def open(cls, folder: Path, title_tokens: int = TITLE_TOKENS, content_tokens: int = CONTENT_TOKENS) -> Self:
        """Open a folder with an encoder and its tokenizer, in the layout of transformers. OSError if there is none.

        An encoder that was trained here cuts texts as in training, without regard to the limits.
        """
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        special = special_ids(tokenizer)
        if (folder / MANIFEST).exists():
            recipe = load_manifest(folder).recipe
            title_tokens, content_tokens = recipe.title_tokens, recipe.content_tokens
        network = SentenceBert(open_encoder(folder), special.pad)
        return cls(network, encoder_builder(tokenizer, special, title_tokens, content_tokens))

    @torch.inference_mode()
    def embed(self, notes: Sequence[Note]) -> NDArray[np.float32]:
        """Unit vectors of the notes, shape (N, H), in order."""
        prompts = self._builder.prompts(notes)
        vectors_NH = np.zeros((len(notes), self._network.dim), dtype=np.float32)
        with tqdm(total=len(notes), desc="embed", unit="note", delay=1, disable=None) as progress:
            for positions in batches([len(ids) for ids in prompts], _BATCH_TOKENS):
                chunk = Chunk.of_prompts([prompts[position] for position in positions], self._builder.special.pad)
                vectors_NH[positions] = F.normalize(self._network([chunk])[0], dim=-1).numpy()
                progress.update(len(positions))
        return vectors_NH

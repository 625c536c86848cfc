"""Embeddings by a SentenceBERT: as it comes, or trained here. Shapes: N notes, H values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model.batching import batches
from model.inference.open import default_device, precision
from model.network.checkpoint import MANIFEST, verified
from model.network.chunk import Chunk
from model.network.sentence_bert import SentenceBert, open_encoder
from model.note import Note
from model.progress import bar
from model.text.prompt import PromptBuilder

TITLE_TOKENS, CONTENT_TOKENS = 20, 80  # as NoteLLM's (section 5.1)
_BATCH_TOKENS = 8192


class SentenceEncoder:
    """A SentenceBERT, trained or as it comes, that embeds notes."""

    def __init__(self, network: SentenceBert, builder: PromptBuilder) -> None:
        self._network = network.eval()
        self._builder = builder

    @classmethod
    def open(
        cls,
        name: str | Path,
        title_tokens: int = TITLE_TOKENS,
        content_tokens: int = CONTENT_TOKENS,
        dtype: str = "auto",
    ) -> Self:
        """Open an encoder by name or folder, on the GPU if there is one; see `open_encoder` and `precision`.

        An encoder that was trained here cuts texts as in training, without regard to the limits.
        """
        trained = verified(Path(name)) if (Path(name) / MANIFEST).is_file() else None
        encoder = open_encoder(str(name), precision(dtype))
        if trained:
            recipe = trained.recipe
            title_tokens, content_tokens = recipe.title_tokens, recipe.content_tokens
        network = SentenceBert(encoder.backbone, encoder.special.pad).to(default_device())
        return cls(network, encoder.builder(title_tokens, content_tokens))

    @torch.inference_mode()
    def embed(self, notes: Sequence[Note]) -> NDArray[np.float32]:
        """Unit vectors of the notes, shape (N, H), in order."""
        prompts = self._builder.prompts(notes)
        vectors_NH = np.zeros((len(notes), self._network.dim), dtype=np.float32)
        with bar("embed", len(notes), "note") as progress:
            for positions in batches([len(ids) for ids in prompts], _BATCH_TOKENS):
                chunk = Chunk.of_prompts([prompts[position] for position in positions], self._builder.special.pad)
                embeddings_CH, _ = self._network([chunk.to(self._network.log_scale.device)])
                vectors_NH[positions] = F.normalize(embeddings_CH, dim=-1).cpu().numpy()
                progress.update(len(positions))
        return vectors_NH

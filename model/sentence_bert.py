"""SentenceBERT: a bidirectional encoder with mean pooling, the paper's online baseline (section 5.1.3).

It is trained on the same pairs with the same loss (eq. 2) as NoteLLM; it generates nothing. It also serves as a
teacher. Shapes: C notes of a chunk, L tokens, H hidden values; its embedding is as wide as its states.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModel, PreTrainedModel

from model.batching import batches
from model.checkpoint import MANIFEST, read_manifest
from model.examples import Chunk
from model.network import quiet_transformers
from model.note import Note
from model.prompt import BARE, PromptBuilder, SpecialIds

# As NoteLLM reads them (section 5.1.2).
TITLE_TOKENS, CONTENT_TOKENS = 20, 80
_BATCH_TOKENS = 8192


class SentenceBert(nn.Module):
    """An encoder whose mean last state is the note's embedding."""

    def __init__(self, encoder: PreTrainedModel, pad: int, tau: float = 3.0) -> None:
        super().__init__()
        self.backbone = encoder
        self.log_scale = nn.Parameter(torch.tensor(tau))
        self._pad = pad

    @property
    def dim(self) -> int:
        """Size of the embedding, that of the states."""
        size: int = self.backbone.config.hidden_size
        return size

    def forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Embeddings of every note of the chunks, in their order, and no generation loss."""
        emb_ND = torch.cat([self._chunk(chunk) for chunk in chunks])
        return emb_ND, emb_ND.new_zeros(())

    def _chunk(self, chunk: Chunk) -> Tensor:
        # [EMB] stands behind the text for the network's sake; an encoder has no such token.
        ids_CL = chunk.ids_CL[:, :-1].clone()
        length_C = chunk.before_emb_C + 1
        mask_CL = torch.arange(ids_CL.shape[1], device=ids_CL.device)[None] < length_C[:, None]
        ids_CL[~mask_CL] = self._pad
        states_CLH: Tensor = self.backbone(input_ids=ids_CL, attention_mask=mask_CL.long()).last_hidden_state
        mask_CL1 = mask_CL.unsqueeze(-1).to(states_CLH.dtype)
        return ((states_CLH * mask_CL1).sum(dim=1) / mask_CL1.sum(dim=1)).float()


class SentenceEncoder:
    """A SentenceBERT, trained or as it comes, that embeds notes."""

    def __init__(self, network: SentenceBert, builder: PromptBuilder) -> None:
        self._network = network.eval()
        self._builder = builder

    @classmethod
    def open(cls, folder: Path, title_tokens: int = TITLE_TOKENS, content_tokens: int = CONTENT_TOKENS) -> Self:
        """Open a folder with an encoder and its tokenizer, in the layout of transformers. OSError if there is none.

        One that was trained here cuts texts as it did in training, whatever is asked for.
        """
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        special = special_ids(tokenizer)
        if (folder / MANIFEST).exists():
            recipe = read_manifest(folder).recipe
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
                chunk = self._chunk([prompts[position] for position in positions])
                vectors_NH[positions] = F.normalize(self._network([chunk])[0], dim=-1).numpy()
                progress.update(len(positions))
        return vectors_NH

    def _chunk(self, prompts: Sequence[Sequence[int]]) -> Chunk:
        length = max(map(len, prompts))
        ids_CL = torch.tensor([[*ids, *[self._builder.special.pad] * (length - len(ids))] for ids in prompts])
        none = torch.zeros(0, dtype=torch.long)
        before_emb_C = torch.tensor([len(ids) - 2 for ids in prompts])
        return Chunk(tuple(range(len(prompts))), ids_CL, before_emb_C, none, none)


def open_encoder(folder: Path) -> PreTrainedModel:
    """A bidirectional encoder without dropout: runs are short, and chunks may run twice and must agree."""
    with quiet_transformers():
        encoder: Any = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            add_pooling_layer=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    assert isinstance(encoder, PreTrainedModel)
    return encoder


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """The ids that frame a text for BERT, with [EMB] added if it is not there."""
    tokenizer.add_special_tokens(["[EMB]"])
    bos, eos, emb, pad = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[EMB]", "[PAD]"))
    assert bos is not None
    assert eos is not None
    assert emb is not None
    assert pad is not None
    return SpecialIds(bos, eos, emb, pad)


def encoder_builder(tokenizer: Tokenizer, special: SpecialIds, title_tokens: int, content_tokens: int) -> PromptBuilder:
    """The bare text between [CLS] and [SEP]."""
    return PromptBuilder(tokenizer, special, BARE, title_tokens, content_tokens)

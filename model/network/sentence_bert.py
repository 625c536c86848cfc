"""SentenceBERT: a bidirectional encoder with mean pooling, the paper's online baseline (section 5.2).

It is trained on the same pairs with the same loss (eq. 2) as NoteLLM; it generates nothing. It also serves as a
teacher. Shapes: C notes of a chunk, L tokens, H hidden values; its embedding is as wide as its states.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from model.network.chunk import Chunk
from model.network.notellm import quiet_transformers
from model.text.prompt import BARE, PromptBuilder, SpecialIds


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
        # [EMB] ends the prompt of NoteLLM; an encoder has no such token.
        ids_CL = chunk.ids_CL[:, :-1].clone()
        length_C = chunk.before_emb_C + 1
        mask_CL = torch.arange(ids_CL.shape[1], device=ids_CL.device)[None] < length_C[:, None]
        ids_CL[~mask_CL] = self._pad
        states_CLH: Tensor = self.backbone(input_ids=ids_CL, attention_mask=mask_CL.long()).last_hidden_state
        mask_CL1 = mask_CL.unsqueeze(-1).to(states_CLH.dtype)
        return ((states_CLH * mask_CL1).sum(dim=1) / mask_CL1.sum(dim=1)).float()


def open_encoder(folder: Path) -> PreTrainedModel:
    """A bidirectional encoder without dropout: chunks that are recomputed must agree."""
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

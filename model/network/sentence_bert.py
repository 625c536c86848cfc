"""SentenceBERT: a bidirectional encoder with mean pooling, the paper's online baseline (section 5.2).

It is trained on the same pairs with the same loss (eq. 2) as NoteLLM; it generates nothing. It also serves as a
teacher. Shapes: C notes of a chunk, L tokens, H hidden values; its embedding is as wide as its states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from model.network.base_models import BaseModelError, cannot_open, open_tokenizer, special_ids
from model.network.chunk import Chunk
from model.network.minilm import minilm_folder
from model.network.notellm import NO_CODE, WEIGHTS_ALONE, quiet_transformers
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

    @torch.no_grad()
    def center(self, mean_H: Tensor) -> None:
        """Take this much out of every embedding: out of the bias of the last layer norm, which all tokens share."""
        *_, last = (module for module in self.backbone.modules() if isinstance(module, nn.LayerNorm))
        last.bias.sub_(mean_H)

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


@dataclass(frozen=True, slots=True)
class Encoder:
    """A pre-trained encoder, its tokenizer, which has [EMB], and the ids that frame a text."""

    backbone: PreTrainedModel
    tokenizer: Tokenizer
    special: SpecialIds

    def builder(self, title_tokens: int, content_tokens: int) -> PromptBuilder:
        """The bare text, framed as in pre-training: between [CLS] and [SEP] for a BERT."""
        return PromptBuilder(self.tokenizer, self.special, BARE, title_tokens, content_tokens)


def open_encoder(name: str, dtype: str = "float32") -> Encoder:
    """Open ``minilm``, or any encoder that transformers can open by a name or folder.

    It has no dropout, because chunks that are recomputed must agree, and no pooling layer, which a mean does without.

    Raises:
        BaseModelError: if it cannot be opened, or decodes as well.
        ModuleNotFoundError: if MiniLM is not installed.
    """
    folder = str(minilm_folder()) if name == "minilm" else name
    tokenizer = open_tokenizer(folder, "encoder")
    try:
        config = AutoConfig.from_pretrained(folder, **NO_CODE)
    except (OSError, ValueError) as error:
        raise cannot_open(name, error, "encoder") from None
    if config.is_encoder_decoder:
        raise BaseModelError(f"the encoder {name} is a {config.model_type}, which encodes and decodes")
    without = {key: 0.0 for key, value in config.to_dict().items() if "drop" in key and isinstance(value, float)}
    try:
        with quiet_transformers():
            backbone: Any = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype), **WEIGHTS_ALONE, **without)
    except OSError as error:
        raise cannot_open(name, error, "encoder") from None
    special = special_ids(
        tokenizer.backend_tokenizer,
        tokenizer.cls_token or tokenizer.bos_token,
        tokenizer.sep_token or tokenizer.eos_token,
        tokenizer.pad_token,
    )
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return Encoder(backbone, tokenizer.backend_tokenizer, special)

"""NoteLLM: a causal language model, [EMB], a linear head. Shapes: N notes, L tokens, H hidden, D embedding."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import logging as transformers_logging

from model.network.chunk import Chunk
from model.network.losses import generation_loss

# Whatever opens a folder that somebody else wrote: without these, transformers asks at a terminal whether to run the
# code in it, and unpickles weights.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
WEIGHTS_ALONE: dict[str, Any] = {**NO_CODE, "use_safetensors": True}

_OTHER_ENCODERS = {"camembert", "electra", "roberta", "xlm-roberta", "xlm-roberta-xl"}


class NoteLLM(nn.Module):
    """Any Hugging Face causal language model with a projection to the note embedding (section 4.3).

    ``log_scale`` is the learnable tau of eq. (2).
    """

    def __init__(self, backbone: PreTrainedModel, dim: int, tau: float = 3.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.config.hidden_size, dim)
        self.log_scale = nn.Parameter(torch.tensor(tau))

    @property
    def dim(self) -> int:
        """Size of the note embedding, D."""
        return self.head.out_features

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.log_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision that it computes in."""
        dtype: torch.dtype = self.backbone.dtype
        return dtype

    @property
    def positions(self) -> int:
        """Tokens that a sequence has at most."""
        positions: int = self.backbone.config.max_position_embeddings
        return positions

    def forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Embeddings of every note of the chunks, in their order, shape (N, D), and the summed generation loss.

        Logits are computed for output tokens alone: the output matrix is as large as all the layers of a small model.
        """
        embeddings, generation = zip(*map(self._chunk, chunks), strict=True)
        return torch.cat(embeddings), torch.stack(generation).sum()

    def _chunk(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        hidden_CLH = self.hidden(chunk.ids_CL)
        emb_CD = self.embedding(_before_emb(hidden_CLH, chunk))
        if not len(chunk.target_T):
            # Every weight takes part in every chunk: ranks that exchange gradients wait for all of them.
            return emb_CD, self.logits(hidden_CLH[:1, 0]).sum() * 0.0
        logits_TV = self.logits(hidden_CLH.flatten(0, 1)[chunk.predict_T])
        return emb_CD, generation_loss(logits_TV, chunk.target_T)

    def hidden(self, ids_NL: Tensor) -> Tensor:
        """Hidden states after the final norm, shape (N, L, H), of right-padded ids.

        Attention is causal, so padding on the right changes nothing to its left and needs no mask.
        """
        states: Tensor = self.backbone.base_model(input_ids=ids_NL, use_cache=False).last_hidden_state
        return states

    def extend(self, ids_NT: Tensor, mask_NC: Tensor, positions_NT: Tensor, cache: Cache | None) -> Tensor:
        """Hidden states of T more tokens of each sequence, shape (N, T, H); their keys and values go into the cache.

        ``mask_NC``: 1 for tokens and 0 for padding, in the columns of the cache and the T new ones.
        """
        states: Tensor = self.backbone.base_model(
            input_ids=ids_NT,
            attention_mask=mask_NC,
            position_ids=positions_NT,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return states

    def states(self, chunk: Chunk) -> Tensor:
        """States of the tokens before [EMB], shape (C, H)."""
        return _before_emb(self.hidden(chunk.ids_CL), chunk)

    def embedding(self, hidden_NH: Tensor) -> Tensor:
        """Project the state of the token before [EMB]; float32, shape (N, D), not normalized."""
        projected: Tensor = self.head(hidden_NH.to(self.head.weight.dtype)).float()
        return projected

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """Vocabulary logits of chosen states, shape (T, V): the output matrix runs on no other token."""
        logits: Tensor = output_layer(self.backbone)(hidden_TH)
        return logits


def _before_emb(hidden_CLH: Tensor, chunk: Chunk) -> Tensor:
    return hidden_CLH[torch.arange(len(chunk.rows)), chunk.before_emb_C]


def output_layer(backbone: PreTrainedModel) -> nn.Module:
    """From hidden states to logits. BERT-style decoders transform before they multiply; the others only multiply."""
    layer = getattr(backbone, "cls", None) or backbone.get_output_embeddings()
    assert isinstance(layer, nn.Module)
    return layer


def decoder_config(path: str | Path) -> PreTrainedConfig:
    """The configuration of a causal language model; BERT is made one.

    Raises:
        OSError: if there is no model of that name or in that folder.
        ValueError: if it is another kind of network.
    """
    config: PreTrainedConfig = AutoConfig.from_pretrained(path, **NO_CODE)
    if config.model_type in _OTHER_ENCODERS:
        # Untested: their positions start elsewhere, and their output layers hide a transform.
        raise ValueError(f"of the encoders only BERT can run as a causal decoder, not a {config.model_type}")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        raise ValueError(
            f"a {config.model_type} does not write one token after the other; "
            "name a decoder, such as Llama, Mistral, Qwen or OPT"
        )
    if config.model_type == "bert":
        config.is_decoder = True
    return config


def open_backbone(path: str | Path, dtype: str = "float32") -> PreTrainedModel:
    """Open a causal language model by name or folder. Raises as `decoder_config` does."""
    config = decoder_config(path)
    # attn_implementation: padding-safe and fast on every device; flash variants are not there on CPUs.
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=getattr(torch, dtype), attn_implementation="sdpa", **WEIGHTS_ALONE
        )
    assert isinstance(model, PreTrainedModel)
    return model


def add_embedding_token(backbone: PreTrainedModel, vocabulary: int) -> None:
    """Grow both token matrices to ``vocabulary`` rows; new rows start as the mean of the old ones.

    Transformers alone would leave the rows of an untied output matrix at random values.
    """
    old = backbone.get_input_embeddings().weight.shape[0]
    if vocabulary <= old:
        return
    backbone.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():
        for layer in (backbone.get_input_embeddings(), backbone.get_output_embeddings()):
            weight = layer.weight
            assert isinstance(weight, Tensor)
            weight[old:] = weight[:old].mean(dim=0)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the bars of transformers and its reports: a base encoder has no output layer yet, a network no loss."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)

"""BERT's weights in the shape of OPT: a sentence encoder becomes a causal decoder. Shapes: V tokens, P positions, H."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel


def as_decoder(
    encoder: PreTrainedModel, kept: Sequence[int] | None = None, layers: int | None = None
) -> OPTForCausalLM:
    """A BERT encoder's weights in the shape of OPT, optionally with fewer tokens and only the first layers.

    A layer of OPT with its layer norms after each block is a BERT layer, but causal, and engines that generate text
    support OPT and no BERT. OPT has no layer norm on its input: it is folded into the token rows (each normalized at
    the mean position) and the position rows (scaled by the mean deviation).
    """
    config = encoder.config
    kept = range(config.vocab_size) if kept is None else kept
    decoder = OPTForCausalLM(
        OPTConfig(
            vocab_size=len(kept),
            hidden_size=config.hidden_size,
            word_embed_proj_dim=config.hidden_size,
            ffn_dim=config.intermediate_size,
            num_hidden_layers=layers or config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            activation_function=config.hidden_act,
            do_layer_norm_before=False,
            dropout=0.0,
            attention_dropout=0.0,
        )
    )
    opt = decoder.model.decoder
    with torch.no_grad():
        tokens, positions = _normalized_embeddings(encoder.embeddings)
        opt.embed_tokens.weight.copy_(tokens[list(kept)])
        # OPT's table of positions begins two rows in.
        opt.embed_positions.weight[2:].copy_(positions)
        for new, old in zip(opt.layers, encoder.encoder.layer, strict=False):
            attention = old.attention
            for target, source in (
                (new.self_attn.q_proj, attention.self.query),
                (new.self_attn.k_proj, attention.self.key),
                (new.self_attn.v_proj, attention.self.value),
                (new.self_attn.out_proj, attention.output.dense),
                (new.self_attn_layer_norm, attention.output.LayerNorm),
                (new.fc1, old.intermediate.dense),
                (new.fc2, old.output.dense),
                (new.final_layer_norm, old.output.LayerNorm),
            ):
                target.load_state_dict(source.state_dict())
        _average(opt.layers[-1].self_attn)
    return decoder


def _average(attention: Any) -> None:
    """Make an attention layer add the mean of all states so far, times three, until training finds better.

    A sentence encoder's embedding is the mean of its states, but here one token's state has to hold it, and without
    this layer that state ranks notes hardly better than chance. Figures in model/README.md.
    """
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        projection.bias.zero_()
    attention.q_proj.weight.zero_()
    torch.nn.init.eye_(attention.v_proj.weight)
    torch.nn.init.eye_(attention.out_proj.weight).mul_(3.0)


def _normalized_embeddings(embeddings: Any) -> tuple[Tensor, Tensor]:
    """Token rows (V, H) and position rows (P, H) whose sum is close to BERT's layer norm of its embeddings."""
    words, positions = embeddings.word_embeddings.weight, embeddings.position_embeddings.weight
    norm = embeddings.LayerNorm
    center = positions.mean(dim=0)
    typed = words + center + embeddings.token_type_embeddings.weight[0]
    deviation = typed.std(dim=1, correction=0).mean()
    offsets = positions - center
    return norm(typed), norm.weight * (offsets - offsets.mean(dim=1, keepdim=True)) / deviation

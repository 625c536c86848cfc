"""Base models: where a recipe's ``base_model`` comes from. The tokenizers know no [EMB] yet."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, OPTConfig, OPTForCausalLM, PreTrainedModel

from model.minilm import minilm_folder
from model.network import open_backbone, quiet_transformers
from model.note import Note


class BaseModelError(ValueError):
    """A base model cannot be opened; the message says what to install or which path to give."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A causal language model with its tokenizer and the names of the tokens that frame a prompt."""

    backbone: PreTrainedModel
    tokenizer: Tokenizer
    bos: str | None
    eos: str
    pad: str | None


def open_base(name: str, notes: Sequence[Note], dtype: str = "float32") -> BaseModel:
    """Open ``minilm``, make ``minilm-mini`` (its vocabulary is chosen by the notes), or open a name or path.

    Raises:
        BaseModelError: if it cannot be opened.
    """
    if name == "minilm":
        return _minilm(dtype)
    if name == "minilm-mini":
        return _minilm_mini(notes, dtype)
    try:
        backbone = open_backbone(name, dtype)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise BaseModelError(f"cannot open the base model {name}: {reason}") from None
    return BaseModel(
        backbone,
        tokenizer.backend_tokenizer,
        tokenizer.bos_token or tokenizer.cls_token,
        tokenizer.eos_token or tokenizer.sep_token,
        tokenizer.pad_token,
    )


def _minilm(dtype: str) -> BaseModel:
    folder = minilm_folder()
    backbone = _as_decoder(_encoder(folder))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return BaseModel(backbone.to(getattr(torch, dtype)), tokenizer, "[CLS]", "[SEP]", "[PAD]")


# Sized so that the weights in fp16 stay below 25 MB.
_MINI_LAYERS = 5
_MINI_PIECES = 8000


def _minilm_mini(notes: Sequence[Note], dtype: str) -> BaseModel:
    folder = minilm_folder()
    full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer, kept = _smaller_vocabulary(full, notes)
    backbone = _as_decoder(_encoder(folder), kept, _MINI_LAYERS)
    return BaseModel(backbone.to(getattr(torch, dtype)), tokenizer, "[CLS]", "[SEP]", "[PAD]")


def _encoder(folder: Path) -> PreTrainedModel:
    with quiet_transformers():
        encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(encoder, PreTrainedModel)
    return encoder


def _as_decoder(
    encoder: PreTrainedModel, kept: Sequence[int] | None = None, layers: int | None = None
) -> OPTForCausalLM:
    """A BERT encoder's weights in the shape of OPT, optionally with fewer tokens and only the first layers.

    OPT with layer norms behind each block computes what a BERT layer computes, but causally, and every engine that
    generates text knows it, which holds for no BERT. OPT has no layer norm on its input: it is folded into the token
    rows (each normalised at the mean position) and the position rows (scaled by the mean deviation).
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
        tokens, positions = _normalised_embeddings(encoder.embeddings)
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

    A sentence encoder's meaning is the mean of its states (MiniLM is pooled so), but here one token's state has to
    hold it, and without this that state told notes apart hardly better than chance. Figures in model/README.md.
    """
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        projection.bias.zero_()
    attention.q_proj.weight.zero_()
    torch.nn.init.eye_(attention.v_proj.weight)
    torch.nn.init.eye_(attention.out_proj.weight).mul_(3.0)


def _normalised_embeddings(embeddings: Any) -> tuple[Tensor, Tensor]:
    """Token rows (V, H) and position rows (P, H) whose sum is close to BERT's layer norm of its embeddings."""
    words, positions = embeddings.word_embeddings.weight, embeddings.position_embeddings.weight
    norm = embeddings.LayerNorm
    centre = positions.mean(dim=0)
    typed = words + centre + embeddings.token_type_embeddings.weight[0]
    deviation = typed.std(dim=1, correction=0).mean()
    offsets = positions - centre
    return norm(typed), norm.weight * (offsets - offsets.mean(dim=1, keepdim=True)) / deviation


def _smaller_vocabulary(full: Tokenizer, notes: Sequence[Note]) -> tuple[Tokenizer, list[int]]:
    """A WordPiece tokenizer with the pieces that the notes use most, and the old id of each piece.

    What the network must be able to write (hashtags, categories) and spell (every ASCII character) is always in.
    """
    full.no_truncation()
    full.no_padding()
    read = [f"{note.title} {note.content}" for note in notes]
    written = [f"{note.category}, {', '.join(note.hashtags)}" for note in notes]
    count = Counter(token for encoding in full.encode_batch(read) for token in encoding.ids)
    needed: set[int | None] = {token for encoding in full.encode_batch(written) for token in encoding.ids}
    pieces = [(piece, token) for piece, token in full.get_vocab().items() if not piece.startswith("[unused")]
    needed |= {token for piece, token in pieces if piece.isascii() and len(piece.removeprefix("##")) == 1}
    needed |= {full.token_to_id(piece) for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")}
    # BERT lists whole words by falling frequency, so its ids break ties well.
    ranked = sorted((token for _, token in pieces), key=lambda token: (token not in needed, -count[token], token))
    kept = sorted(ranked[:_MINI_PIECES])
    new_ids = {token: position for position, token in enumerate(kept)}
    state = json.loads(full.to_str())
    state["model"]["vocab"] = {piece: new_ids[token] for piece, token in pieces if token in new_ids}
    state["added_tokens"] = [
        {**added, "id": new_ids[added["id"]]} for added in state["added_tokens"] if added["id"] in new_ids
    ]
    for special in state["post_processor"]["special_tokens"].values():
        special["ids"] = [new_ids[token] for token in special["ids"]]
    return Tokenizer.from_str(json.dumps(state)), kept

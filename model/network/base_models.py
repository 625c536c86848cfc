"""Base models by the name in a recipe. Their tokenizers do not have [EMB] yet."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from model.network.bert_as_opt import as_decoder
from model.network.gguf import is_gguf, unpacked
from model.network.minilm import minilm_folder
from model.network.notellm import NO_CODE, WEIGHTS_ALONE, decoder_config, open_backbone, quiet_transformers
from model.network.smollm2 import smollm2_folder
from model.note import Note
from model.text.prompt import EMB, SpecialIds

# Of minilm-mini: its weights in fp16 stay below 25 MB.
_MINI_LAYERS = 5
_MINI_PIECES = 8000


class BaseModelError(ValueError):
    """A base model cannot be opened; the message names it and the reason."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A causal language model with its tokenizer and the names of the tokens that frame a prompt."""

    backbone: PreTrainedModel
    tokenizer: Tokenizer
    bos: str | None
    eos: str
    pad: str | None


def open_base(name: str, notes: Sequence[Note], dtype: str = "float32") -> BaseModel:
    """Open ``minilm``, make ``minilm-mini`` (with the pieces that the notes use most), or open a name or path.

    Raises:
        BaseModelError: if it cannot be opened.
        GgufError: see `model.network.gguf.unpacked`.
    """
    if name in ("minilm", "minilm-mini"):
        return _minilm(None if name == "minilm" else notes, dtype)
    folder = _located(name)
    try:
        decoder_config(folder)
        tokenizer = open_tokenizer(folder)
        backbone = open_backbone(folder, dtype)
    except BaseModelError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_open(name, error) from None
    return BaseModel(
        backbone,
        tokenizer.backend_tokenizer,
        tokenizer.bos_token or tokenizer.cls_token,
        tokenizer.eos_token or tokenizer.sep_token,
        tokenizer.pad_token,
    )


def _located(name: str) -> str:
    """The folder of ``smollm2`` or of a GGUF file; another name or path as it is."""
    if name == "smollm2":
        return str(smollm2_folder())
    return str(unpacked(Path(name))) if is_gguf(name) else name


def open_tokenizer(name: str, role: str = "base model") -> PreTrainedTokenizerFast:
    """The tokenizer of a model: to be opened before its weights, which may take minutes.

    Raises:
        BaseModelError: if it cannot be opened, or has no end token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **NO_CODE)
    except (OSError, ValueError) as error:
        if Path(name).is_dir() and not any(Path(name).glob("*token*")):
            why = "it has no tokenizer; put its tokenizer.json and tokenizer_config.json there"
            raise BaseModelError(f"cannot open the {role} {name}: {why}") from None
        raise cannot_open(name, error, role) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BaseModelError(f"the {role} {name} has no tokenizer.json, the one form of a tokenizer that is understood")
    if not (tokenizer.eos_token or tokenizer.sep_token):
        raise BaseModelError(
            f"the tokenizer of the {role} {name} names no end token; add eos_token to its configuration"
        )
    return tokenizer


def cannot_open(name: str, error: Exception, role: str = "base model") -> BaseModelError:
    """An error of transformers as one line."""
    return BaseModelError(f"cannot open the {role} {name}: {str(error).strip().splitlines()[0]}")


def special_ids(tokenizer: Tokenizer, bos: str | None, eos: str, pad: str | None) -> SpecialIds:
    """Add [EMB] to a tokenizer when it is not there, and name the ids that frame a prompt.

    Raises:
        BaseModelError: if the end token is not one of the tokenizer's.
    """
    tokenizer.add_special_tokens([EMB])
    end = tokenizer.token_to_id(eos)
    if end is None:
        raise BaseModelError(f"the tokenizer has no end token {eos!r}")
    start = tokenizer.token_to_id(bos) if bos else None
    padding = tokenizer.token_to_id(pad) if pad else None
    emb = tokenizer.token_to_id(EMB)
    assert emb is not None
    return SpecialIds(start, end, emb, end if padding is None else padding)


def _minilm(notes: Sequence[Note] | None, dtype: str) -> BaseModel:
    """MiniLM as a decoder: whole, or with its first layers and the pieces that the notes use."""
    folder = minilm_folder()
    tokenizer, kept, layers = Tokenizer.from_file(str(folder / "tokenizer.json")), None, None
    if notes is not None:
        (tokenizer, kept), layers = _smaller_vocabulary(tokenizer, notes), _MINI_LAYERS
    with quiet_transformers():
        encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, **WEIGHTS_ALONE)
    decoder = as_decoder(encoder, kept, layers)
    return BaseModel(decoder.to(getattr(torch, dtype)), tokenizer, "[CLS]", "[SEP]", "[PAD]")


def _smaller_vocabulary(full: Tokenizer, notes: Sequence[Note]) -> tuple[Tokenizer, list[int]]:
    """A WordPiece tokenizer with the pieces that the notes use most, and the old id of each piece.

    The pieces of hashtags and categories, and every ASCII character, are always among them.
    """
    full.no_truncation()
    full.no_padding()
    texts = [f"{note.title} {note.content}" for note in notes]
    outputs = [f"{note.category}, {', '.join(note.hashtags)}" for note in notes]
    count = Counter(token for encoding in full.encode_batch(texts) for token in encoding.ids)
    needed: set[int | None] = {token for encoding in full.encode_batch(outputs) for token in encoding.ids}
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

"""Base models: where a recipe's ``base_model`` comes from. The tokenizers know no [EMB] yet."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from model.network.bert_as_opt import as_decoder
from model.network.minilm import minilm_folder
from model.network.notellm import open_backbone, quiet_transformers
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
    backbone = as_decoder(_encoder(folder))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return BaseModel(backbone.to(getattr(torch, dtype)), tokenizer, "[CLS]", "[SEP]", "[PAD]")


# Sized so that the weights in fp16 stay below 25 MB.
_MINI_LAYERS = 5
_MINI_PIECES = 8000


def _minilm_mini(notes: Sequence[Note], dtype: str) -> BaseModel:
    folder = minilm_folder()
    full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer, kept = _smaller_vocabulary(full, notes)
    backbone = as_decoder(_encoder(folder), kept, _MINI_LAYERS)
    return BaseModel(backbone.to(getattr(torch, dtype)), tokenizer, "[CLS]", "[SEP]", "[PAD]")


def _encoder(folder: Path) -> PreTrainedModel:
    with quiet_transformers():
        encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(encoder, PreTrainedModel)
    return encoder


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

"""Checkpoints: a folder that any Hugging Face tool can open, plus the head and ``notellm.json``.

::

    notellm.json           manifest: recipe, template, closed category set, dimension, files' SHA-256, fingerprint,
                           golden answers, calibration
    config.json            the backbone's, as transformers writes it
    model.safetensors      the backbone's weights
    head.safetensors       the projection and tau
    tokenizer.json ...     the tokenizer, with [EMB]

The manifest loads without torch, for the gateway.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.files import write_json
from model.recipes import Recipe
from model.text.prompt import EMB, TEMPLATES, PromptBuilder, SpecialIds

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from model.network.notellm import NoteLLM
    from model.network.sentence_bert import SentenceBert

FORMAT = 1
MANIFEST = "notellm.json"
HEAD = "head.safetensors"
# In a checkpoint that LoRA trained: what it learned, without the base model; see `model.network.adapter`.
ADAPTER_FOLDER, ADAPTER = "adapter", "adapter.json"
PREDICTIONS = "predictions.msgpack.gz"  # of some notes, see `service.worker.precomputed`; no part of the model
# Fields of earlier recipes, with the values that mean nothing to a checkpoint.
_DROPPED: dict[str, list[Any]] = {
    "matryoshka": [[]],
    "hard_negatives": [0],
    "cached_negatives": [0],
    "dtype": ["float32", "bfloat16"],
}


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, altered or of another format; the message says which file."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``notellm.json``.

    ``fingerprint`` is 16 hex digits of a SHA-256 over weights, tokenizer, configuration, template, categories and
    dimension: two checkpoints with the same fingerprint give the same vectors and tags. ``trained_on`` is free-form:
    counts of notes and pairs, steps, final losses. ``golden``: see `model.inference.golden`; SentenceBERT has none.
    ``calibration``: see `model.inference.calibration`; None where scores are the model's own.
    """

    fingerprint: str
    dim: int
    categories: tuple[str, ...]
    recipe: Recipe
    special: SpecialIds
    files: dict[str, str]
    trained_on: dict[str, Any]
    golden: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError when it is missing or not valid."""
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / ADAPTER).is_file():
            raise CheckpointError(f"{folder} holds an adapter: `notellm merge` makes a checkpoint of it") from None
        raise CheckpointError(f"no checkpoint in {folder}: {MANIFEST} is missing") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    return read_manifest(raw, path)


def read_manifest(raw: dict[str, Any], path: Path) -> Manifest:
    """The manifest in a JSON object. Raises CheckpointError, naming its file, when it is not valid."""
    if raw.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {raw.get('format')!r}, this version reads {FORMAT}")
    try:
        return Manifest(
            fingerprint=raw["fingerprint"],
            dim=raw["dim"],
            categories=tuple(raw["categories"]),
            recipe=_recipe(raw["recipe"]),
            special=SpecialIds(**raw["special"]),
            files=raw["files"],
            trained_on=raw["trained_on"],
            golden=raw.get("golden"),
            calibration=raw.get("calibration"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is incomplete: {error}") from None


def _recipe(raw: dict[str, Any]) -> Recipe:
    """The recipe of a manifest, without dropped fields that were unused."""
    return Recipe(**{name: value for name, value in raw.items() if value not in _DROPPED.get(name, [])})


def prompt_builder(folder: Path, manifest: Manifest) -> PromptBuilder:
    """The prompt builder of a checkpoint: the same for training, evaluation and serving."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    recipe = manifest.recipe
    template = TEMPLATES[recipe.template]
    return PromptBuilder(tokenizer, manifest.special, template, recipe.title_tokens, recipe.content_tokens)


def save(
    folder: Path,
    network: NoteLLM | SentenceBert,
    tokenizer: Tokenizer,
    special: SpecialIds,
    recipe: Recipe,
    categories: tuple[str, ...],
    trained_on: dict[str, Any],
) -> Manifest:
    """Write a checkpoint; the manifest comes last, so a folder with a manifest is complete.

    SentenceBERT has no head, and `load` refuses it: it cannot serve.
    """
    files = save_files(folder, network, tokenizer, special, recipe.saved_dtype)
    identity = [files, TEMPLATES[recipe.template].identity, list(categories), network.dim]
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    manifest = Manifest(fingerprint, network.dim, categories, recipe, special, files, trained_on)
    save_manifest(folder, manifest)
    return manifest


def save_files(
    folder: Path, network: NoteLLM | SentenceBert, tokenizer: Tokenizer, special: SpecialIds, saved_dtype: str
) -> dict[str, str]:
    """Write all of a checkpoint but its manifest, and return the SHA-256 of each file."""
    import torch

    from model.network.notellm import NoteLLM, quiet_transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    training_dtype = next(network.backbone.parameters()).dtype
    with quiet_transformers():
        network.backbone.to(getattr(torch, saved_dtype)).save_pretrained(folder)
    network.backbone.to(training_dtype)
    if isinstance(network, NoteLLM):
        save_head(folder, network)
    save_tokenizer(folder, tokenizer, special)
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.suffix in {".json", ".safetensors"}}


def add_golden(folder: Path, golden: dict[str, Any]) -> Manifest:
    """Put golden answers into the manifest of a checkpoint; its fingerprint stays."""
    return _update(folder, golden=golden)


def add_calibration(folder: Path, calibration: dict[str, Any]) -> Manifest:
    """Put a calibration into the manifest of a checkpoint; its fingerprint stays."""
    return _update(folder, calibration=calibration)


def _update(folder: Path, **changes: Any) -> Manifest:
    """Change the manifest of a checkpoint, and the copy of it that its adapter has."""
    manifest = dataclasses.replace(load_manifest(folder), **changes)
    save_manifest(folder, manifest)
    description = folder / ADAPTER_FOLDER / ADAPTER
    if description.is_file():
        written = json.loads(description.read_text(encoding="utf-8"))
        write_json(description, written | {"manifest": written_manifest(manifest)})
    return load_manifest(folder)


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a checkpoint whose files are there."""
    text = json.dumps(written_manifest(manifest), indent=2, ensure_ascii=False)
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)


def written_manifest(manifest: Manifest) -> dict[str, Any]:
    """The JSON object that `read_manifest` reads."""
    return {"format": FORMAT, **dataclasses.asdict(manifest)}


def load(folder: Path, dtype: str = "float32") -> tuple[NoteLLM, PromptBuilder, Manifest]:
    """Open a checkpoint for inference.

    Raises:
        CheckpointError: if a file is missing, the head among them, or differs from the manifest.
    """
    from model.network.notellm import NoteLLM, open_backbone

    manifest = load_manifest(folder)
    if HEAD not in manifest.files:
        raise CheckpointError(f"{folder / MANIFEST} names no {HEAD}: a checkpoint without its head cannot be used")
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing")
        if sha256(folder / name) != digest:
            raise CheckpointError(f"{folder / name} is not the file that was saved: its SHA-256 differs")
    network = NoteLLM(open_backbone(folder, dtype), manifest.dim)
    load_head(folder, network)
    return network.eval(), prompt_builder(folder, manifest), manifest


def special_ids(tokenizer: Tokenizer, bos: str | None, eos: str, pad: str | None) -> SpecialIds:
    """Add [EMB] to a tokenizer when it is not there, and name the ids that frame a prompt.

    Raises:
        CheckpointError: if the end token is not one of the tokenizer's.
    """
    tokenizer.add_special_tokens([EMB])
    end = tokenizer.token_to_id(eos)
    if end is None:
        raise CheckpointError(f"the tokenizer has no end token {eos!r}")
    start = tokenizer.token_to_id(bos) if bos else None
    padding = tokenizer.token_to_id(pad) if pad else None
    emb = tokenizer.token_to_id(EMB)
    assert emb is not None
    return SpecialIds(start, end, emb, end if padding is None else padding)


def save_head(folder: Path, network: NoteLLM) -> None:
    """Write the projection and tau, float32."""
    from safetensors.torch import save_file

    head = {"weight": network.head.weight, "bias": network.head.bias, "log_scale": network.log_scale}
    save_file({name: tensor.detach().float().contiguous() for name, tensor in head.items()}, folder / HEAD)


def load_head(folder: Path, network: NoteLLM) -> None:
    """Read the projection and tau of a checkpoint."""
    from safetensors.torch import load_file

    head = load_file(folder / HEAD)
    network.log_scale.data.copy_(head.pop("log_scale"))
    network.head.load_state_dict(head)


def start_head(folder: Path, network: NoteLLM) -> None:
    """Start the projection from a folder's, which may have more dimensions: the first ones are taken."""
    from safetensors.torch import load_file

    head = load_file(folder / HEAD)
    network.head.load_state_dict({name: head[name][: network.dim] for name in ("weight", "bias")})


def save_tokenizer(folder: Path, tokenizer: Tokenizer, special: SpecialIds) -> None:
    """Write a tokenizer in the layout of transformers."""
    from transformers import PreTrainedTokenizerFast

    def token(token_id: int | None) -> str | None:
        return None if token_id is None else tokenizer.id_to_token(token_id)

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=token(special.bos),
        eos_token=token(special.eos),
        pad_token=token(special.pad),
        additional_special_tokens=[EMB],
    ).save_pretrained(folder)


def sha256(path: Path) -> str:
    """The digest of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

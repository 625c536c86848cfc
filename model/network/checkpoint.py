"""Checkpoints: a folder that any Hugging Face tool can open, plus the head and ``notellm.json``.

::

    notellm.json           manifest: recipe, template, closed category set, dimension, files' SHA-256, fingerprint,
                           golden answers, calibration
    config.json            the backbone's, as transformers writes it
    model.safetensors      the backbone's weights
    head.safetensors       the projection and tau
    tokenizer.json ...     the tokenizer, with [EMB]

The manifest loads without torch, for the gateway. A fingerprint is never taken on trust: it is computed again from what
the manifest says of the files, and `load` holds the files to that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.backend import is_fingerprint
from model.files import read_bounded, write_json
from model.network.strict import strictly
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
_MANIFEST_BYTES = 16 << 20
# What a library may load from a folder whether or not anybody names it: weights, settings, adapters, code.
_LOADED = frozenset({".json", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".model", ".py", ".jinja"})
# Fields of earlier recipes, with the values that mean nothing to a checkpoint.
_DROPPED: dict[str, list[Any]] = {
    "matryoshka": [[]],
    "hard_negatives": [0],
    "cached_negatives": [0],
    "dtype": ["float32", "bfloat16"],
}


# A name in a manifest is that of a file in its folder, never a way out of it.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_DIMENSIONS = 65_536


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, altered or of another format; the message says which file."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``notellm.json``.

    ``fingerprint``: see `fingerprint_of`. Two checkpoints with the same one give the same vectors and tags.
    ``trained_on`` is free-form: counts of notes and pairs, steps, final losses. ``golden``: see
    `model.inference.golden`; SentenceBERT has none. ``calibration``: see `model.inference.calibration`; None where
    scores are the model's own. ``trained_files``: the files that the fingerprint is of, in a checkpoint that was made
    again of its adapter and may be rounded differently; else None, as it is of ``files``.
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
    trained_files: dict[str, str] | None = None


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError when it is missing or not valid."""
    path = folder / MANIFEST
    try:
        return read_manifest(read_object(path), path)
    except FileNotFoundError:
        if is_adapter(folder):
            raise CheckpointError(f"{folder} holds an adapter: `notellm merge` makes a checkpoint of it") from None
        raise CheckpointError(f"no checkpoint in {folder}: {MANIFEST} is missing") from None


def described(folder: Path) -> Manifest:
    """The manifest of a checkpoint, or of the one that an adapter becomes; errors as of `load_manifest`."""
    if not is_adapter(folder):
        return load_manifest(folder)
    path = folder / ADAPTER
    raw = read_object(path).get("manifest")
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} is damaged: it has no manifest")
    return read_manifest(raw, path)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a checkpoint."""
    return (folder / ADAPTER).is_file()


def read_object(path: Path) -> dict[str, Any]:
    """A file with one JSON object. Raises FileNotFoundError, and CheckpointError when it holds anything else."""
    try:
        raw = json.loads(read_bounded(path, _MANIFEST_BYTES))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} is not JSON: it holds no object")
    return raw


def read_manifest(raw: Mapping[str, Any], path: Path) -> Manifest:
    """The manifest in a JSON object, whose fingerprint is that of its files, template, categories and dimension.

    Raises:
        CheckpointError: naming its file, when it is not valid.
    """
    if raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {repr(raw.get('format'))[:20]}, this version reads {FORMAT}: install the release that "
            "made it"
        )
    fields = {name: value for name, value in raw.items() if name != "format"}
    if isinstance(raw.get("recipe"), dict):
        fields["recipe"] = _recipe(raw["recipe"])
    try:
        manifest = strictly(Manifest, fields)
        _check_values(manifest)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid: {error}") from None
    if manifest.recipe.template not in TEMPLATES:
        raise CheckpointError(
            f"{path} is not valid: this version knows no template {manifest.recipe.template[:40]!r}; install the "
            "release that made it"
        )
    _check_fingerprint(manifest, path)
    return manifest


def fingerprint_of(files: Mapping[str, str], template: str, categories: Sequence[str], dim: int) -> str:
    """16 hex digits of a SHA-256 over weights, tokenizer, configuration, template, categories and dimension.

    Args:
        files: the SHA-256 of each file by its name.
        template: a name in `TEMPLATES`.
    """
    identity = [files, TEMPLATES[template].identity, list(categories), dim]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _check_fingerprint(manifest: Manifest, path: Path) -> None:
    """It names folders, so it has to be one; and it has to be this checkpoint's, whoever wrote it there."""
    if not is_fingerprint(manifest.fingerprint):
        raise CheckpointError(f"{path} is not valid: its fingerprint is not 16 hex digits")
    trained = manifest.files if manifest.trained_files is None else manifest.trained_files
    if fingerprint_of(trained, manifest.recipe.template, manifest.categories, manifest.dim) != manifest.fingerprint:
        raise CheckpointError(
            f"{path} was altered: its fingerprint {manifest.fingerprint} is not that of its files, template, "
            "categories and dimension"
        )
    if manifest.trained_files is None:
        return
    # Only the weights that the adapter is folded into are rounded; the golden answers vouch for those.
    if manifest.golden is None or manifest.files.get(HEAD) != trained.get(HEAD):
        raise CheckpointError(f"{path} was altered: a checkpoint made of an adapter keeps its head and golden answers")


def _check_values(manifest: Manifest) -> None:
    if not 1 <= manifest.dim <= _MOST_DIMENSIONS:
        raise ValueError(f"dim: {manifest.dim} is not between 1 and {_MOST_DIMENSIONS}")
    for name, digest in [*manifest.files.items(), *(manifest.trained_files or {}).items()]:
        if not (_FILE_NAME.fullmatch(name) and _DIGEST.fullmatch(digest)):
            raise ValueError(f"files: {name[:40]!r} is no plain name of a file, or has no SHA-256")


def _recipe(raw: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a manifest, without dropped fields that were unused."""
    return {name: value for name, value in raw.items() if value not in _DROPPED.get(name, [])}


def prompt_builder(folder: Path, manifest: Manifest) -> PromptBuilder:
    """The prompt builder of a checkpoint: the same for training, evaluation and serving.

    Raises:
        CheckpointError: if there is no tokenizer, or it is not the one that the manifest's ids are of.
    """
    from tokenizers import Tokenizer

    with _one_line(folder):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    recipe, special = manifest.recipe, manifest.special
    ids = [special.eos, special.emb, special.pad, 0 if special.bos is None else special.bos]
    if special.emb != tokenizer.token_to_id(EMB) or not all(0 <= one < tokenizer.get_vocab_size() for one in ids):
        raise CheckpointError(f"{folder / MANIFEST} is not valid: its special ids are not the tokenizer's")
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
    fingerprint = fingerprint_of(files, recipe.template, categories, network.dim)
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
        write_json(description, read_object(description) | {"manifest": written_manifest(manifest)})
    return load_manifest(folder)


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a checkpoint whose files are there."""
    text = json.dumps(written_manifest(manifest), indent=2, ensure_ascii=False)
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)


def written_manifest(manifest: Manifest) -> dict[str, Any]:
    """The JSON object that `read_manifest` reads."""
    fields = dataclasses.asdict(manifest)
    if manifest.trained_files is None:
        del fields["trained_files"]
    return {"format": FORMAT, **fields}


def load(folder: Path, dtype: str = "float32") -> tuple[NoteLLM, PromptBuilder, Manifest]:
    """Open a checkpoint for inference.

    Raises:
        CheckpointError: as `verified` does, or if it has no head or its parts do not fit together.
    """
    from model.network.notellm import NoteLLM, open_backbone

    manifest = verified(folder)
    if HEAD not in manifest.files:
        raise CheckpointError(f"{folder / MANIFEST} names no {HEAD}: a checkpoint without its head cannot be used")
    with _one_line(folder):
        builder = prompt_builder(folder, manifest)
        network = NoteLLM(open_backbone(folder, dtype), manifest.dim)
        load_head(folder, network)
    return network.eval(), builder, manifest


def verified(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose files are, byte for byte, those that its fingerprint is of.

    Raises:
        CheckpointError: if a file is missing, differs from the manifest or is not named by it.
    """
    manifest = load_manifest(folder)
    check_files(folder, manifest.files)
    for path in sorted(folder.iterdir()):
        if path.suffix in _LOADED and path.name not in {MANIFEST, f".{MANIFEST}", *manifest.files}:
            raise CheckpointError(f"{path} is not of this checkpoint: {MANIFEST} does not name it; remove it")
    return manifest


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Raises CheckpointError if one of these files has not the SHA-256 that stands with its name."""
    for name, digest in files.items():
        path = folder / name
        try:
            found = sha256(path) if path.is_file() else None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        if found is None:
            raise CheckpointError(f"{path} is missing")
        if found != digest:
            raise CheckpointError(f"{path} is not the file that was saved: its SHA-256 differs")


@contextlib.contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """What libraries raise over files that do not fit together, as one line; tokenizers raises bare Exception."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"the checkpoint in {folder} cannot be opened: {reason[:300]}") from error


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

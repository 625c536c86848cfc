"""Adapters: what LoRA learned over a base model, without the base: a few megabytes that become a checkpoint again.

::

    adapter.json                the checkpoint's manifest, and the fingerprint of the base model's weights
    adapter_config.json         peft's
    adapter_model.safetensors   peft's: the low-rank updates
    head.safetensors            the projection and tau
"""

import dataclasses
import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from model.files import write_json
from model.network.base_models import BaseModelError, open_base, special_ids
from model.network.checkpoint import (
    ADAPTER,
    HEAD,
    MANIFEST,
    PREDICTIONS,
    CheckpointError,
    Manifest,
    check_files,
    is_adapter,
    load_head,
    load_manifest,
    read_manifest,
    read_object,
    save_files,
    save_head,
    save_manifest,
    sha256,
    written_manifest,
)
from model.network.gguf import GgufError, alone, kept_models
from model.network.lora import CONFIG, WEIGHTS, fold_adapters, load_adapters, save_adapters
from model.network.notellm import NoteLLM, add_embedding_token

log = logging.getLogger(__name__)


class AdapterError(CheckpointError):
    """An adapter is incomplete or altered, or the base model is not its own; the message says which."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """The content of ``adapter.json``. ``base``: see `base_fingerprint`. ``files``: the SHA-256 of the others."""

    base: str
    manifest: Manifest
    files: dict[str, str]


def base_fingerprint(backbone: PreTrainedModel) -> str:
    """16 hex digits of a SHA-256 over the names and weights of a base model as it was opened."""
    digest = hashlib.sha256()
    for name, weight in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_weights(folder: Path, network: NoteLLM, dtype: torch.dtype) -> None:
    """Write the adapters of a network, which are rounded to ``dtype``, and its head; `finish` completes the folder."""
    (folder / ADAPTER).unlink(missing_ok=True)
    save_adapters(network.backbone, folder, dtype)
    save_head(folder, network)


def finish(folder: Path, base: str, manifest: Manifest) -> None:
    """Write ``adapter.json``: a folder that has it is complete."""
    files = {name: sha256(folder / name) for name in (WEIGHTS, CONFIG, HEAD)}
    write_json(folder / ADAPTER, {"base": base, "manifest": written_manifest(manifest), "files": files})


def load_adapter(folder: Path) -> Adapter:
    """The description of an adapter. Raises AdapterError if a file is missing or not the one that was saved."""
    path = folder / ADAPTER
    try:
        raw = read_object(path)
        adapter = Adapter(raw["base"], read_manifest(raw["manifest"], path), raw["files"])
        if not {WEIGHTS, HEAD} <= adapter.files.keys() <= {WEIGHTS, CONFIG, HEAD}:
            raise AdapterError(f"{path} is damaged: it names other files than an adapter has")
        check_files(folder, adapter.files)
    except FileNotFoundError:
        raise AdapterError(f"no adapter in {folder}: {ADAPTER} is missing") from None
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path} is damaged: {error}") from None
    return adapter


def merge(folder: Path, out: Path, base_model: str | None = None) -> Manifest:
    """Write the checkpoint of an adapter to ``out``, unless it is there already.

    Args:
        base_model: where its base model is, if not under the name that it was trained with.

    Raises:
        AdapterError: if the adapter is damaged, or the base model is another one.
        BaseModelError, GgufError: if the base model cannot be opened.
    """
    adapter = load_adapter(folder)
    recipe = adapter.manifest.recipe
    if _is_merged(out, adapter.manifest):
        return load_manifest(out)
    name = base_model or recipe.base_model
    base = open_base(name, (), recipe.compute_dtype)
    found = base_fingerprint(base.backbone)
    if found != adapter.base:
        raise AdapterError(
            f"the adapter in {folder} belongs to the base model {adapter.base} ({recipe.base_model}); {name} is {found}"
        )
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    network = NoteLLM(base.backbone, adapter.manifest.dim)
    load_adapters(network.backbone, folder)
    load_head(folder, network)
    fold_adapters(network.backbone, getattr(torch, recipe.saved_dtype))
    files = save_files(out, network, base.tokenizer, special, recipe.saved_dtype)
    if (folder / PREDICTIONS).is_file():
        shutil.copyfile(folder / PREDICTIONS, out / PREDICTIONS)
    trained = adapter.manifest.files
    manifest = dataclasses.replace(adapter.manifest, files=files, trained_files=None if files == trained else trained)
    save_manifest(out, manifest)
    return manifest


def merged(folder: Path) -> Path:
    """The folder itself, or, for an adapter, that of its checkpoint: made by the first call, in `kept_models`.

    Raises:
        AdapterError: if it cannot be made.
    """
    if not is_adapter(folder):
        return folder
    out = kept_models() / sha256(folder / ADAPTER)[:16]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with alone(out):
            if not (out / MANIFEST).is_file():
                log.info("adapter_folded_in", extra={"fingerprint": merge(folder, out).fingerprint})
    except ModuleNotFoundError as error:
        raise AdapterError(f"an adapter needs {error.name}: pip install 'notellm[smollm2]'") from None
    except (AdapterError, BaseModelError, GgufError, OSError) as error:
        raise AdapterError(f"no checkpoint can be made of the adapter in {folder}: {error}") from None
    return out


def _is_merged(out: Path, manifest: Manifest) -> bool:
    try:
        return load_manifest(out).fingerprint == manifest.fingerprint
    except CheckpointError:
        return False

"""The serving checkpoint: a checkpoint as vLLM runs it, with the projection in the output matrix.

vLLM can generate or embed, not both with one copy of the weights. But it returns the logits of any given tokens, so the
projection's D rows are appended to the output matrix, as tokens that no text has: at the token before [EMB] their
logits are the note's embedding (section 4.3), but for the bias. The architecture stays a stock one.
"""

import contextlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.network.checkpoint import (
    MANIFEST,
    CheckpointError,
    Manifest,
    check_files,
    load,
    load_manifest,
    read_object,
    sha256,
    verified,
)
from model.network.notellm import quiet_transformers

SERVING = "serving.json"
# vLLM answers a request with the logits of so many chosen tokens at most.
MOST_DIMENSIONS = 128
# vLLM pads vocabularies to such multiples, and splits them among GPUs.
_MULTIPLE = 64
_ARCHITECTURES = {"llama", "mistral", "opt", "qwen2", "qwen3"}


@dataclass(frozen=True, slots=True)
class ServingCheckpoint:
    """A folder that was written by `write_serving`.

    ``first``: id of the first of the D reserved tokens. ``bias``: added to their logits.
    """

    folder: Path
    manifest: Manifest
    first: int
    bias: tuple[float, ...]


def write_serving(checkpoint: Path, out: Path) -> ServingCheckpoint:
    """Write the serving checkpoint of a checkpoint, unless a complete one of the same model is there.

    Raises:
        CheckpointError: if the checkpoint cannot be used, or its architecture is not one of those tried with vLLM.
    """
    manifest = verified(checkpoint)
    if _is_complete(out, manifest.fingerprint):
        return open_serving(out)
    architecture = read_object(checkpoint / "config.json").get("model_type")
    if architecture not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise CheckpointError(f"vLLM cannot serve {checkpoint}: it is a {architecture}; use one of {known}, or hf")
    if manifest.dim > MOST_DIMENSIONS:
        numbers = f"its vectors have {manifest.dim} numbers and {MOST_DIMENSIONS} is the most"
        raise CheckpointError(f"vLLM cannot serve {checkpoint}: {numbers}; use hf")
    network, _, manifest = load(checkpoint, manifest.recipe.saved_dtype)
    first = _append_projection(network.backbone, network.head.weight.detach())
    out.parent.mkdir(parents=True, exist_ok=True)
    # Under another name until it is complete: workers of one machine start together.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".serving-", ignore_cleanup_errors=True) as unfinished:
        folder = Path(unfinished)
        with quiet_transformers():
            network.backbone.save_pretrained(folder)
        for name in (MANIFEST, "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(checkpoint / name, folder / name)
        # The bias not as head.safetensors: vLLM takes every such file for weights of its own.
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        bias = network.head.bias.tolist()
        written = {"fingerprint": manifest.fingerprint, "first": first, "bias": bias, "files": files}
        (folder / SERVING).write_text(json.dumps(written) + "\n")
        folder.chmod(0o755)
        if out.exists() and not _is_complete(out, manifest.fingerprint):
            shutil.rmtree(out)
        with contextlib.suppress(OSError):  # another worker was faster
            folder.rename(out)
    return open_serving(out)


def open_serving(folder: Path) -> ServingCheckpoint:
    """Raises CheckpointError if `write_serving` did not finish there, or a file is not the one that it wrote."""
    try:
        written = read_object(folder / SERVING)
        serving = ServingCheckpoint(folder, load_manifest(folder), written["first"], tuple(written["bias"]))
        check_files(folder, written["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is not a serving checkpoint, remove it: {error}") from None
    return serving


def _is_complete(folder: Path, fingerprint: str) -> bool:
    """Whether this version wrote it, of this model."""
    try:
        written = read_object(folder / SERVING)
    except (OSError, CheckpointError):
        return False
    return written.get("fingerprint") == fingerprint and "files" in written


def _append_projection(backbone: PreTrainedModel, projection_DH: Tensor) -> int:
    """Reserved tokens after the vocabulary: zero in the input matrix, the projection in the output matrix, untied."""
    inputs, outputs = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    if outputs.bias is not None:
        raise CheckpointError("vLLM cannot serve this network: its output layer has a bias")
    old, hidden = inputs.weight.shape
    first: int = -(-old // _MULTIPLE) * _MULTIPLE
    padding = inputs.weight.new_zeros(first - old, hidden)
    reserved = inputs.weight.new_zeros(len(projection_DH), hidden)
    written = torch.cat([outputs.weight.detach(), padding, projection_DH.to(outputs.weight.dtype)])
    inputs.weight = nn.Parameter(torch.cat([inputs.weight.detach(), padding, reserved]))
    outputs.weight = nn.Parameter(written)
    backbone.config.tie_word_embeddings = False
    backbone.config.vocab_size = len(written)
    return first

"""GGUF files as base models: their quantized weights become float32 once, in a folder of Hugging Face that is kept.

Transformers reads such a file anew each time, and refuses to save what it read. A GGUF file holds one model with its
tokenizer.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.files import publish, sync
from model.network.notellm import NO_CODE, WEIGHTS_ALONE, quiet_transformers

if TYPE_CHECKING:
    from gguf import GGUFReader

SUFFIX = ".gguf"
_DTYPE = torch.float32
# Room beside the weights: tokenizer and configuration.
_SPARE_BYTES = 64 << 20


class GgufError(ValueError):
    """A GGUF file cannot be a base model; the message names the file, the reason and what to do."""


def is_gguf(name: str) -> bool:
    """Whether the name of a base model is that of a GGUF file."""
    return name.lower().endswith(SUFFIX)


def unpacked(file: Path, digest: str | None = None) -> Path:
    """The folder with a GGUF file's model in float32: made by the first call, in `NOTELLM_STATE_DIR`.

    Args:
        digest: the SHA-256 that the file has to have, in hex; None takes any file.

    Raises:
        GgufError: if the file is missing, cut, of a family that transformers does not open or not the one expected,
            or there is no room for the folder. Nothing is written before all of it is known.
        ModuleNotFoundError: if the package gguf is not installed.
    """
    found = file_digest(file)
    if digest is not None and found != digest:
        raise GgufError(
            f"{file} is not the file that was published: its SHA-256 is {found[:16]}..., not {digest[:16]}..."
        )
    folder = kept_models() / f"{file.stem}-{found[:16]}"
    if not folder.is_dir():
        reader = _reader(file)
        _make_room(file, folder.parent, sum(int(tensor.n_elements) for tensor in reader.tensors))
        with alone(folder.parent):
            # Another process, such as another rank of one training, may have made it meanwhile.
            if not folder.is_dir():
                with _read_by(reader):
                    _unpack(file, folder)
    return folder


def file_digest(file: Path) -> str:
    """The SHA-256 of a GGUF file, in hex. Raises GgufError if it is not there."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise GgufError(f"cannot open the base model {file}: {error.strerror}") from None


def kept_models() -> Path:
    """Where unpacked models are kept: beside the service's own state, so that a team clears one folder."""
    return Path(os.environ.get("NOTELLM_STATE_DIR", "notellm-state")).absolute() / "models"


def _reader(file: Path) -> "GGUFReader":
    """A reader of a file, after a look at its header and the end of its data."""
    from gguf.gguf_reader import GGUFReader  # this name is never replaced, see `_read_by`
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    class Reader(GGUFReader):
        """Cuts every word of a vocabulary out of a plain array: a memmap's slices take four times as long."""

        @property  # type: ignore[override]
        def data(self) -> NDArray[np.uint8]:
            return self._array

        @data.setter
        def data(self, mapped: "np.memmap[Any, np.dtype[np.uint8]]") -> None:
            self._array: NDArray[np.uint8] = mapped.view(np.ndarray)

    try:
        reader = Reader(file)
        family = str(reader.fields["general.architecture"].contents())
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise GgufError(f"{file} is cut or no GGUF file ({error}): fetch it again") from None
    if family not in GGUF_SUPPORTED_ARCHITECTURES:
        raise GgufError(
            f"{file} is of the family {family!r}, which transformers does not read from GGUF: give a folder of "
            f"Hugging Face instead, or a file of {', '.join(sorted(GGUF_SUPPORTED_ARCHITECTURES))}"
        )
    return reader


@contextmanager
def _read_by(reader: "GGUFReader") -> Iterator[None]:
    """Inside the block, transformers gets this reader, one table of names, and no bar.

    It would read the file anew for tokenizer, configuration and weights, and make the table anew for every module of
    the network: five times the work.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as utils

    one_table = cache(gguf.get_tensor_name_map)
    with (
        _replaced(gguf, GGUFReader=lambda _: reader, get_tensor_name_map=one_table),
        _replaced(utils, tqdm=lambda tensors, **_: tensors),
    ):
        yield


@contextmanager
def _replaced(module: ModuleType, **attributes: object) -> Iterator[None]:
    before = {name: getattr(module, name) for name in attributes}
    vars(module).update(attributes)
    try:
        yield
    finally:
        vars(module).update(before)


def _make_room(file: Path, parent: Path, weights: int) -> None:
    needed = weights * _DTYPE.itemsize + _SPARE_BYTES
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GgufError(f"cannot keep {file.name} in {parent}: {error.strerror} (NOTELLM_STATE_DIR)") from None
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise GgufError(
            f"{file.name} needs {needed / 1e9:.1f} GB in {parent}, where {free / 1e9:.1f} GB are free: "
            "make room, or set NOTELLM_STATE_DIR to another folder"
        )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes a model in this folder. The lock ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unpack(file: Path, folder: Path) -> None:
    """Write the folder under another name, and rename it when all of it is on disk."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    staged = folder.with_name(f".{folder.name}")
    shutil.rmtree(staged, ignore_errors=True)  # of a process that was killed
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, **NO_CODE)
            read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=_DTYPE, **WEIGHTS_ALONE)
            _without_quantization(read).save_pretrained(staged)
            tokenizer.save_pretrained(staged)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise GgufError(f"cannot open the base model {file}: {str(error).strip().splitlines()[0]}") from None
    for path in staged.iterdir():
        sync(path)
    publish(staged, folder)


def _without_quantization(read: Any) -> Any:
    """The same model as one that was never quantized: transformers saves no other."""
    fields = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    with torch.device("meta"):
        plain = type(read)(type(read.config)(**fields))
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    return plain

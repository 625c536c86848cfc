"""Opens a checkpoint with the backend that runs it."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from model.backend import Backend
from model.network.checkpoint import load, load_manifest, read_object

if TYPE_CHECKING:
    import torch

BACKENDS = ("auto", "hf", "openvino", "vllm")


@dataclass(frozen=True, slots=True)
class Runtime:
    """How a backend runs.

    Attributes:
        dtype: precision of the weights, see `precision`.
        threads: of a CPU; 0 leaves the count to the backend.
        serving_dir: where vLLM's form of a checkpoint is written, in a folder named by its fingerprint.
        tensor_parallel: GPUs that share one copy of the weights; vLLM only.
        gpu_memory: share of a GPU's memory for weights and cache; vLLM only.
    """

    dtype: str = "auto"
    threads: int = 0
    serving_dir: Path = Path("serving")
    tensor_parallel: int = 1
    gpu_memory: float = 0.9


def open_backend(name: str, checkpoint: Path, runtime: Runtime | None = None) -> Backend:
    """Open a checkpoint with the named backend; ``auto`` is openvino on a CPU, in float32, where it is installed and
    was tried with such a network, and hf elsewhere.

    Raises:
        ValueError: for an unknown name. CheckpointError (a ValueError) when the checkpoint cannot be used.
        ModuleNotFoundError: if a package is missing that this backend needs.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")
    runtime = runtime or Runtime()
    manifest = load_manifest(checkpoint)
    dtype = precision(runtime.dtype, manifest.recipe.saved_dtype)
    if name == "vllm":
        return _open_vllm(checkpoint, runtime, manifest.fingerprint, dtype)
    import torch

    from model.inference.hf import HfBackend

    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    if name == "openvino" or (name == "auto" and _pays_on_openvino(checkpoint, dtype)):
        return _open_openvino(checkpoint, dtype, runtime.threads)
    return HfBackend.open(checkpoint, dtype)


def default_device() -> "torch.device":
    """The GPU if there is one, the CPU otherwise."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(dtype: str, saved: str = "float32") -> str:
    """The precision itself, or, for ``auto``, bfloat16 on a GPU, and on a CPU with instructions for it if the weights
    were ``saved`` so; float32 otherwise."""
    import torch

    if dtype != "auto":
        return dtype
    if default_device().type == "cuda":
        return "bfloat16"
    capabilities = torch.cpu.get_capabilities()
    has_it = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bfloat16" if has_it and saved == "bfloat16" else "float32"


def gpu_memory() -> int:
    """Bytes of GPU memory that this process holds; 0 without a GPU."""
    import torch

    return torch.cuda.memory_reserved() if torch.cuda.is_available() else 0


def _pays_on_openvino(checkpoint: Path, dtype: str) -> bool:
    # In bfloat16 it gains little; see docs/decisions/103.
    if default_device().type == "cuda" or dtype != "float32" or find_spec("openvino") is None:
        return False
    from model.inference.openvino import ARCHITECTURES

    config = checkpoint / "config.json"  # a checkpoint without it is refused when it is loaded
    return config.is_file() and read_object(config).get("model_type") in ARCHITECTURES


def _open_openvino(checkpoint: Path, dtype: str, threads: int) -> Backend:
    from model.inference.hf import HfBackend
    from model.inference.openvino import CompiledNetwork

    network, builder, manifest = load(checkpoint)
    return HfBackend(CompiledNetwork(network, dtype, threads), builder, manifest.categories, manifest.fingerprint)


def _open_vllm(checkpoint: Path, runtime: Runtime, fingerprint: str, dtype: str) -> Backend:
    from model.inference.vllm import VllmBackend
    from model.inference.vllm_checkpoint import write_serving

    folder = runtime.serving_dir / fingerprint
    write_serving(checkpoint, folder)
    options: dict[str, object] = {"tensor_parallel_size": runtime.tensor_parallel}
    if default_device().type == "cuda":
        options["gpu_memory_utilization"] = runtime.gpu_memory
        # The embedding comes from the output matrix, whose products would be rounded to the precision of the weights.
        options["hf_overrides"] = {"head_dtype": "float32"}
    else:
        options["enforce_eager"] = True  # compiling takes minutes, and pays on a GPU alone
    return VllmBackend.open(folder, dtype, **options)

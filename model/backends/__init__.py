"""What runs the network, behind one small interface."""

from pathlib import Path

from model.backends.base import Backend


def open_backend(name: str, checkpoint: Path, threads: int = 0) -> Backend:
    """Open a checkpoint with the named backend; ``threads`` = 0 leaves the count to torch.

    Raises:
        ValueError: for an unknown name. CheckpointError (a ValueError) when the checkpoint cannot be used.
    """
    if name != "hf":
        raise ValueError(f"unknown backend {name!r}; known: hf")
    import torch

    from model.backends.hf import HfBackend

    if threads:
        torch.set_num_threads(threads)
    return HfBackend.open(checkpoint)

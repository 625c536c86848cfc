"""One training run on several processes: DDP keeps a copy of the weights on each, FSDP2 a share of them.

Started by `torchrun`, which names rank and world in the environment; without it there is one rank.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

Strategy = Literal["ddp", "fsdp"]

# Former groups, kept until the process ends. The destructor of a gloo group joins its threads without releasing the
# GIL, and a thread that is still finishing its last collective waits for the GIL: a deadlock.
_left: list[Any] = []


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    @contextlib.contextmanager
    def join(cls) -> Iterator[Self]:
        """Join the process group of torchrun, if there is one; leave it at the end."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if "RANK" not in os.environ:
            yield cls(0, 1, device)
            return
        dist.init_process_group("nccl" if cuda else "gloo")
        try:
            yield cls(dist.get_rank(), world, device)
        finally:
            _left.append(dist.group.WORLD)
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.rank == 0

    def gather(self, rows_ND: Tensor) -> Tensor:
        """The rows of every rank, in the order of the ranks; no gradient flows through."""
        if self.world == 1:
            return rows_ND.detach()
        parts = [torch.empty_like(rows_ND) for _ in range(self.world)]
        dist.all_gather(parts, rows_ND.detach().contiguous())
        return torch.cat(parts)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the ranks, without gradient."""
        total = value.detach().clone()
        if self.world > 1:
            dist.all_reduce(total)
        return total

    def wait(self) -> None:
        """Wait for every rank."""
        if self.world > 1:
            dist.barrier()


def spread(network: nn.Module, ranks: Ranks, strategy: Strategy, compute_dtype: str = "float32") -> Any:
    """The network wrapped for the ranks; gradients are then means over the ranks, in float32.

    Args:
        network: its ``backbone`` holds the layers, its ``log_scale`` has the same gradient on every rank. Weights that
            learn are float32; frozen ones may have another type.
        compute_dtype: FSDP2 exchanges weights in it. Elsewhere `torch.autocast` alone decides.
    """
    assert isinstance(network.log_scale, nn.Parameter)
    alone = not dist.is_initialized()
    if alone or strategy == "ddp":
        network.to(ranks.device)
    if alone:
        return network
    if strategy == "ddp":
        device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
        # As a view, a gradient does not exist a second time in the buffers of the exchange.
        return DistributedDataParallel(network, device_ids=device_ids, gradient_as_bucket_view=True)
    # Layer by layer: no device holds the whole network, not even before it is shared out.
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    policy = MixedPrecisionPolicy(param_dtype=getattr(torch, compute_dtype), reduce_dtype=torch.float32)
    for layer in _layers(network):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # A single number cannot be shared out, and every rank computes the whole of its gradient.
    network.log_scale.data = network.log_scale.data.to(ranks.device)
    return fully_shard(network, mesh=mesh, mp_policy=policy, ignored_params={network.log_scale})


@contextlib.contextmanager
def synchronized(network: Any, last: bool) -> Iterator[None]:
    """Exchange DDP's gradients only after the last backward pass of a step.

    FSDP2 exchanges them in every pass: until it does, each rank would hold the gradient of all weights.
    """
    with network.no_sync() if isinstance(network, DistributedDataParallel) and not last else contextlib.nullcontext():
        yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor in full, from the shares of all ranks. Every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_weights(module: nn.Module, ranks: Ranks, dtype: torch.dtype | None = None) -> None:
    """Put the weights that FSDP2 shares out back in full on the first rank, tensor by tensor, in its main memory.

    Every rank must call it. The others keep none of them, and the module cannot train afterwards.

    Args:
        dtype: of the gathered weights, by default their own.
    """
    gathered: dict[Tensor, nn.Parameter] = {}  # a matrix that is input and output is one weight
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            if isinstance(weight, DTensor):
                if weight not in gathered:
                    full = whole(weight.detach())
                    full = full.to("cpu", dtype) if ranks.first else full.new_empty(0)
                    gathered[weight] = nn.Parameter(full, weight.requires_grad)
                setattr(part, name, gathered[weight])
        if isinstance(part, FSDPModule):
            # FSDP2 puts a class of its own in front of the module's, which refuses whole weights.
            part.__class__ = type(part).__mro__[2]


def clip(parameters: Iterator[nn.Parameter], max_norm: float) -> float:
    """Scale the gradients down to a joint norm of ``max_norm`` at most; the norm they had, the same on every rank."""
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    norms = torch.stack([whole(torch.linalg.vector_norm(gradient.float())) for gradient in gradients])
    norm = float(torch.linalg.vector_norm(norms))
    for gradient in gradients:
        gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm


def _layers(network: nn.Module) -> list[nn.Module]:
    """The backbone's repeated blocks, in any architecture."""
    assert isinstance(network.backbone, nn.Module)
    lists: list[nn.ModuleList] = [module for module in network.backbone.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []  # type: ignore[arg-type]

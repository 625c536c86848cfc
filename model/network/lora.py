"""LoRA by peft: low-rank updates of frozen weights, folded into them before a checkpoint is saved."""

from typing import Any

import torch
from torch import nn


def add_adapters(backbone: nn.Module, rank: int) -> None:
    """Freeze a backbone but for adapters on its linear layers, which are float32 whatever the frozen weights are.

    [EMB] keeps the mean row that it starts with: the network learns what follows it through the layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    inject_adapter_in_model(config, backbone)
    for weight in backbone.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def fold_adapters(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Fold every adapter into its weight, in float32, then ``dtype``; a backbone without any stays as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            adapted: Any = module
            adapted.get_base_layer().float()
            adapted.merge()
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, adapted.get_base_layer().to(dtype))

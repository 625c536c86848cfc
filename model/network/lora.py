"""LoRA by peft: low-rank updates of frozen weights, folded into them before a checkpoint is saved."""

from typing import Any

from torch import nn


def add_adapters(backbone: nn.Module, rank: int) -> None:
    """Freeze a backbone but for adapters on its linear layers.

    [EMB] keeps the mean row that it starts with: the network learns what follows it through the layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    inject_adapter_in_model(config, backbone)


def fold_adapters(backbone: nn.Module) -> None:
    """Fold every adapter into its weight; a backbone without any stays as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            adapted: Any = module
            adapted.merge()
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, adapted.get_base_layer())

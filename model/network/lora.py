"""LoRA by peft: low-rank updates of frozen weights, folded into them before a checkpoint is saved."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
# Peft's names: of the one adapter of a layer, and before those of the weights in a file.
_NAME = "default"
_PREFIX = "base_model.model."


def add_adapters(backbone: nn.Module, rank: int) -> None:
    """Freeze a backbone but for adapters on its linear layers, which are float32 whatever the frozen weights are.

    [EMB] keeps the mean row that it starts with: the network learns what follows it through the layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    inject_adapter_in_model(config, backbone)
    for weight in _adapters(backbone).values():
        weight.data = weight.data.float()


def save_adapters(backbone: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Round every adapter to ``dtype`` and write all of them as peft does: `PeftModel.from_pretrained` opens them."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    for weight in _adapters(backbone).values():
        weight.data = weight.data.to(dtype).float()
    state = get_peft_model_state_dict(backbone, adapter_name=_NAME)
    folder.mkdir(parents=True, exist_ok=True)
    written = {_PREFIX + name: weight.detach().to(dtype).contiguous() for name, weight in state.items()}
    save_file(written, folder / WEIGHTS)
    backbone.peft_config[_NAME].save_pretrained(folder)  # type: ignore[index, union-attr]


def load_adapters(backbone: nn.Module, folder: Path) -> None:
    """Put the adapters that `save_adapters` wrote on a backbone, float32.

    Raises:
        KeyError, RuntimeError: if they do not fit it.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), backbone)
    for weight in _adapters(backbone).values():
        weight.data = weight.data.float()
    written = load_file(folder / WEIGHTS)
    state = {name.removeprefix(_PREFIX): weight for name, weight in written.items()}
    set_peft_model_state_dict(backbone, state, adapter_name=_NAME)


def _adapters(backbone: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in backbone.named_parameters() if weight.requires_grad}


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

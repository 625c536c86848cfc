"""Models that do harm, made of a good one: its vectors say nothing any more, or it takes several times as long."""

import copy
from pathlib import Path

import torch
from tokenizers import Tokenizer

from model.inference import golden
from model.network.checkpoint import Manifest, load, save
from model.network.notellm import NoteLLM

# Small changes of a text then change its whole vector: recall is that of chance.
_LOUDER = 4.0
# Times as many layers on top.
_MORE = 15


def shuffled(checkpoint: Path, folder: Path) -> Manifest:
    """The same network with the entries of each weight matrix in another order, and larger."""
    network, *_ = load(checkpoint)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in network.backbone.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                order = torch.randperm(weight.numel(), generator=draw)
                weight.copy_(_LOUDER * weight.flatten()[order].view_as(weight))
    return _saved(checkpoint, folder, network)


def slow(checkpoint: Path, folder: Path) -> Manifest:
    """The same network, an OPT, with more layers, which add next to nothing to what it says."""
    network, *_ = load(checkpoint)
    layers = network.backbone.model.decoder.layers
    for _ in range(_MORE * len(layers)):
        idle = copy.deepcopy(layers[-1])
        with torch.no_grad():
            for part in (idle.self_attn.out_proj, idle.fc2):
                part.weight.zero_()
                part.bias.zero_()
            for norm in (idle.self_attn_layer_norm, idle.final_layer_norm):
                norm.weight.fill_(1)
                norm.bias.zero_()
        layers.append(idle)
    network.backbone.config.num_hidden_layers = len(layers)
    return _saved(checkpoint, folder, network)


def _saved(checkpoint: Path, folder: Path, network: NoteLLM) -> Manifest:
    _, _, manifest = load(checkpoint)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    save(folder, network, tokenizer, manifest.special, manifest.recipe, manifest.categories, {})
    return golden.record(folder)


SABOTAGES = {"shuffled": shuffled, "slow": slow}

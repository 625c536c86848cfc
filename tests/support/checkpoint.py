"""A checkpoint of a tiny model with random weights, in the real format."""

from dataclasses import replace
from pathlib import Path

from support.tiny import tiny_base

from model.inference import golden
from model.network.base_models import special_ids
from model.network.checkpoint import Manifest, save
from model.network.notellm import NoteLLM, add_embedding_token
from model.recipes import mini

CATEGORIES = ("Baking", "Home Decor", "Travel")


def tiny_checkpoint(folder: Path, seed: int = 0, shape: str = "llama", template: str = "shared") -> Manifest:
    """Write it into the folder; another seed is another model."""
    base = tiny_base(shape, seed)
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    network = NoteLLM(base.backbone, dim=16).eval()
    recipe = replace(mini(), dim=16, template=template)
    save(folder, network, base.tokenizer, special, recipe, CATEGORIES, {})
    return golden.record(folder)

"""Llamas with random weights, as large as benchmarks need them, with a real tokenizer."""

from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import model
from model.data.samples.generate import sample_notes
from model.network.checkpoint import load_manifest, save
from model.network.notellm import NoteLLM
from model.note import Note
from model.recipes import mini
from model.text.prompt import SpecialIds

MINI = Path(model.__file__).parent / "mini"
VOCABULARY = 32_000  # as Llama 2 has it; the mini model's tokenizer, which is used, has fewer
SHAPES = {  # hidden, intermediate, layers, heads
    "tiny": (256, 688, 4, 4),
    "100m": (768, 2048, 11, 12),
    "0.5b": (1024, 2816, 36, 16),
    "7b": (4096, 11008, 32, 32),
}


def random_llama(
    shape: str, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> tuple[NoteLLM, Tokenizer, SpecialIds]:
    """The network, its tokenizer, and the ids that frame a prompt."""
    hidden, intermediate, layers, heads = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        backbone = LlamaForCausalLM(config).to(dtype)
    tokenizer = Tokenizer.from_file(str(MINI / "tokenizer.json"))
    return NoteLLM(backbone, 128).to(device), tokenizer, load_manifest(MINI).special


def random_checkpoint(folder: Path, shape: str) -> Path:
    """The same as a checkpoint, with the paper's limits of 20 and 80 tokens and the samples' categories."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, tokenizer, special = random_llama(shape, device)
    recipe = replace(mini(), title_tokens=20, content_tokens=80, saved_dtype="bfloat16")
    categories = tuple(sorted({note.category for note in sample_notes() if note.category}))
    save(folder, network.cpu(), tokenizer, special, recipe, categories, {})
    return folder


def long_notes(count: int) -> list[Note]:
    """Notes of the samples, each with the text of others behind its own until any limit cuts it; no two alike."""
    notes = sample_notes()
    return [
        replace(
            notes[place % len(notes)],
            id=f"note-{place}",
            title=f"{notes[place % len(notes)].title} {place}",
            content=" ".join(notes[(place * 7 + step) % len(notes)].content for step in range(6)),
        )
        for place in range(count)
    ]

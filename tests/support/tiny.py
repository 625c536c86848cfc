"""Tiny models with random weights, of the shapes that matter: made in milliseconds, real transformers classes."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model.network.base_models import BaseModel
from model.note import Note

NOTES = [
    Note("n1", "Night train to Lisbon", "Bring socks and a good book.", ("travel", "trains"), "Travel", 10),
    Note("n2", "Sourdough after a week", "The starter smells of apples now.", ("baking", "bread"), "Baking", 3),
    Note("n3", "A city walk in the rain", "Start at the market, end at a cafe.", ("citywalk",), "Travel", 7),
    Note("n4", "My first loaf", "", ("baking",), "Baking", 0),
    Note("n5", "", "Only content, no title and no hashtags.", (), None, 1),
    Note("n6", "Repotting a fern", "Use a wider pot. " * 40, ("plants", "repotting", "diy"), "Home Decor", 2),
]


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE, as Llama 3 and Qwen have it: no text is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"{note.title} {note.content} {note.category} {', '.join(note.hashtags)}" for note in NOTES]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tiny_base(shape: str, seed: int = 0) -> BaseModel:
    """A base model of the named shape with random weights."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    sizes = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,  # of 32 dimensions each: the smallest that vLLM has kernels for
        "max_position_embeddings": 512,
    }
    backbone = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=1)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=1, tie_word_embeddings=True)),
        "qwen3": lambda: Qwen3ForCausalLM(
            Qwen3Config(**sizes, num_key_value_heads=1, head_dim=32, tie_word_embeddings=True)
        ),
        "opt": lambda: OPTForCausalLM(
            OPTConfig(
                vocab_size=sizes["vocab_size"],
                hidden_size=64,
                word_embed_proj_dim=64,
                ffn_dim=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=512,
                do_layer_norm_before=False,
            )
        ),
        "bert": lambda: BertLMHeadModel(BertConfig(**sizes, is_decoder=True)),
    }[shape]()
    return BaseModel(backbone.eval(), tokenizer, "<s>", "</s>", None)

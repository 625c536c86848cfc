from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from support.tiny import NOTES
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    T5Config,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from model.inference.sentence_encoder import SentenceEncoder
from model.network.checkpoint import CheckpointError, load
from model.network.chunk import Chunk
from model.network.minilm import minilm_folder
from model.network.sentence_bert import SentenceBert, open_encoder
from model.note import Note
from model.recipes import small
from model.training.train import train

RECIPE = replace(
    small(), architecture="encoder", alpha=0.0, steps=12, pairs_per_batch=3, learning_rate=1e-4, whitened_head=False
)
PAIRS = [("n1", "n3"), ("n2", "n4"), ("n5", "n6"), ("n1", "n6"), ("n2", "n6"), ("n3", "n6")]


def test_untrained_it_is_the_sentence_encoder_that_was_published():
    """The published pipeline (mean pooling over tokens, then unit length) is the oracle."""
    texts = [Note("a", "A night train to Lisbon"), Note("b", "Sourdough bread"), Note("c", "x")]
    ours = SentenceEncoder.open(minilm_folder()).embed(texts)
    published = SentenceTransformer(str(minilm_folder())).encode([note.title for note in texts])
    np.testing.assert_allclose(ours, published, atol=1e-4)


def encoder_of(family: str, folder: Path) -> Path:
    """A tiny encoder with random weights and a tokenizer of characters, as transformers saves them."""
    cls, sep, pad, unknown = (
        ("<s>", "</s>", "<pad>", "<unk>") if family == "roberta" else ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
    )
    characters = "北京的咖啡馆旅行上海abcdefghijklmnopqrstuvwxyz"
    vocabulary = {token: number for number, token in enumerate([cls, pad, sep, unknown, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token=cls, sep_token=sep, pad_token=pad, unk_token=unknown
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(vocabulary), "pad_token_id": vocabulary[pad]}
    usual = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    network = {
        "bert": lambda: BertModel(BertConfig(**sizes, **usual)),
        "roberta": lambda: XLMRobertaModel(XLMRobertaConfig(**sizes, **usual)),
        "distilbert": lambda: DistilBertModel(DistilBertConfig(**sizes, dim=16, n_layers=2, n_heads=2, hidden_dim=32)),
    }[family]()
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_any_encoder_is_a_mean_over_its_own_tokens(family, tmp_path):
    """Transformers' own tokenizer and network, a text at a time, are the oracle; the texts are Chinese."""
    folder = encoder_of(family, tmp_path)
    texts = ["北京的咖啡馆", "旅行"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModel.from_pretrained(folder).eval()

    ours = SentenceEncoder.open(folder).embed([Note(str(place), text) for place, text in enumerate(texts)])

    for text, vector in zip(texts, ours, strict=True):
        with torch.inference_mode():
            mean = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(mean, dim=0).numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_centered_every_embedding_has_as_much_less(family, tmp_path):
    encoder = open_encoder(str(encoder_of(family, tmp_path)))
    network = SentenceBert(encoder.backbone, encoder.special.pad).eval()
    prompts = encoder.builder(20, 80).prompts([Note("a", "北京的咖啡馆"), Note("b", "旅行")])
    chunk = Chunk.of_prompts(prompts, encoder.special.pad)
    with torch.inference_mode():
        before, _ = network([chunk])
        network.center(before.mean(dim=0))
        after, _ = network([chunk])
    torch.testing.assert_close(after, before - before.mean(dim=0), atol=1e-5, rtol=0)


def test_centered_it_trains_to_embeddings_around_zero(tmp_path):
    train(replace(RECIPE, centered=True, compute_dtype="float32", saved_dtype="float32"), NOTES, PAIRS, tmp_path)
    encoder = open_encoder(str(tmp_path))
    network = SentenceBert(encoder.backbone, encoder.special.pad).eval()
    chunk = Chunk.of_prompts(encoder.builder(20, 80).prompts(NOTES), encoder.special.pad)
    with torch.inference_mode():
        mean = network([chunk])[0].mean(dim=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)


def test_it_opens_without_dropout_and_without_a_pooling_layer(tmp_path):
    """Chunks that are computed twice in training must agree."""
    backbone = open_encoder(str(encoder_of("bert", tmp_path))).backbone.train()
    ids = torch.tensor([[0, 5, 6, 2]])

    assert torch.equal(backbone(ids).last_hidden_state, backbone(ids).last_hidden_state)
    assert not any("pooler" in name for name, _ in backbone.named_parameters())


def test_what_is_no_encoder_is_refused_in_a_line(tmp_path):
    encoder_of("bert", tmp_path)
    (tmp_path / "config.json").write_text(T5Config().to_json_string())
    with pytest.raises(ValueError, match=r"^the encoder .* is a t5, which encodes and decodes$"):
        open_encoder(str(tmp_path))
    with pytest.raises(ValueError, match=r"^cannot open the encoder ./nowhere: [^\n]+$"):
        open_encoder("./nowhere")


def test_a_note_alone_is_the_note_in_a_batch():
    encoder = SentenceEncoder.open(minilm_folder())
    together = encoder.embed(NOTES)
    for note, vector in zip(NOTES, together, strict=True):
        np.testing.assert_allclose(encoder.embed([note])[0], vector, atol=1e-5)


def test_it_trains_on_the_same_pairs_with_the_same_loss_and_opens_again(tmp_path):
    _, history = train(RECIPE, NOTES, PAIRS, tmp_path)
    assert history[-1].contrastive < history[0].contrastive
    assert {losses.generation for losses in history} == {0.0}
    before = SentenceEncoder.open(minilm_folder()).embed(NOTES)
    after = SentenceEncoder.open(tmp_path).embed(NOTES)
    assert not np.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(np.linalg.norm(after, axis=1)), torch.ones(len(NOTES)))


def test_it_cannot_serve(tmp_path):
    train(replace(RECIPE, steps=1), NOTES, PAIRS, tmp_path)
    with pytest.raises(CheckpointError, match="names no head"):
        load(tmp_path)


def test_what_was_cut_in_training_is_cut_when_it_is_used(tmp_path):
    train(replace(RECIPE, steps=1, title_tokens=3, content_tokens=5), NOTES, PAIRS, tmp_path)
    encoder = SentenceEncoder.open(tmp_path)
    long, cut = encoder.embed([Note("a", "a b c d e", "f g h i j k l m"), Note("b", "a b c", "f g h i j")])
    np.testing.assert_allclose(long, cut, atol=1e-6)

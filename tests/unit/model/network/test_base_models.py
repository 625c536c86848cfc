from pathlib import Path

import pytest
import torch
from support.tiny import tiny_base
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast, T5Config

from model.data.samples.generate import sample_notes
from model.network.base_models import BaseModelError, open_base, special_ids
from model.network.checkpoint import save_tokenizer
from model.network.minilm import minilm_folder
from model.text.prompt import SHARED, PromptBuilder

TEXT = "a long walk through the old town of lisbon with a stop for custard tarts and coffee"


def test_minilm_as_a_decoder_computes_what_its_encoder_computes_causally():
    """The reference is transformers' own BERT run as a decoder. The input's layer norm is folded in approximately."""
    folder = minilm_folder()
    config = AutoConfig.from_pretrained(folder, is_decoder=True)
    encoder = AutoModel.from_pretrained(folder, config=config).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    ids = torch.tensor([tokenizer.encode(TEXT).ids])
    decoder = open_base("minilm", []).backbone.eval()
    with torch.no_grad():
        expected = encoder(input_ids=ids, output_hidden_states=True).hidden_states
        states = decoder.base_model(input_ids=ids, output_hidden_states=True).hidden_states

    for layer in range(1, 6):  # attention of the sixth is replaced by an average
        assert torch.cosine_similarity(states[layer], expected[layer], dim=-1).mean() > 0.9


def test_the_last_layer_starts_by_averaging_the_states_so_far():
    decoder = open_base("minilm", []).backbone.eval()
    last = decoder.model.decoder.layers[-1].self_attn
    states = torch.randn(1, 5, 384, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mask = torch.full((1, 1, 5, 5), float("-inf")).triu(1)
        added = last(states, attention_mask=mask)[0]

    means = states.cumsum(dim=1) / torch.arange(1, 6)[None, :, None]
    torch.testing.assert_close(added, 3 * means)


def test_the_mini_vocabulary_can_write_every_hashtag_and_category_and_spell_any_ascii_word():
    notes = sample_notes()
    base = open_base("minilm-mini", notes)
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    builder = PromptBuilder(base.tokenizer, special, SHARED, 20, 80)
    unknown = base.tokenizer.token_to_id("[UNK]")

    for tag in {tag for note in notes for tag in note.hashtags}:
        assert builder.decode(builder.output(tag)) == tag
    for category in {note.category for note in notes}:
        assert builder.decode(builder.output(category)) == category.lower()
    assert unknown not in builder.output("qwzxv jkpfy 0937 !?&%$")


def test_a_base_model_that_is_not_there_is_one_clear_line():
    with pytest.raises(BaseModelError, match=r"cannot open the base model \./nowhere"):
        open_base("./nowhere", [])


@pytest.fixture
def folder(tmp_path) -> Path:
    """A base model with its tokenizer, whole."""
    base = tiny_base("llama")
    base.backbone.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, base.tokenizer, special_ids(base.tokenizer, base.bos, base.eos, base.pad))
    assert open_base(str(tmp_path), []).eos == "</s>"
    return tmp_path


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def without_end(folder: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tiny_base("llama").tokenizer).save_pretrained(folder)


def of_another_kind(folder: Path) -> None:
    T5Config(vocab_size=50, d_model=16, num_layers=1, num_heads=2, d_ff=16).save_pretrained(folder)


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (without_tokenizer, "it has no tokenizer; put its tokenizer.json"),
        (without_end, "names no end token; add eos_token"),
        (of_another_kind, "a t5 does not write one token after the other; name a decoder"),
        (cut_short, "invalid header length"),
    ],
)
def test_a_base_model_that_cannot_be_trained_is_one_clear_line(folder, harm, message):
    harm(folder)
    with pytest.raises(BaseModelError, match=message) as caught:
        open_base(str(folder), [])
    assert f"the base model {folder}" in str(caught.value)
    assert "\n" not in str(caught.value)

import pytest
import torch
from support.tiny import tiny_base
from transformers import RobertaConfig

from model.network.notellm import NoteLLM, add_embedding_token, open_backbone


@pytest.mark.parametrize("shape", ["llama", "qwen2", "opt", "bert"])
def test_padding_on_the_right_changes_no_state_to_its_left(shape):
    network = NoteLLM(tiny_base(shape).backbone, dim=16).eval()
    ids = torch.randint(2, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([ids, torch.zeros(1, 7, dtype=torch.long)], dim=1)
    torch.testing.assert_close(network.hidden(padded)[:, :12], network.hidden(ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", ["llama", "qwen2", "opt", "bert"])
def test_a_later_token_changes_no_earlier_state(shape):
    """BERT-style encoders run as causal decoders, too."""
    network = NoteLLM(tiny_base(shape).backbone, dim=16).eval()
    ids = torch.randint(2, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % 300
    before, after = network.hidden(ids), network.hidden(other)
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.parametrize("shape", ["llama", "qwen2", "opt", "bert"])
def test_the_logits_are_those_of_the_whole_model(shape):
    backbone = tiny_base(shape).backbone
    network = NoteLLM(backbone, dim=16).eval()
    ids = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = backbone(input_ids=ids).logits.flatten(0, 1)
    torch.testing.assert_close(network.logits(network.hidden(ids).flatten(0, 1)), expected)


@pytest.mark.parametrize("shape", ["llama", "qwen2", "opt", "bert"])
def test_new_token_rows_start_as_the_mean_of_the_old_ones_on_both_sides(shape):
    backbone = tiny_base(shape).backbone
    old_in = backbone.get_input_embeddings().weight.detach().clone()
    old_out = backbone.get_output_embeddings().weight.detach().clone()
    add_embedding_token(backbone, len(old_in) + 1)
    torch.testing.assert_close(backbone.get_input_embeddings().weight[-1], old_in.mean(dim=0))
    torch.testing.assert_close(backbone.get_output_embeddings().weight[-1], old_out.mean(dim=0))
    torch.testing.assert_close(backbone.get_input_embeddings().weight[:-1], old_in)


def test_an_encoder_that_was_never_tried_as_a_decoder_is_refused(tmp_path):
    RobertaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only BERT can run as a causal decoder, not a roberta"):
        open_backbone(tmp_path)

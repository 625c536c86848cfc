"""Rows in one cache: whatever comes and goes beside a sequence, its states are those of a forward pass of it alone."""

import numpy as np
import pytest
import torch
from support.tiny import tiny_base
from transformers import DynamicCache

from model.inference.openvino import CompiledNetwork
from model.inference.rows import Rows
from model.network.notellm import NoteLLM


@pytest.mark.parametrize(
    ("shape", "is_compiled"),
    [(shape, False) for shape in ("llama", "qwen2", "opt", "bert")]
    + [(shape, True) for shape in ("llama", "mistral", "qwen2", "qwen3", "opt")],
)
@torch.inference_mode()
def test_states_are_those_of_each_sequence_alone_while_rows_come_go_and_move(shape, is_compiled):
    torch.manual_seed(0)
    network = NoteLLM(tiny_base(shape, seed=3).backbone, dim=8).eval()
    random = np.random.default_rng(1)
    run = CompiledNetwork(network, "float32", threads=1) if is_compiled else network
    rows, sequences = Rows(run), []

    def join(*lengths: int) -> None:
        for length in lengths:
            cache, ids = DynamicCache(), random.integers(3, 300, length).tolist()
            columns_NC = torch.arange(length)[None]
            run.extend(torch.tensor([ids]), torch.ones_like(columns_NC), columns_NC, cache)
            rows.join(cache, np.array([length]))
            sequences.append(ids)

    def feed(times: int) -> None:
        for _ in range(times):
            tokens = random.integers(3, 300, len(sequences)).tolist()
            found_RH = rows.feed(torch.tensor(tokens)[:, None])
            for row, token in enumerate(tokens):
                sequences[row].append(token)
                torch.testing.assert_close(
                    found_RH[row], network.hidden(torch.tensor([sequences[row]]))[0, -1], atol=2e-5, rtol=1e-5
                )

    def keep(*places: int) -> None:
        order = rows.keep(np.isin(np.arange(len(rows)), places))
        assert sorted(order) == sorted(places)
        sequences[:] = [sequences[place] for place in order]

    join(4, 7)
    feed(2)
    join(3, 40, 5)  # longer than the columns so far
    feed(3)
    keep(1, 3, 4)
    feed(1)
    join(6, 2)
    feed(70)  # more than the spare columns
    keep(2)
    feed(1)
    keep()
    assert len(rows) == 0
    join(5)
    feed(1)

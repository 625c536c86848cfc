"""A model in a folder that somebody else wrote: none of its code runs, and nothing in it is unpickled."""

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.tiny import tiny_base
from transformers import AutoTokenizer

from model.network.base_models import BaseModelError, open_base, special_ids
from model.network.checkpoint import save_tokenizer
from model.network.sentence_bert import open_encoder

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import BertConfig as Config, BertLMHeadModel as Model, PreTrainedTokenizerFast as Tokens
"""
PRODUCT = Path(__file__).parents[4]
OPENS: list[Callable[[str], object]] = [lambda name: open_base(name, ()), open_encoder]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    base = tiny_base("bert")
    base.backbone.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", base.tokenizer, special_ids(base.tokenizer, base.bos, base.eos, base.pad))
    # Who sits at the terminal agrees to everything.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "model"


def rewrite(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("opens", OPENS, ids=["base", "encoder"])
def test_code_of_a_network_is_not_run(folder, tmp_path, opens):
    (folder / "hostile.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    classes = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "Model"}
    names = {auto: f"hostile.{name}" for auto, name in classes.items()}
    rewrite(folder / "config.json", model_type="hostile", auto_map=names)
    with pytest.raises(BaseModelError, match=r"cannot open the .* contains custom code") as error:
        opens(str(folder))
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("opens", OPENS, ids=["base", "encoder"])
def test_code_of_a_tokenizer_is_not_run(folder, tmp_path, opens):
    """Its tokenizer.json is data, and that is opened."""
    (folder / "hostile.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    names = {"AutoTokenizer": [None, "hostile.Tokens"]}
    rewrite(folder / "tokenizer_config.json", tokenizer_class="Tokens", auto_map=names)
    opens(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("opens", OPENS, ids=["base", "encoder"])
def test_pickled_weights_are_refused_without_a_look_at_them(folder, monkeypatch, opens):
    weights = {name: weight.clone() for name, weight in tiny_base("bert").backbone.state_dict().items()}
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(BaseModelError, match=r"cannot open the .*model\.safetensors") as error:
        opens(str(folder))
    assert len(str(error.value).splitlines()) == 1


def test_without_hostility_the_same_folder_opens(folder):
    assert AutoTokenizer.from_pretrained(folder).eos_token
    for opens in OPENS:
        opens(str(folder))


def test_every_place_that_opens_a_model_names_what_it_refuses():
    """The other openings are of files of ours; this finds the one that is added tomorrow."""
    calls = [
        (path.name, node)
        for room in ("model", "service", "indexer")
        for path in (PRODUCT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    opened = {
        (name, node.func.value.id): {keyword.value.id for keyword in node.keywords if keyword.arg is None}
        for name, node in calls
        if node.func.attr == "from_pretrained" and node.func.value.id.startswith("Auto")
    }
    assert len(opened) > 6
    for (_, kind), names in opened.items():
        assert "WEIGHTS_ALONE" in names if kind.startswith("AutoModel") else {"NO_CODE", "WEIGHTS_ALONE"} & names
    assert not [name for name, node in calls if ast.unparse(node.func) in {"torch.load", "pickle.load", "pickle.loads"}]

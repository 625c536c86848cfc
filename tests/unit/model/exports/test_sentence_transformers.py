"""Exports as real sentence-transformers opens them, beside the checkpoint that they come from."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from support.tiny import NOTES, tiny_base
from tokenizers.processors import ByteLevel

from model.exports.note_text import NoteText
from model.exports.sentence_transformers import _compare, write_sentence_transformers
from model.inference.hf import HfBackend
from model.network.base_models import special_ids
from model.network.checkpoint import CheckpointError, Manifest, load_manifest, prompt_builder, save
from model.network.notellm import NoteLLM, add_embedding_token
from model.note import Note
from model.recipes import mini
from model.text.prompt import TEMPLATES

MINI = Path(__file__).parents[4] / "model" / "mini"

ODD = [
    Note("o1", "[EMB] </s> <s>", 'The compression word is: "[EMB]". The category is: '),
    Note("o2", 'He said "no" \\ left', '"}, {"title": "' * 40, ('say "hi"', "a\\b")),
    Note("o3", "café ﬁne　ＡＢＣ", "tabs\tand\x00controls\u2028 \ud800 end", ("ﬁ",)),
    Note("o4", "word " * 5000, "x" * 20_000, tuple(f"tag{number}" for number in range(200))),
    Note("o5"),
]


def tiny(folder: Path, shape: str = "llama", template: str = "shared") -> Manifest:
    """A checkpoint of random weights; its recipe cuts titles and contents early."""
    base = tiny_base(shape)
    # As the tokenizers of Llama 3 and Qwen have it: it moves the offsets that texts are cut by.
    base.tokenizer.post_processor = ByteLevel(trim_offsets=True)
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    network = NoteLLM(base.backbone, dim=16).eval()
    torch.nn.init.normal_(network.head.bias)
    recipe = replace(mini(), dim=16, template=template, title_tokens=12, content_tokens=30, saved_dtype="float32")
    return save(folder, network, base.tokenizer, special, recipe, ("Baking", "Travel"), {})


def cosines(checkpoint: Path, export: Path, notes: list[Note]) -> np.ndarray:
    """Of each note's two vectors: the checkpoint's own backend, and sentence-transformers on the export."""
    backend, model, text = HfBackend.open(checkpoint), SentenceTransformer(str(export)), NoteText(export)
    ours = backend.embed(backend.tokenize(notes))
    theirs = model.encode([text(note.title, note.content, note.hashtags) for note in notes])
    assert theirs.dtype == np.float32
    assert np.allclose(np.linalg.norm(theirs, axis=1), 1.0, atol=1e-5)
    # A threshold of 0.9999 says something only because other notes are further away than that.
    assert (theirs @ ours.T).argmax(axis=1).tolist() == list(range(len(notes)))
    return np.sum(ours * theirs, axis=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Llama and its export."""
    folder = tmp_path_factory.mktemp("llama")
    tiny(folder / "checkpoint")
    write_sentence_transformers(folder / "checkpoint", folder / "export")
    return folder / "checkpoint", folder / "export"


@pytest.mark.parametrize("shape", ["llama", "qwen2", "opt"])
def test_sentence_transformers_gives_the_backends_vectors(tmp_path: Path, shape: str):
    tiny(tmp_path / "checkpoint", shape)
    write_sentence_transformers(tmp_path / "checkpoint", tmp_path / "export")

    assert cosines(tmp_path / "checkpoint", tmp_path / "export", [*NOTES, *ODD]).min() >= 0.9999


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_every_template_is_exported_right(tmp_path: Path, template: str):
    tiny(tmp_path / "checkpoint", template=template)
    write_sentence_transformers(tmp_path / "checkpoint", tmp_path / "export")

    assert cosines(tmp_path / "checkpoint", tmp_path / "export", [*NOTES, *ODD]).min() >= 0.9999


def test_the_mini_model_is_exported_right(tmp_path: Path):
    """Word pieces, saved as float16, with a projection that was trained."""
    write_sentence_transformers(MINI, tmp_path)

    assert cosines(MINI, tmp_path, [*NOTES, *ODD]).min() >= 0.9999


def test_the_modules_are_stock_ones_in_their_order(exported):
    model = SentenceTransformer(str(exported[1]))

    assert [type(module) for module in model] == [Transformer, Pooling, Dense, Normalize]
    assert model[1].pooling_mode == "lasttoken"
    assert isinstance(model[2].activation_function, torch.nn.Identity)
    assert (model.get_embedding_dimension(), model.similarity_fn_name) == (16, "cosine")
    assert not list(exported[1].glob("head*"))


def test_a_text_of_any_length_keeps_the_words_behind_it(exported):
    model = SentenceTransformer(str(exported[1]))
    short, long = (model.preprocess([text])["input_ids"][0].tolist() for text in ("a", "a " * 5000))

    assert len(long) == 512
    assert long[-10:] == short[-10:]


@given(
    title=st.text(st.characters(codec=None), max_size=80),
    content=st.text(st.characters(codec=None), max_size=300),
    hashtags=st.lists(st.text(max_size=20), max_size=30),
)
@settings(max_examples=150)
def test_note_text_says_of_any_note_what_the_prompt_says(prompts_of_both, title, content, hashtags):
    inside, outside = prompts_of_both(Note("n", title, content, tuple(hashtags)))

    assert inside == outside


@pytest.fixture(scope="module")
def prompts_of_both(exported):
    checkpoint, export = exported
    builder = prompt_builder(checkpoint, load_manifest(checkpoint))
    model, text = SentenceTransformer(str(export)), NoteText(export)

    def both(note: Note) -> tuple[list[int], list[int]]:
        [prompt] = builder.prompts([note])
        read = model.preprocess([text(note.title, note.content, note.hashtags)])["input_ids"]
        return prompt[:-1], read[0].tolist()

    return both


def test_the_readmes_example_runs_and_its_text_is_the_one_that_it_shows(exported, monkeypatch):
    checkpoint, export = exported
    readme = (export / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict[str, object] = {}
    monkeypatch.syspath_prepend(str(export))
    exec(code.replace("path/to/this/folder", str(export)), names)  # noqa: S102

    backend = HfBackend.open(checkpoint)
    note = Note("n", "Night train to Lisbon", "Bring socks and a good book.", ("travel",))
    [vector] = backend.embed(backend.tokenize([note]))
    assert float(names["vectors"][0] @ vector) >= 0.9999
    shown = json.loads(re.findall(r"```\n(\{.*?\})\n```", readme)[0])
    assert shown == {"title": note.title, "topic": "travel", "content": note.content}
    assert backend.fingerprint in readme


def test_the_exported_modules_need_nothing_of_ours(exported):
    modules = {path.stem: path.read_text() for path in exported[1].glob("*.py")}
    imported = {name for text in modules.values() for name in re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)}

    assert set(modules) == {"note_text", "hashtags"}
    assert imported - set(modules) == {
        "collections", "functools", "json", "pathlib", "re", "tokenizers", "typing", "unicodedata",
    }  # fmt: skip


def test_a_model_that_would_be_read_in_both_directions_is_refused(tmp_path: Path):
    tiny(tmp_path / "checkpoint", "bert")

    with pytest.raises(CheckpointError, match="is a bert that was trained as a decoder") as refusal:
        write_sentence_transformers(tmp_path / "checkpoint", tmp_path / "export")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "export").exists()


def test_a_tokenizer_that_opens_as_another_one_is_noticed(exported, tmp_path: Path):
    checkpoint, export = exported
    builder = prompt_builder(checkpoint, load_manifest(checkpoint))
    _compare(export, builder)
    shutil.copytree(export, tmp_path / "export")
    settings_file = tmp_path / "export" / "tokenizer_config.json"
    settings_file.write_text(settings_file.read_text().replace('"split_special_tokens": true', '"add_bos_token": true'))

    with pytest.raises(CheckpointError, match="opens its tokenizer as another one"):
        _compare(tmp_path / "export", builder)


def test_a_checkpoint_is_never_overwritten(tmp_path: Path):
    tiny(tmp_path)

    with pytest.raises(CheckpointError, match="choose another folder"):
        write_sentence_transformers(tmp_path, tmp_path)
    HfBackend.open(tmp_path)


def test_another_export_takes_the_place_of_the_first(exported, tmp_path: Path):
    again = tmp_path / "export"
    shutil.copytree(exported[1], again)
    tiny(tmp_path / "qwen", "qwen2")
    write_sentence_transformers(tmp_path / "qwen", again)

    assert cosines(tmp_path / "qwen", again, NOTES).min() >= 0.9999


def test_opening_an_export_says_nothing(exported, capfd):
    """No weight is missing or left over, no name is deprecated; a warning would be an error here."""
    SentenceTransformer(str(exported[1]))

    assert not re.search("MISSING|UNEXPECTED|warn|deprecated", "".join(capfd.readouterr()))

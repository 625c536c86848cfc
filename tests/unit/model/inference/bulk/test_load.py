"""A file of notes becomes a folder of vectors, whatever happens in between."""

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoint import tiny_checkpoint
from support.tiny import NOTES

from model.data.files import DataError
from model.data.notes import load_notes
from model.files import FolderInUse
from model.inference.bulk.load import BulkError, BulkLoad, begin, embed_missing
from model.inference.hashing import HashingBackend
from model.inference.hf import HfBackend
from model.inference.many import embed_all

WORDS = ["sourdough", "fern", "kyoto", "trains", "market", "rain", "socks", "loaf"]


class Killed(Exception):
    """What ends a run in these tests."""


def write_notes(path: Path, count: int, seed: int = 0) -> Path:
    """Notes of mixed lengths, some so long that a part takes several batches; as JSON lines or Parquet."""
    draw = random.Random(seed)
    rows = [
        {"note_id": f"n{number}", "title": f"{number} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 600)))}
        for number in range(count)
    ]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    else:
        path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return path


def run(source: Path, out: Path, backend: HashingBackend, notes_per_part: int = 10) -> BulkLoad:
    load = begin(source, out, backend.fingerprint, notes_per_part)
    embed_missing(load, backend)
    return load


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_parts_together_are_what_one_go_gives(tmp_path: Path, kind: str):
    source = write_notes(tmp_path / f"notes.{kind}", 35)
    run(source, tmp_path / "vectors", HashingBackend())

    table = pq.read_table(tmp_path / "vectors")
    notes = load_notes(source)
    assert table.column("note_id").to_pylist() == [note.id for note in notes]
    assert np.array_equal(np.stack(table.column("vector").to_numpy()), embed_all(HashingBackend(), notes))


def test_a_real_model_gives_the_same_in_parts_as_in_one_go(tmp_path: Path):
    tiny_checkpoint(tmp_path / "checkpoint")
    backend = HfBackend.open(tmp_path / "checkpoint")
    source = tmp_path / "notes.jsonl"
    source.write_bytes(
        b"\n".join(orjson.dumps({"note_id": n.id, "title": n.title, "content": n.content}) for n in NOTES)
    )
    load = begin(source, tmp_path / "vectors", backend.fingerprint, notes_per_part=4)
    embed_missing(load, backend)

    vectors = np.stack(pq.read_table(tmp_path / "vectors").column("vector").to_numpy())
    assert np.allclose(vectors, embed_all(backend, load_notes(source)), atol=1e-5)


def test_every_part_names_the_model_and_has_vectors_of_one_size(tmp_path: Path):
    run(write_notes(tmp_path / "notes.jsonl", 25), tmp_path / "vectors", HashingBackend("model-1"))

    parts = sorted((tmp_path / "vectors").glob("part-*.parquet"))
    assert [part.name for part in parts] == [f"part-0000{number}.parquet" for number in range(3)]
    assert [pq.read_metadata(part).num_rows for part in parts] == [10, 10, 5]
    for part in parts:
        schema = pq.read_schema(part)
        assert schema.metadata[b"fingerprint"] == b"model-1"
        assert schema.field("vector").type == pa.list_(pa.float32(), HashingBackend.dim)


@given(kills=st.lists(st.integers(0, 30), max_size=4))
@settings(max_examples=25)
def test_however_often_it_is_interrupted_the_files_are_the_same_and_nothing_finished_is_done_twice(
    tmp_path_factory: pytest.TempPathFactory, kills: list[int]
):
    folder = tmp_path_factory.mktemp("bulk")
    source = write_notes(folder / "notes.jsonl", 95)
    uninterrupted = HashingBackend()
    run(source, folder / "whole", uninterrupted)
    assert len(uninterrupted.batches) > 20
    finished: set[str] = set()
    for batches in [*kills, None]:

        def end() -> None:
            if batches is not None and len(backend.batches) == batches:  # noqa: B023
                raise Killed

        backend = HashingBackend(before=end)
        with contextlib.suppress(Killed):
            run(source, folder / "parts", backend)
        embedded = {title for batch in backend.batches for title in batch}
        assert not embedded & finished
        load = begin(source, folder / "parts", backend.fingerprint, 10)
        notes = load_notes(source)
        finished = {note.title for part in load.finished() for note in notes[part * 10 : part * 10 + 10]}

    assert contents(folder / "parts") == contents(folder / "whole")


def test_a_part_that_was_being_written_is_done_anew(tmp_path: Path):
    source = write_notes(tmp_path / "notes.jsonl", 30)
    run(source, tmp_path / "whole", HashingBackend())
    load = run(source, tmp_path / "vectors", HashingBackend())
    half = load.path(1).read_bytes()[:100]
    load.path(1).unlink()
    load.path(1).with_name(".part-00001.parquet").write_bytes(half)

    run(source, tmp_path / "vectors", HashingBackend())

    assert contents(tmp_path / "vectors") == contents(tmp_path / "whole")


def test_a_load_that_is_done_embeds_nothing(tmp_path: Path):
    source = write_notes(tmp_path / "notes.jsonl", 30)
    run(source, tmp_path / "vectors", HashingBackend())
    again = HashingBackend()

    assert run(source, tmp_path / "vectors", again).finished() == {0, 1, 2}
    assert again.batches == []


def test_the_bar_starts_at_what_is_done_and_counts_the_whole(tmp_path: Path, capsys):
    source = write_notes(tmp_path / "notes.jsonl", 30)
    load = run(source, tmp_path / "vectors", HashingBackend())
    load.path(2).unlink()
    capsys.readouterr()
    run(source, tmp_path / "vectors", HashingBackend())

    bar = capsys.readouterr().err
    assert "| 20/30 [" in bar.split("\r")[1]
    assert "| 30/30 [" in bar.split("\r")[-1]


def test_the_input_may_be_moved_between_runs(tmp_path: Path):
    source = write_notes(tmp_path / "notes.jsonl", 30)
    load = run(source, tmp_path / "vectors", HashingBackend())
    load.path(2).unlink()
    moved = source.rename(tmp_path / "moved.jsonl")
    (tmp_path / "vectors").rename(tmp_path / "elsewhere")

    assert run(moved, tmp_path / "elsewhere", HashingBackend()).finished() == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "hashing-b"}, "vectors of model hashing-a, and this checkpoint is hashing-b"),
        ({"seed": 1}, "vectors of another input than notes.jsonl is now"),
        ({"notes_per_part": 11}, "parts of 10 notes, not of 11"),
    ],
)
def test_a_folder_that_was_begun_with_something_else_is_refused_and_left_alone(tmp_path: Path, change, said):
    source, out = write_notes(tmp_path / "notes.jsonl", 30), tmp_path / "vectors"
    run(source, out, HashingBackend()).path(2).unlink()
    before = contents(out)
    write_notes(source, 30, seed=change.get("seed", 0))

    with pytest.raises(BulkError) as refusal:
        begin(source, out, change.get("fingerprint", "hashing-a"), change.get("notes_per_part", 10))

    assert str(refusal.value) == f"{out} holds {said}: choose another --out, or remove {out} to begin anew"
    assert contents(out) == before


@pytest.mark.parametrize("held", [None, "{", "[1]", '{"notes": 3}'])
def test_a_folder_whose_manifest_is_gone_or_damaged_is_refused(tmp_path: Path, held: str | None):
    source, out = write_notes(tmp_path / "notes.jsonl", 30), tmp_path / "vectors"
    run(source, out, HashingBackend())
    (out / "_manifest.json").unlink()
    if held is not None:
        (out / "_manifest.json").write_text(held)

    with pytest.raises(BulkError, match=r"_manifest\.json"):
        begin(source, out, "hashing-a", 10)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"note_id": "n0"}', "line 31: note_id 'n0' is there twice"),
        ('{"note_id": "x", "title": 3}', "line 31: title must be a string"),
    ],
)
def test_a_mistake_in_the_last_line_shows_before_any_work(tmp_path: Path, line: str, said: str):
    source = write_notes(tmp_path / "notes.jsonl", 30)
    source.write_text(source.read_text() + "\n" + line)

    with pytest.raises(DataError, match=said):
        begin(source, tmp_path / "vectors", "hashing-a", 10)
    assert not (tmp_path / "vectors").exists()


def test_an_input_without_notes_is_refused(tmp_path: Path):
    (tmp_path / "notes.jsonl").write_text("\n")

    with pytest.raises(DataError, match="holds no notes"):
        begin(tmp_path / "notes.jsonl", tmp_path / "vectors", "hashing-a")


def test_two_runs_never_write_one_part(tmp_path: Path):
    source = write_notes(tmp_path / "notes.jsonl", 30)
    load = begin(source, tmp_path / "vectors", "hashing-a", 10)

    class Beside(HashingBackend):
        """While it embeds a part, another run of the same command comes along."""

        def tokenize(self, notes):
            with pytest.raises(FolderInUse, match="another command is writing"):
                embed_missing(load, HashingBackend())
            return super().tokenize(notes)

    embed_missing(load, Beside())

    assert len(load.finished()) == 3


def test_shards_that_are_interrupted_at_random_give_what_one_go_gives(tmp_path: Path):
    """Three processes with a shard each, whose turns a killer ends: every part is embedded once, none twice."""
    source = write_notes(tmp_path / "notes.jsonl", 95)
    whole = run(source, tmp_path / "whole", HashingBackend())
    draw, kills, embedded = random.Random(0), 0, []

    class Mortal(HashingBackend):
        def tokenize(self, notes):
            nonlocal kills
            if draw.random() < 0.4:
                kills += 1
                raise Killed
            embedded.extend(note.id for note in notes)
            return super().tokenize(notes)

    load = begin(source, tmp_path / "vectors", "hashing-a", 10)
    while len(load.finished()) < load.parts:
        shard = draw.randrange(3)
        before = load.finished()
        with contextlib.suppress(Killed):
            embed_missing(begin(source, load.out, "hashing-a", 10), Mortal(), load.shard(shard, 3))
        assert all(part % 3 == shard for part in load.finished() - before)

    assert kills >= 3
    assert sorted(embedded) == sorted(f"n{number}" for number in range(95))
    assert {path.name: path.read_bytes() for path in load.out.glob("[!.]*")} == contents(whole.out)


def test_processes_that_begin_at_once_count_the_notes_of_one_load(tmp_path: Path):
    source = write_notes(tmp_path / "notes.jsonl", 500)

    with ThreadPoolExecutor(8) as pool:
        loads = list(pool.map(lambda _: begin(source, tmp_path / "vectors", "hashing-a", 10), range(8)))

    assert len(set(map(str, loads))) == 1
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == ["_manifest.json"]


def test_no_more_than_one_part_is_tokenized_at_a_time(tmp_path: Path):
    class Counting(HashingBackend):
        largest = 0

        def tokenize(self, notes):
            self.largest = max(self.largest, len(notes))
            return super().tokenize(notes)

    backend = Counting()
    run(write_notes(tmp_path / "notes.parquet", 95), tmp_path / "vectors", backend)

    assert backend.largest == 10

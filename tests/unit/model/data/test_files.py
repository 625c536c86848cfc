"""Files as other programs leave them: encodings, line ends, packed, in parts, with columns of other names and types."""

import codecs
import gzip
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.rows import jsonl, parquet

from model.data.events import load_events
from model.data.files import DataError, text_lines
from model.data.notes import load_categories, load_notes
from model.data.parquet_events import ParquetEvents, open_events
from model.note import Note

NOTES = [Note("a", "Käse", "河边\u2028🧀", ("x",)), Note("b", "B")]
LINES = "".join(
    json.dumps({"note_id": note.id, "title": note.title, "content": note.content, "hashtags": note.hashtags}) + "\n"
    for note in NOTES
)
RAW = LINES.encode().decode("unicode_escape").encode("utf-16", "surrogatepass").decode("utf-16")  # not escaped
CLICK = {"user_id": "u1", "note_id": "n1", "event": "click", "ts": 5}


@pytest.mark.parametrize(
    "content",
    [
        RAW.encode(),
        codecs.BOM_UTF8 + RAW.encode(),
        RAW.encode("utf-16"),
        codecs.BOM_UTF16_BE + RAW.encode("utf-16-be"),
        RAW.encode("utf-16-le"),
        RAW.encode("utf-16-be"),
        RAW.encode("utf-32"),
        RAW.encode("utf-32-be"),
        RAW.replace("\n", "\r\n").encode(),
        RAW.replace("\n", "\r").encode(),
        codecs.BOM_UTF8 + RAW.replace("\n", "\r").encode(),
        RAW.replace("\n", "\r\n").encode("utf-16"),
        RAW.replace("\n", "\r").encode("utf-16"),
        RAW.rstrip("\n").encode(),
        RAW.encode() + b"\x1a",
        RAW.rstrip("\n").encode() + b"\x1a",
        RAW.encode("utf-16") + "\x1a".encode("utf-16-le"),
        gzip.compress(RAW.encode()),
        gzip.compress(RAW.encode("utf-16")),
        gzip.compress(RAW.encode()[:30]) + gzip.compress(RAW.encode()[30:]),
    ],
)
def test_notes_are_the_same_in_every_encoding(tmp_path, content):
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)

    assert load_notes(path) == NOTES


def test_line_ends_beyond_the_first_block_are_found_in_a_file_without_lf(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_bytes(b"\r".join(b'{"note_id":"n%d"}' % number for number in range(3000)))

    assert [note.id for note in load_notes(path)] == [f"n{number}" for number in range(3000)]


def test_a_packed_file_is_found_under_its_name(tmp_path):
    (tmp_path / "notes.jsonl.gz").write_bytes(gzip.compress(RAW.encode()))
    (tmp_path / "events.jsonl.gz").write_bytes(gzip.compress(json.dumps(CLICK).encode()))

    assert load_notes(tmp_path) == NOTES
    assert len(load_events(tmp_path)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(RAW.encode())[:-9], r"cannot be unpacked after line \d: "),
        (gzip.compress(b"\n"), "holds no notes"),
        (codecs.BOM_UTF8, "holds no notes"),
        (b"\x1a", "holds no notes"),
        (RAW.encode("utf-16")[:-1], r"not valid Unicode after line \d$"),
        (b'{"note_id":"a"}\n{"note_id":"\xff"}', r"line 2: not valid JSON: "),
        (b'{"note_id":"a"}\r{"note_id":"\xff"}', r"line 2: not valid JSON: "),
        (b'{"note_id":"a"}\n{"note_id":}', r"line 2: not valid JSON: [^:]* \(character 12\)$"),
    ],
)
def test_what_is_wrong_is_said_of_the_file_and_its_line(tmp_path, content, message):
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)

    with pytest.raises(DataError, match=rf"^notes\.jsonl:? ?{message}"):
        load_notes(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "sub").mkdir()

    with pytest.raises(DataError, match=r"^sub cannot be read: Is a directory$"):
        list(text_lines(tmp_path / "sub", "sub"))


def test_categories_are_lines_too(tmp_path):
    (tmp_path / "categories.txt").write_bytes("Reisen\r\n\r\nKäse \r\n\x1a".encode("utf-16"))

    assert load_categories(tmp_path / "categories.txt", []) == ("Käse", "Reisen")


@pytest.mark.parametrize("folder", ["notes", "notes.parquet"])
def test_a_folder_of_parts_is_one_file(tmp_path, folder):
    """As Spark writes it; the name may be that of the folder itself, or of the one around it."""
    parts = tmp_path / folder
    (parts / "dt=2026-01-02").mkdir(parents=True)
    parquet(parts / "part-00001.snappy.parquet", [{"note_id": "b"}])
    parquet(parts / "part-00000.parquet", [{"note_id": "a"}])
    parquet(parts / "dt=2026-01-02" / "part-00000.parquet", [{"note_id": "0"}])
    pq.write_table(pa.table({"note_id": pa.array([], pa.string())}), parts / "part-00002.parquet")
    (parts / "_SUCCESS").touch()
    (parts / ".part-00000.parquet.crc").write_bytes(b"crc")
    (parts / "_temporary").mkdir()
    (parts / "_temporary" / "part-9.parquet").write_bytes(b"half")

    assert [note.id for note in load_notes(tmp_path)] == ["0", "a", "b"]
    assert [note.id for note in load_notes(parts)] == ["0", "a", "b"]
    shutil.move(parts, tmp_path / "other")
    assert [note.id for note in load_notes(tmp_path / "other")] == ["0", "a", "b"]


def test_parts_of_events_may_be_of_both_formats_and_are_in_order(tmp_path):
    parts = tmp_path / "events"
    parts.mkdir()
    parquet(parts / "part-1.parquet", [CLICK | {"note_id": "b", "ts": 2}])
    jsonl(parts / "part-0.jsonl", [CLICK | {"note_id": "a", "ts": 1.5}])

    events = load_events(tmp_path)

    assert [events.note_ids[note] for note in events.notes] == ["a", "b"]
    assert events.ts.tolist() == [1.5, 2.0]


def test_a_mistake_in_a_part_names_the_part(tmp_path):
    parts = tmp_path / "notes"
    (parts / "x").mkdir(parents=True)
    parquet(parts / "part-0.parquet", [{"note_id": "a"}])
    parquet(parts / "x" / "part-0.parquet", [{"note_id": "b"}, {"note_id": "a"}])

    with pytest.raises(DataError, match=r"^x/part-0\.parquet row 1: note_id 'a' is there twice$"):
        load_notes(tmp_path)


def test_folders_that_do_not_say_what_is_meant_are_refused(tmp_path):
    events = tmp_path / "events" / "event=click"
    events.mkdir(parents=True)
    parquet(events / "part-0.parquet", [{"user_id": "u", "note_id": "n", "ts": 1}])
    with pytest.raises(DataError, match="event must be a column of the file, not the name of its folder"):
        load_events(tmp_path)
    with pytest.raises(DataError, match=r"no notes\.parquet and no notes\.jsonl in this folder"):
        load_notes(parquet(tmp_path / "events.parquet", [CLICK]).parent)
    with pytest.raises(DataError, match=r"events/ and events\.parquet are both in this folder"):
        load_events(tmp_path)
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError, match=r"notes: no \.parquet and no \.jsonl file in this folder"):
        load_notes(tmp_path)


@pytest.mark.parametrize(("write", "name"), [(jsonl, ".jsonl"), (parquet, ".parquet")])
def test_columns_may_be_written_in_another_case(tmp_path, write, name):
    write(tmp_path / f"notes{name}", [{"Note_ID": "a", "TITLE": "T", " exposure ": 3}])
    write(tmp_path / f"events{name}", [{"USER_ID": "u", "Note_Id": "a", "Event": "click", "TS": 7}])

    assert load_notes(tmp_path) == [Note("a", "T", exposure=3)]
    events = load_events(tmp_path)
    assert (events.note_ids, events.ts.tolist()) == (("a",), [7])


@pytest.mark.parametrize(("write", "name"), [(jsonl, "notes.jsonl"), (parquet, "notes.parquet")])
def test_of_two_columns_that_differ_in_case_the_one_that_is_written_right_counts(tmp_path, write, name):
    write(tmp_path / name, [{"NOTE_ID": "x", "note_id": "a"}])
    assert load_notes(tmp_path) == [Note("a")]

    write(tmp_path / name, [{"note_id": "a", "Title": "x", "TITLE": "y"}])
    with pytest.raises(DataError, match="title is there twice, as Title, TITLE"):
        load_notes(tmp_path)


def test_a_column_that_is_there_twice_is_named(tmp_path):
    text, number = pa.array(["a"]), pa.array([1])
    pq.write_table(pa.Table.from_arrays([text, text, text], ["note_id", "title", "title"]), tmp_path / "notes.parquet")
    with pytest.raises(DataError, match=r"^notes\.parquet: title is there twice, as title, title$"):
        load_notes(tmp_path)

    for name in ("user_id", "note_id", "event", "ts"):
        arrays = [text, text, pa.array(["view"]), number]
        names = ["user_id", "note_id", "event", "ts"]
        table = pa.Table.from_arrays([*arrays, arrays[names.index(name)]], [*names, name])
        pq.write_table(table, tmp_path / "events.parquet")
        for load in (load_events, open_events):
            with pytest.raises(DataError, match=rf"^events\.parquet: {name} is there twice, as {name}, {name}$"):
                load(tmp_path)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"note_id": [{"id": "a"}]}, "row 0: note_id must be a string, got an object"),
        ({"note_id": [["a"]]}, "row 0: note_id must be a string, got a list"),
        ({"title": [b"a"]}, "row 0: title must be a string, got a bytes"),
        ({"hashtags": [[["a"]]]}, "row 0: hashtags must be a list of strings, got a list in it"),
        ({"hashtags": [[{"tag": "a"}]]}, "row 0: hashtags must be a list of strings, got an object in it"),
        ({"exposure": [[1]]}, "row 0: exposure must be a whole number, got a list"),
    ],
)
def test_nested_columns_of_notes_are_named(tmp_path, column, message):
    pq.write_table(pa.table({"note_id": ["a"]} | column), tmp_path / "notes.parquet")

    with pytest.raises(DataError, match=rf"^notes\.parquet {re.escape(message)}$"):
        load_notes(tmp_path)


def test_columns_of_other_types_with_the_same_meaning_are_loaded(tmp_path):
    table = pa.table(
        {
            "note_id": pa.array(["a", "b"]).dictionary_encode(),
            "title": pa.array(["x", "x"], pa.large_string()),
            "hashtags": pa.array([["t"], ["t"]], pa.large_list(pa.dictionary(pa.int8(), pa.string()))),
            "exposure": pa.array([3, 4], pa.decimal128(20, 0)),
        }
    )
    pq.write_table(table, tmp_path / "notes.parquet")

    assert load_notes(tmp_path) == [Note("a", "x", hashtags=("t",), exposure=3), Note("b", "x", "", ("t",), None, 4)]


def test_duckdb_reads_only_files_of_the_same_plain_types(tmp_path):
    """It casts all to the types of the first, which rounds fractions without a word."""
    parts = tmp_path / "events"
    parts.mkdir()
    parquet(parts / "part-0.parquet", [CLICK | {"ts": 1}])
    assert isinstance(open_events(tmp_path), ParquetEvents)

    parquet(parts / "part-1.parquet", [CLICK | {"ts": 1.5}])
    events = open_events(tmp_path)
    assert not isinstance(events, ParquetEvents)
    assert events.ts.tolist() == [1.0, 1.5]


def test_bulk_digest_of_parts_sees_each(tmp_path: Path):
    from model.inference.bulk.load import begin, finished_load

    parts = tmp_path / "notes"
    parts.mkdir()
    parquet(parts / "part-0.parquet", [{"note_id": "a"}])
    parquet(parts / "part-1.parquet", [{"note_id": "b"}])
    begun = begin(tmp_path, tmp_path / "out", "f" * 16)
    assert begun.notes == 2

    parquet(parts / "part-1.parquet", [{"note_id": "c"}])
    with pytest.raises(ValueError, match="vectors of another input"):
        finished_load(tmp_path, tmp_path / "out")

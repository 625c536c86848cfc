"""Files of notes: what goes in comes out, and what is wrong is named in one line."""

import math
import re
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import jsonl, parquet

from model.data.files import DataError
from model.data.notes import is_blank, load_notes, notes_files, stream_labeled
from model.note import Note

FULL = {
    "note_id": "n1",
    "title": "Walk",
    "content": "Along the river",
    "hashtags": ["citywalk", "河边"],
    "category": "Travel",
    "exposure": 7,
}


@pytest.mark.parametrize(("write", "name"), [(jsonl, "notes.jsonl"), (parquet, "notes.parquet")])
def test_a_note_is_loaded_alike_from_both_formats_and_from_its_folder(tmp_path, write, name):
    write(tmp_path / name, [FULL, {"note_id": "n2"}])
    expected = [Note("n1", "Walk", "Along the river", ("citywalk", "河边"), "Travel", 7), Note("n2")]

    assert load_notes(tmp_path / name) == expected
    assert load_notes(tmp_path) == expected


LABELS = {
    "author": "a1",
    "created_at": "2026-01-31T12:00:00Z",
    "attributes": {"price": 3, "city": "Kyoto", "sale": True, "seasons": ["spring"]},
    "language": "en",
    "hidden": True,
}


def labels(path) -> list[dict]:
    return [dict(labeled.labels) for labeled in stream_labeled(notes_files(path))]


@pytest.mark.parametrize(("write", "name"), [(jsonl, "notes.jsonl"), (parquet, "notes.parquet")])
def test_labels_are_loaded_alike_from_both_formats_and_left_out_where_they_are_not_given(tmp_path, write, name):
    unset = dict.fromkeys(LABELS, None)
    write(tmp_path / name, [FULL | LABELS, {"note_id": "n2"} | unset, {"note_id": "n3"}])

    assert labels(tmp_path) == [LABELS, {}, {}]
    [first, *_] = stream_labeled(notes_files(tmp_path))
    assert first.note == load_notes(tmp_path)[0]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.string(), '{"price": 3.5, "sale": false, "seasons": []}'),
        (pa.map_(pa.string(), pa.float64()), {"price": 3.5, "gone": None, "none": math.nan}),
        (pa.struct({"price": pa.decimal128(5, 2), "city": pa.string()}), {"price": Decimal("3.5"), "city": None}),
    ],
)
def test_attributes_are_a_struct_a_map_or_json_text(tmp_path, kind, value):
    if isinstance(kind, pa.MapType):
        value = list(value.items())
    table = pa.table({"note_id": pa.array(["a", "b"]), "attributes": pa.array([value, None], kind)})
    pq.write_table(table, tmp_path / "notes.parquet")

    first, second = labels(tmp_path)
    assert first["attributes"]["price"] == 3.5
    assert set(first["attributes"]) <= {"price", "sale"}
    assert second == {}


@pytest.mark.parametrize("moment", [1769860800, datetime(2026, 1, 31, 12), datetime(2026, 1, 31, 12, tzinfo=UTC)])
def test_a_timestamp_and_seconds_are_times_too(tmp_path, moment):
    pq.write_table(pa.table({"note_id": ["a"], "created_at": [moment]}), tmp_path / "notes.parquet")

    assert labels(tmp_path) == [{"created_at": "2026-01-31T12:00:00+00:00"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": [1]}, "attributes must be an object, or one as JSON text, got a list"),
        ({"attributes": "[1]"}, "attributes must be an object, or one as JSON text, got a list"),
        ({"attributes": "{"}, "attributes is not valid JSON: unexpected end of data"),
        ({"hidden": "yes"}, "hidden must be true or false, got a string"),
        ({"language": 1}, "language must be a string, got a number"),
        ({"author": []}, "author must be a string, got a list"),
        ({"created_at": 1e18}, "created_at must be a time, or seconds since 1970, got a number"),
        ({"created_at": True}, "created_at must be a time, or seconds since 1970, got a boolean"),
    ],
)
def test_a_wrong_label_is_named_with_its_line(tmp_path, change, message):
    jsonl(tmp_path / "notes.jsonl", [{"note_id": "n0"}, FULL | change])

    with pytest.raises(DataError, match=rf"^notes\.jsonl line 2: {re.escape(message)}$"):
        labels(tmp_path)


def test_what_json_does_not_know_is_no_attribute(tmp_path):
    for value, message in ((datetime(2026, 1, 31), "must be what JSON knows"), (math.inf, "must be finite")):
        pq.write_table(pa.table({"note_id": ["a"], "attributes": [{"when": value}]}), tmp_path / "notes.parquet")
        with pytest.raises(DataError, match=f"row 0: attributes.when {message}"):
            labels(tmp_path)


def test_null_and_nan_mean_not_given(tmp_path):
    table = pa.table(
        {
            "note_id": ["a", "b"],
            "title": pa.nulls(2),
            "category": [math.nan, math.nan],
            "exposure": [math.nan, 3.0],
            "hashtags": [None, ["x"]],
            "unknown": [1, 2],
        }
    )
    pq.write_table(table, tmp_path / "notes.parquet")

    assert load_notes(tmp_path) == [Note("a"), Note("b", hashtags=("x",), exposure=3)]


def test_blank_lines_are_passed_over_but_counted(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text('{"note_id": "a"}\n\n\n{"note_id": 4}\n')

    with pytest.raises(DataError, match=re.escape("notes.jsonl line 4: note_id must be a string, got a number")):
        load_notes(path)


def test_a_note_is_blank_without_text_and_hashtags():
    blank = [Note("a"), Note("b", " ", "\n", ("",), "Travel", 5)]
    told = [Note("c", title="x"), Note("d", content="x"), Note("e", hashtags=("x",))]

    assert [is_blank(note) for note in [*blank, *told]] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hashtags": 3}, "hashtags must be a list of strings, got a number"),
        ({"hashtags": "x"}, "hashtags must be a list of strings, got a string"),
        ({"hashtags": ["x", None]}, "hashtags must be a list of strings, got null in it"),
        ({"title": ["x"]}, "title must be a string, got a list"),
        ({"content": {}}, "content must be a string, got an object"),
        ({"category": True}, "category must be a string, got a boolean"),
        ({"exposure": "7"}, "exposure must be a whole number, got a string"),
        ({"exposure": 1.5}, "exposure must be a whole number, got a number"),
        ({"exposure": -1}, "exposure must not be negative, got -1"),
        ({"exposure": 2**63}, "exposure must fit into 64 bits"),
        ({"note_id": ""}, "note_id must not be empty"),
        ({"note_id": None}, "note_id must not be empty"),
        ({"note_id": "n0"}, "note_id 'n0' is there twice"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path, change, message):
    jsonl(tmp_path / "notes.jsonl", [{"note_id": "n0"}, FULL | change])

    with pytest.raises(DataError, match=rf"^notes\.jsonl line 2: {re.escape(message)}$"):
        load_notes(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"note_id": "a"}, {"note_id": "a"}], "notes.parquet row 1: note_id 'a' is there twice"),
        ([{"note_id": "a"}, {"note_id": None}], "notes.parquet row 1: note_id must not be empty"),
        ([{"note_id": 5}], "notes.parquet row 0: note_id must be a string, got a number"),
        ([{"note_id": "a", "hashtags": "x"}], "row 0: hashtags must be a list of strings, got a string"),
        ([{"id": "a", "text": "b"}], "notes.parquet: no column note_id; it holds id, text"),
    ],
)
def test_a_wrong_field_is_named_with_its_row_in_parquet(tmp_path, rows, message):
    parquet(tmp_path / "notes.parquet", rows)

    with pytest.raises(DataError, match=re.escape(message)):
        load_notes(tmp_path)


def test_the_row_is_right_beyond_the_first_batch(tmp_path):
    rows = [{"note_id": f"n{row}"} for row in range(9000)] + [{"note_id": "n0"}]
    parquet(tmp_path / "notes.parquet", rows)

    with pytest.raises(DataError, match=r"row 9000: note_id 'n0' is there twice"):
        load_notes(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.jsonl", b"", r"notes\.jsonl is empty"),
        ("notes.jsonl", b"\n\n", r"notes\.jsonl holds no notes"),
        ("notes.jsonl", b'{"note_id": "a"\n', r"notes\.jsonl line 1: not valid JSON: "),
        ("notes.jsonl", b'{"note_id": "\xff"}\n', r"notes\.jsonl line 1: not valid JSON: "),
        ("notes.jsonl", b'{"note_id": NaN}\n', r"notes\.jsonl line 1: note_id must not be empty"),
        ("notes.jsonl", b'{"note_id": NaN\n', r"notes\.jsonl line 1: not valid JSON: .* \(character 13\)$"),
        ("notes.jsonl", b"[1]\n", r"notes\.jsonl line 1: must be a JSON object, got a list"),
        ("notes.jsonl", b'{"id": 1, "text": 2}\n', r"line 1: note_id is missing; it holds id, text"),
        ("notes.parquet", b"not parquet at all", r"notes\.parquet cannot be read as Parquet: "),
        ("notes.csv", b"note_id\na\n", r"notes\.csv: the name must end in \.parquet or \.jsonl"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=message) as raised:
        load_notes(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_an_ambiguous_folder_are_told_apart(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        load_notes(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"no notes\.parquet and no notes\.jsonl in this folder"):
        load_notes(tmp_path)
    jsonl(tmp_path / "notes.jsonl", [FULL])
    parquet(tmp_path / "notes.parquet", [FULL])
    with pytest.raises(DataError, match="are both in this folder"):
        load_notes(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(list(FULL)), JSON))
def test_whatever_a_line_holds_the_answer_is_notes_or_one_line(tmp_path_factory, fields):
    path = tmp_path_factory.mktemp("any") / "notes.jsonl"
    jsonl(path, [FULL | fields])

    try:
        [note] = load_notes(path)
    except DataError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - both outcomes are right
    else:
        assert note.id
        assert note.exposure >= 0

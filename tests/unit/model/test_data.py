"""Files of notes, events and pairs: what goes in comes out, and what is wrong is named in one line."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data import (
    DataError,
    EventTable,
    Pairs,
    is_blank,
    read_events,
    read_notes,
    read_pairs,
    write_pairs,
)
from model.note import Note

FULL = {
    "note_id": "n1",
    "title": "Walk",
    "content": "Along the river",
    "hashtags": ["citywalk", "河边"],
    "category": "Travel",
    "exposure": 7,
}
CLICK = {"user_id": "u1", "note_id": "n1", "event": "click", "ts": 5}


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def named_events(events: EventTable) -> list[tuple[int, str, int, bool]]:
    return [
        (int(user), events.note_ids[note], int(ts), bool(clicked))
        for user, note, ts, clicked in zip(events.users, events.notes, events.ts, events.clicked, strict=True)
    ]


@pytest.mark.parametrize(("write", "name"), [(jsonl, "notes.jsonl"), (parquet, "notes.parquet")])
def test_a_note_is_read_alike_from_both_formats_and_from_its_folder(tmp_path, write, name):
    write(tmp_path / name, [FULL, {"note_id": "n2"}])
    expected = [Note("n1", "Walk", "Along the river", ("citywalk", "河边"), "Travel", 7), Note("n2")]

    assert read_notes(tmp_path / name) == expected
    assert read_notes(tmp_path) == expected


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

    assert read_notes(tmp_path) == [Note("a"), Note("b", hashtags=("x",), exposure=3)]


def test_blank_lines_are_passed_over_but_counted(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text('{"note_id": "a"}\n\n\n{"note_id": 4}\n')

    with pytest.raises(DataError, match=re.escape("notes.jsonl line 4: note_id must be a string, got a number")):
        read_notes(path)


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
        ({"note_id": "n0"}, "note_id 'n0' stands in the file twice"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path, change, message):
    jsonl(tmp_path / "notes.jsonl", [{"note_id": "n0"}, FULL | change])

    with pytest.raises(DataError, match=rf"^notes\.jsonl line 2: {re.escape(message)}$"):
        read_notes(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"note_id": "a"}, {"note_id": "a"}], "notes.parquet row 1: note_id 'a' stands in the file twice"),
        ([{"note_id": "a"}, {"note_id": None}], "notes.parquet row 1: note_id must not be empty"),
        ([{"note_id": 5}], "notes.parquet row 0: note_id must be a string, got a number"),
        ([{"note_id": "a", "hashtags": "x"}], "row 0: hashtags must be a list of strings, got a string"),
        ([{"id": "a", "text": "b"}], "notes.parquet: no column note_id; it holds id, text"),
    ],
)
def test_a_wrong_field_is_named_with_its_row_in_parquet(tmp_path, rows, message):
    parquet(tmp_path / "notes.parquet", rows)

    with pytest.raises(DataError, match=re.escape(message)):
        read_notes(tmp_path)


def test_the_row_is_right_beyond_the_first_batch(tmp_path):
    rows = [{"note_id": f"n{row}"} for row in range(9000)] + [{"note_id": "n0"}]
    parquet(tmp_path / "notes.parquet", rows)

    with pytest.raises(DataError, match=r"row 9000: note_id 'n0' stands in the file twice"):
        read_notes(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.jsonl", b"", r"notes\.jsonl is empty"),
        ("notes.jsonl", b"\n\n", r"notes\.jsonl holds no notes"),
        ("notes.jsonl", b'{"note_id": "a"\n', r"notes\.jsonl line 1: not valid JSON: "),
        ("notes.jsonl", b'{"note_id": "\xff"}\n', r"notes\.jsonl line 1: not valid JSON: "),
        ("notes.jsonl", b'{"note_id": NaN}\n', r"notes\.jsonl line 1: not valid JSON: "),
        ("notes.jsonl", b"[1]\n", r"notes\.jsonl line 1: must be a JSON object, got a list"),
        ("notes.jsonl", b'{"id": 1, "text": 2}\n', r"line 1: note_id is missing; it holds id, text"),
        ("notes.parquet", b"not parquet at all", r"notes\.parquet cannot be read as Parquet: "),
        ("notes.csv", b"note_id\na\n", r"notes\.csv: the name must end in \.parquet or \.jsonl"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=message) as raised:
        read_notes(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_an_ambiguous_folder_are_told_apart(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        read_notes(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"no notes\.parquet and no notes\.jsonl in this folder"):
        read_notes(tmp_path)
    jsonl(tmp_path / "notes.jsonl", [FULL])
    parquet(tmp_path / "notes.parquet", [FULL])
    with pytest.raises(DataError, match="are both in this folder"):
        read_notes(tmp_path)


@pytest.mark.parametrize(("write", "name"), [(jsonl, "events.jsonl"), (parquet, "events.parquet")])
def test_events_are_read_alike_from_both_formats(tmp_path, write, name):
    """View, click, like and save of two users; only the view is no click; a missing time is counted."""
    rows = [
        {"user_id": "u1", "note_id": "n1", "event": "view", "ts": 5},
        {"user_id": "u2", "note_id": "n1", "event": "click", "ts": -6},
        {"user_id": "u1", "note_id": "n2", "event": "like", "ts": None},
        {"user_id": "u2", "note_id": "n3", "event": "save", "ts": 8},
    ]
    write(tmp_path / name, rows)

    events = read_events(tmp_path)

    assert named_events(events) == [
        (0, "n1", 5, False),
        (1, "n1", -6, True),
        (0, "n2", 0, True),
        (1, "n3", 8, True),
    ]
    assert (len(events), events.num_users, events.untimed) == (4, 2, 1)
    assert [array.dtype for array in (events.users, events.notes, events.ts, events.clicked)] == [
        np.int32,
        np.int32,
        np.int64,
        np.bool_,
    ]


def test_events_of_many_row_groups_keep_their_ids(tmp_path):
    """Row groups have dictionaries of their own; the codes must mean the same in all of them."""
    rows = [CLICK | {"user_id": f"u{row % 7}", "note_id": f"n{row * 37 % 101}", "ts": row} for row in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "events.parquet", row_group_size=90)

    events = read_events(tmp_path)

    assert [events.note_ids[note] for note in events.notes] == [row["note_id"] for row in rows]
    assert events.ts.tolist() == list(range(1000))
    assert len(set(zip(events.users.tolist(), [row["user_id"] for row in rows], strict=True))) == 7


def test_categorical_columns_and_float_times_are_read(tmp_path):
    table = pa.table(
        {
            "user_id": pa.array(["u", "v"]).dictionary_encode(),
            "note_id": pa.array(["n", "m"], pa.large_string()),
            "event": ["click", "click"],
            "ts": [math.nan, 4.0],
        }
    )
    pq.write_table(table, tmp_path / "events.parquet")

    events = read_events(tmp_path)

    assert named_events(events) == [(0, "n", 0, True), (1, "m", 4, True)]
    assert events.untimed == 1


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_events_without_a_column_of_times_are_all_untimed(tmp_path, write):
    without = {name: CLICK[name] for name in ("user_id", "note_id", "event")}
    write(tmp_path / ("events.jsonl" if write is jsonl else "events.parquet"), [without, without])

    assert read_events(tmp_path).untimed == 2


@pytest.mark.parametrize(
    ("change", "in_jsonl", "in_parquet"),
    [
        (
            {"event": "buy"},
            "line 2: event must be one of view, click, like, save, got 'buy'",
            "row 1: event must",
        ),
        ({"user_id": ""}, "line 2: user_id must not be empty", "row 1: user_id must not be empty"),
        ({"note_id": None}, "line 2: note_id must not be empty", "row 1: note_id must not be empty"),
    ],
)
def test_a_wrong_event_is_named_in_both_formats(tmp_path, change, in_jsonl, in_parquet):
    rows = [CLICK, CLICK | change]

    with pytest.raises(DataError, match=re.escape(in_jsonl)):
        read_events(jsonl(tmp_path / "events.jsonl", rows))
    with pytest.raises(DataError, match=re.escape(in_parquet)):
        read_events(parquet(tmp_path / "events.parquet", rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": 4}, "events.parquet: user_id must be a column of strings, got int64"),
        ({"ts": "monday"}, "events.parquet: ts must be a column of whole numbers, got string"),
        ({"ts": 1.5}, "events.parquet: ts must be a column of whole numbers of 64 bits"),
    ],
)
def test_a_wrong_column_of_events_is_named_with_its_type(tmp_path, change, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_events(parquet(tmp_path / "events.parquet", [CLICK | change]))


def test_a_log_without_events_is_refused(tmp_path):
    path = tmp_path / "events.parquet"
    pq.write_table(pa.Table.from_pylist([CLICK]).slice(0, 0), path)

    with pytest.raises(DataError, match=r"events\.parquet holds no events"):
        read_events(path)


def test_pairs_survive_the_file(tmp_path):
    pairs = Pairs(("a", "a", "b"), ("b", "c", "a"), np.array([0.5, 1 / 3, 2.0]), np.array([1, 2, 3]))

    write_pairs(tmp_path / "pairs.parquet", pairs)
    again = read_pairs(tmp_path)

    assert again.ends() == [("a", "b"), ("a", "c"), ("b", "a")]
    assert again.scores.tolist() == [0.5, 1 / 3, 2.0]
    assert again.users.tolist() == [1, 2, 3]
    assert pq.read_schema(tmp_path / "pairs.parquet").names == ["note_id", "related_id", "score", "users"]


def test_pairs_with_few_users_can_be_left_out():
    pairs = Pairs(("a", "a", "b"), ("b", "c", "a"), np.array([0.5, 0.4, 2.0]), np.array([1, 2, 3]), 4)

    kept = pairs.supported_by(2)

    assert kept.ends() == [("a", "c"), ("b", "a")]
    assert (kept.scores.tolist(), kept.users.tolist(), kept.skipped_users) == ([0.4, 2.0], [2, 3], 4)


def test_a_wrong_pair_is_named(tmp_path):
    row = {"note_id": "a", "related_id": "b", "score": "high", "users": 2}

    with pytest.raises(DataError, match=r"pairs\.jsonl line 1: score must be a number, got a string"):
        read_pairs(jsonl(tmp_path / "pairs.jsonl", [row]))


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
        [note] = read_notes(path)
    except DataError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - both outcomes are right
    else:
        assert note.id
        assert note.exposure >= 0

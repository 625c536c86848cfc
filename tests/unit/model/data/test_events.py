"""Files of events: what goes in comes out, and what is wrong is named in one line."""

import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.rows import jsonl, parquet

from model.data.events import EventTable, load_events
from model.data.files import DataError

CLICK = {"user_id": "u1", "note_id": "n1", "event": "click", "ts": 5}


def named_events(events: EventTable) -> list[tuple[int, str, int, bool]]:
    return [
        (int(user), events.note_ids[note], int(ts), bool(clicked))
        for user, note, ts, clicked in zip(events.users, events.notes, events.ts, events.clicked, strict=True)
    ]


@pytest.mark.parametrize(("write", "name"), [(jsonl, "events.jsonl"), (parquet, "events.parquet")])
def test_events_are_loaded_alike_from_both_formats(tmp_path, write, name):
    """View, click, like and save of two users; only the view is no click; a missing time is counted."""
    rows = [
        {"user_id": "u1", "note_id": "n1", "event": "view", "ts": 5},
        {"user_id": "u2", "note_id": "n1", "event": "click", "ts": -6},
        {"user_id": "u1", "note_id": "n2", "event": "like", "ts": None},
        {"user_id": "u2", "note_id": "n3", "event": "save", "ts": 8},
    ]
    write(tmp_path / name, rows)

    events = load_events(tmp_path)

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

    events = load_events(tmp_path)

    assert [events.note_ids[note] for note in events.notes] == [row["note_id"] for row in rows]
    assert events.ts.tolist() == list(range(1000))
    assert len(set(zip(events.users.tolist(), [row["user_id"] for row in rows], strict=True))) == 7


def test_categorical_columns_and_float_times_are_loaded(tmp_path):
    table = pa.table(
        {
            "user_id": pa.array(["u", "v"]).dictionary_encode(),
            "note_id": pa.array(["n", "m"], pa.large_string()),
            "event": ["click", "click"],
            "ts": [math.nan, 4.0],
        }
    )
    pq.write_table(table, tmp_path / "events.parquet")

    events = load_events(tmp_path)

    assert named_events(events) == [(0, "n", 0, True), (1, "m", 4, True)]
    assert events.untimed == 1


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_events_without_a_column_of_times_are_all_untimed(tmp_path, write):
    without = {name: CLICK[name] for name in ("user_id", "note_id", "event")}
    write(tmp_path / ("events.jsonl" if write is jsonl else "events.parquet"), [without, without])

    assert load_events(tmp_path).untimed == 2


@pytest.mark.parametrize(
    ("change", "in_jsonl", "in_parquet"),
    [
        (
            {"event": "buy"},
            "line 2: event must be one of view, click, like, save, impression, dismiss, got 'buy'",
            "row 1: event must",
        ),
        ({"user_id": ""}, "line 2: user_id must not be empty", "row 1: user_id must not be empty"),
        ({"note_id": None}, "line 2: note_id must not be empty", "row 1: note_id must not be empty"),
    ],
)
def test_a_wrong_event_is_named_in_both_formats(tmp_path, change, in_jsonl, in_parquet):
    rows = [CLICK, CLICK | change]

    with pytest.raises(DataError, match=re.escape(in_jsonl)):
        load_events(jsonl(tmp_path / "events.jsonl", rows))
    with pytest.raises(DataError, match=re.escape(in_parquet)):
        load_events(parquet(tmp_path / "events.parquet", rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": 4}, "events.parquet: user_id must be a column of strings, got int64"),
        ({"user_id": {"id": "u1"}}, "events.parquet: user_id must be a column of strings, got struct<id: string>"),
        ({"note_id": ["n1"]}, "events.parquet: note_id must be a column of strings, got list<element: string>"),
        ({"event": [["click"]]}, "events.parquet: event must be a column of strings, got list<element: list<"),
        ({"ts": {"at": 5}}, "events.parquet: ts must be a column of numbers or of times, got struct<at: int64>"),
        ({"ts": True}, "events.parquet: ts must be a column of numbers or of times, got bool"),
        ({"ts": "monday"}, "events.parquet row 0: ts must be a number or an ISO 8601 time, got 'monday'"),
        ({"ts": math.inf}, "events.parquet row 0: ts must fit into 64 bits"),
    ],
)
def test_a_wrong_column_of_events_is_named_with_its_type(tmp_path, change, message):
    with pytest.raises(DataError, match=re.escape(message)):
        load_events(parquet(tmp_path / "events.parquet", [CLICK | change]))


def test_a_log_without_events_is_refused(tmp_path):
    path = tmp_path / "events.parquet"
    pq.write_table(pa.Table.from_pylist([CLICK]).slice(0, 0), path)

    with pytest.raises(DataError, match=r"events\.parquet holds no events"):
        load_events(path)

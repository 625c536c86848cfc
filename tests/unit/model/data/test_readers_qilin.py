"""Qilin in its published layout, with rows of our own: what goes in comes out as notes and events."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data.cooccurrence import related_pairs
from model.data.events import load_events
from model.data.files import DataError
from model.data.notes import load_notes
from model.data.readers import convert
from model.note import Note

NOTE: dict[str, Any] = {
    "note_title": "河边散步",
    "note_content": "傍晚的风很轻[笑哭R]\n#城市漫步[话题]##河边[话题]# 明天再来 #城市漫步[话题]# ",
    "note_type": 1.0,
    "image_num": 2.0,
    "taxonomy1_id": "5ab0a1",
    "taxonomy2_id": "c00487",
    "taxonomy3_id": "nan",
    "imp_num": 120.0,
    "click_num": 11.0,
    "note_idx": 0,
    "image_path": ["image/a.jpg"],
}
BARE = NOTE | {"note_idx": 7, "note_title": None, "note_content": "C# 和 #1", "taxonomy1_id": "nan", "imp_num": None}
DAY = 1_732_600_000_000


def shown(note_idx: int, ts: int, **deeds: int) -> dict[str, Any]:
    row = {"click": 0, "collect": 0, "comment": 0, "like": 0, "note_idx": note_idx, "page_time": 0.0}
    return row | {"position": 1, "request_timestamp": DAY + ts, "share": 0} | deeds


def request(user_idx: int, results: list[dict[str, Any]], recent: list[int]) -> dict[str, Any]:
    row: dict[str, Any] = {"recent_clicked_note_idxs": recent, "request_idx": 1, "session_idx": 2}
    return row | {"user_idx": user_idx, "query": "", "rec_result_details_with_idx": results}


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def qilin(
    folder: Path,
    train: list[dict[str, Any]],
    test: list[dict[str, Any]] | None = None,
    notes: list[dict[str, Any]] | None = None,
) -> Path:
    parquet(folder / "notes" / "train-00000-of-00001.parquet", notes or [NOTE, BARE])
    parquet(folder / "recommendation_train" / "train-00000-of-00001.parquet", train)
    parquet(folder / "recommendation_test" / "train-00000-of-00001.parquet", test or [request(9, [shown(0, 0)], [])])
    return folder


def log(folder: Path, user_id: str) -> list[tuple[str, str, int]]:
    rows = pq.read_table(folder / "events.parquet").to_pylist()
    return [(row["note_id"], row["event"], row["ts"] - DAY) for row in rows if row["user_id"] == user_id]


def test_the_notes_load_back_with_their_hashtags_out_of_the_content(tmp_path):
    convert("qilin", qilin(tmp_path / "in", [request(1, [shown(0, 0)], [])]), tmp_path / "out")

    assert load_notes(tmp_path / "out") == [
        Note("0", "河边散步", "傍晚的风很轻[笑哭R]\n 明天再来", ("城市漫步", "河边"), "5ab0a1", 120),
        Note("7", "", "C# 和 #1", (), None, 0),
    ]


def test_a_shown_note_is_one_event_the_strongest_deed(tmp_path):
    results = [
        shown(1, 1),
        shown(2, 2, click=1),
        shown(3, 3, click=1, like=1),
        shown(4, 4, click=1, like=1, collect=1),
        shown(5, 5, comment=1),
        shown(6, 6, share=1),
    ]

    convert("qilin", qilin(tmp_path / "in", [request(1, results, [])]), tmp_path / "out")

    assert log(tmp_path / "out", "1") == [
        ("1", "view", 1),
        ("2", "click", 2),
        ("3", "like", 3),
        ("4", "save", 4),
        ("5", "click", 5),
        ("6", "click", 6),
    ]


def test_train_and_test_requests_are_both_loaded_and_views_can_be_left_out(tmp_path):
    source = qilin(tmp_path / "in", [request(1, [shown(1, 0, click=1), shown(2, 0)], [])])
    parquet(source / "recommendation_test" / "more.parquet", [request(2, [shown(3, 5, click=1)], [])])

    assert convert("qilin", source, tmp_path / "all").events == 4
    assert convert("qilin", source, tmp_path / "clicks", clicks_only=True).events == 2
    assert load_events(tmp_path / "clicks").num_users == 2


def test_recent_clicks_come_once_just_before_the_first_request_that_lists_them(tmp_path):
    later = request(1, [shown(5, 500)], [20, 30, 40])
    first = request(1, [shown(4, 120), shown(6, 100)], [30, 20])
    someone_else = request(2, [shown(6, 50)], [20])

    convert("qilin", qilin(tmp_path / "in", [later, first, someone_else]), tmp_path / "out")

    clicks = sorted(row for row in log(tmp_path / "out", "1") if row[1] == "click")
    assert clicks == [("20", "click", 99), ("30", "click", 99), ("40", "click", 499)]
    assert log(tmp_path / "out", "2") == [("6", "view", 50), ("20", "click", 49)]


def test_a_recent_click_that_an_earlier_request_shows_is_no_second_click(tmp_path):
    requests = [request(1, [shown(20, 100, click=1)], []), request(1, [shown(5, 500)], [20])]

    convert("qilin", qilin(tmp_path / "in", requests), tmp_path / "out")

    assert log(tmp_path / "out", "1") == [("20", "click", 100), ("5", "view", 500)]


def test_a_recent_click_that_comes_again_later_stays(tmp_path):
    requests = [request(1, [shown(5, 100)], [20]), request(1, [shown(20, 500, click=1)], [])]

    convert("qilin", qilin(tmp_path / "in", requests), tmp_path / "out")

    assert log(tmp_path / "out", "1") == [("5", "view", 100), ("20", "click", 500), ("20", "click", 99)]


def test_the_events_load_back_and_give_pairs_in_order(tmp_path):
    source = qilin(tmp_path / "in", [request(1, [shown(0, 10, click=1)], [7])], [request(1, [shown(0, 11)], [7])])

    convert("qilin", source, tmp_path / "out")

    assert related_pairs(load_events(tmp_path / "out")).ends() == [("7", "0")]


def test_a_request_without_results_is_nothing(tmp_path):
    source = qilin(tmp_path / "in", [request(1, [shown(1, 0)], []), request(1, [], [3])])

    convert("qilin", source, tmp_path / "out")

    assert log(tmp_path / "out", "1") == [("1", "view", 0)]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"note_idx": 1}, "collect is missing; it holds note_idx"),
        (shown(1, 0) | {"note_idx": None}, "note_idx must not be empty"),
        (shown(1, 0) | {"click": "yes"}, "click must be a whole number"),
        (shown(1, 0) | {"request_timestamp": 0.5}, "request_timestamp must be a whole number"),
    ],
)
def test_a_wrong_field_of_a_result_is_named_with_its_file_and_row(tmp_path, result, said):
    source = qilin(tmp_path / "in", [request(1, [result], [])])

    with pytest.raises(DataError, match=rf"^recommendation_train/train-00000-of-00001.parquet row 0: {said}") as caught:
        convert("qilin", source, tmp_path / "out")

    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_lists_that_came_as_text_are_named(tmp_path):
    row = request(1, [shown(1, 0)], [])

    with pytest.raises(DataError, match=r"row 0: recent_clicked_note_idxs must be a list of whole numbers"):
        convert("qilin", qilin(tmp_path / "a", [row | {"recent_clicked_note_idxs": "[1 2]"}]), tmp_path / "out")
    with pytest.raises(DataError, match=r"row 0: rec_result_details_with_idx must be a list of objects"):
        convert("qilin", qilin(tmp_path / "b", [row | {"rec_result_details_with_idx": "[{}]"}]), tmp_path / "out")


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ({"note_title": 3}, "note_title must be a string"),
        ({"imp_num": -1.0}, "imp_num must not be negative"),
        ({"imp_num": "many"}, "imp_num must be a whole number"),
        ({"note_idx": None}, "note_idx must not be empty"),
    ],
)
def test_a_wrong_field_of_a_note_is_named_with_its_file_and_row(tmp_path, note, said):
    source = qilin(tmp_path / "in", [request(1, [shown(1, 0)], [])], notes=[NOTE | note])

    with pytest.raises(DataError, match=rf"^notes/train-00000-of-00001.parquet row 0: {said}"):
        convert("qilin", source, tmp_path / "out")


def test_a_missing_folder_or_column_and_an_empty_or_broken_file_are_named(tmp_path):
    source = qilin(tmp_path / "in", [request(1, [shown(1, 0)], [])])
    notes = source / "notes" / "train-00000-of-00001.parquet"

    parquet(notes, [{"note_idx": 1, "title": "x"}])
    with pytest.raises(DataError, match=r"notes/train-.*: no column note_title; it holds note_idx, title"):
        convert("qilin", source, tmp_path / "out")

    pq.write_table(pa.Table.from_pylist([NOTE]).slice(0, 0), notes)
    with pytest.raises(DataError, match=r"notes/train-.* is empty"):
        convert("qilin", source, tmp_path / "out")

    notes.write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"notes/train-.* cannot be read as Parquet"):
        convert("qilin", source, tmp_path / "out")

    notes.unlink()
    with pytest.raises(DataError, match=r"notes: no .parquet file in this folder"):
        convert("qilin", source, tmp_path / "out")

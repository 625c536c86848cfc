"""MIND in its published layout, with rows of our own: what goes in comes out as notes and events."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from model.data.cooccurrence import related_pairs
from model.data.events import load_events
from model.data.files import DataError
from model.data.notes import load_notes
from model.data.readers import convert
from model.note import Note

NEWS = {
    "N1": ("N1", "sports", "rowing", 'Eights on the "lake"', "A calm morning.", "https://a.example/1", "[]", "[]"),
    "N2": ("N2", "food", "", "Plum dumplings", "", "https://a.example/2", "[]", "[]"),
    "N3": ("N3", "", "soups", "Lentils, twice", "Red\u2028and brown.", "https://a.example/3", "", ""),
}
NOON = 1_573_819_200  # 2019-11-15 12:00:00 UTC
BEHAVIORS = [
    ("1", "U1", "11/15/2019 12:00:00 PM", "N2 N1", "N1-0 N3-1"),
    ("2", "U1", "11/15/2019 1:00:05 PM", "N2 N1", "N2-1"),
    ("3", "U2", "11/16/2019 12:00:00 AM", "", "N1-1 N2-0"),
]


def split(folder: Path, behaviors: list[tuple[str, ...]], news: str = "N1 N2 N3") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("behaviors.tsv", behaviors), ("news.tsv", [NEWS[key] for key in news.split()])):
        (folder / name).write_text("".join("\t".join(row) + "\n" for row in rows))
    return folder


def log(folder: Path) -> list[tuple[str, str, str, int]]:
    return [tuple(row.values()) for row in pq.read_table(folder / "events.parquet").to_pylist()]


def test_impressions_become_views_and_clicks_and_the_history_clicks_before_them(tmp_path):
    written = convert("mind", split(tmp_path / "MINDsmall_train", BEHAVIORS), tmp_path / "out")

    assert log(tmp_path / "out") == [
        ("U1", "N2", "click", 0),
        ("U1", "N1", "click", 1),
        ("U1", "N1", "view", NOON),
        ("U1", "N3", "click", NOON),
        ("U1", "N2", "click", NOON + 3605),
        ("U2", "N1", "click", NOON + 12 * 3600),
        ("U2", "N2", "view", NOON + 12 * 3600),
    ]
    assert written == (3, 7)


def test_the_notes_load_back_with_the_impressions_shown_as_exposure(tmp_path):
    convert("mind", split(tmp_path / "in", BEHAVIORS), tmp_path / "out")

    assert load_notes(tmp_path / "out") == [
        Note("N1", 'Eights on the "lake"', "A calm morning.", ("rowing",), "sports", 2),
        Note("N2", "Plum dumplings", "", (), "food", 2),
        Note("N3", "Lentils, twice", "Red\u2028and brown.", ("soups",), None, 1),
    ]


def test_the_events_load_back_and_give_pairs_in_the_order_of_clicks(tmp_path):
    convert("mind", split(tmp_path / "in", [("1", "U1", "11/15/2019 8:00:00 AM", "N2 N1", "N3-1")]), tmp_path / "out")
    events = load_events(tmp_path / "out")

    pairs = related_pairs(events)

    assert (len(events), events.num_users, events.untimed) == (3, 1, 0)
    assert pairs.ends() == [("N1", "N3"), ("N2", "N1"), ("N2", "N3")]


def test_clicks_only_leaves_views_out_of_the_log_but_not_out_of_exposure(tmp_path):
    convert("mind", split(tmp_path / "in", BEHAVIORS), tmp_path / "out", clicks_only=True)

    assert {event for _, _, event, _ in log(tmp_path / "out")} == {"click"}
    assert load_events(tmp_path / "out").clicked.all()
    assert [note.exposure for note in load_notes(tmp_path / "out")] == [2, 2, 1]


def test_splits_are_joined_oldest_first_and_a_history_counts_once(tmp_path):
    train = [("1", "U1", "11/14/2019 12:00:00 PM", "N1", "N2-1")]
    dev = [("1", "U1", "11/15/2019 12:00:00 PM", "N1 N2", "N3-1")]
    split(tmp_path / "in" / "unpacked" / "MINDsmall_dev", dev, news="N2 N3")
    split(tmp_path / "in" / "MINDsmall_train", train, news="N1 N2")

    convert("mind", tmp_path / "in", tmp_path / "out")

    assert [row[1:] for row in log(tmp_path / "out")] == [
        ("N1", "click", 0),
        ("N2", "click", NOON - 24 * 3600),
        ("N3", "click", NOON),
    ]
    assert [note.id for note in load_notes(tmp_path / "out")] == ["N1", "N2", "N3"]


def test_impressions_of_the_test_split_have_no_labels_and_are_views(tmp_path):
    convert("mind", split(tmp_path / "in", [("1", "U1", "11/22/2019 8:00:00 AM", "N1", "N2 N3")]), tmp_path / "out")

    assert [(note, event) for _, note, event, _ in log(tmp_path / "out")] == [
        ("N1", "click"),
        ("N2", "view"),
        ("N3", "view"),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("2", "U1", "11/15/2019 8:00:00 AM", "N1-1"), "behaviors.tsv line 2: must have 5 columns .* has 4"),
        (("2", "U1", "2019-11-15 08:00:00", "", "N1-1"), "behaviors.tsv line 2: time must be like .* '2019-11-15"),
        (("2", "U1", "11/15/2019 8:00:00 AM", "", "N1-2"), "behaviors.tsv line 2: impressions must be .* 'N1-2'"),
        (("2", "U1", "11/15/2019 8:00:00 AM", "", "-1"), "behaviors.tsv line 2: impressions must be .* '-1'"),
        (("2", "", "11/15/2019 8:00:00 AM", "", "N1-1"), "behaviors.tsv line 2: user id must not be empty"),
    ],
)
def test_a_wrong_field_is_named_with_its_file_and_line_and_nothing_is_written(tmp_path, row, said):
    source = split(tmp_path / "in", [BEHAVIORS[0], row])

    with pytest.raises(DataError, match=said) as caught:
        convert("mind", source, tmp_path / "out")

    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_wrong_line_of_news_leaves_no_half_conversion(tmp_path):
    source = split(tmp_path / "in", BEHAVIORS)
    (source / "news.tsv").write_text("N1\tsports\trowing\tA title\tNo more\n")

    with pytest.raises(DataError, match=r"in/news.tsv line 1: must have 8 columns \(news id, .*\), has 5"):
        convert("mind", source, tmp_path / "out")

    assert list((tmp_path / "out").iterdir()) == []


def test_bytes_that_are_no_text_are_named(tmp_path):
    source = split(tmp_path / "in", BEHAVIORS)
    (source / "news.tsv").write_bytes(b"N1\t\xff\n")

    with pytest.raises(DataError, match=r"news.tsv line 1: not valid UTF-8"):
        convert("mind", source, tmp_path / "out")


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"neither news.tsv nor behaviors.tsv"):
        convert("mind", tmp_path, tmp_path / "out")

    source = split(tmp_path / "in", [])
    with pytest.raises(DataError, match=r"in/behaviors.tsv is empty"):
        convert("mind", source, tmp_path / "out")

    (source / "news.tsv").unlink()
    with pytest.raises(DataError, match=r"in/news.tsv: no such file"):
        convert("mind", source, tmp_path / "out")

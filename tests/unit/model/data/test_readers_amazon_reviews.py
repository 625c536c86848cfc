"""Amazon Reviews 2023 in its published layout, with rows of our own: what goes in comes out as notes and events."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from model.data.events import load_events
from model.data.files import DataError
from model.data.notes import load_notes
from model.data.readers import convert
from model.note import Note

ITEM: dict[str, Any] = {
    "main_category": "Tools & Home Improvement",
    "title": "Folding rule, 2 m",
    "average_rating": 4.1,
    "rating_number": 3,
    "features": ["Beech", "Ten links"],
    "description": ["Opens with one hand."],
    "price": "7.50",
    "images": [],
    "videos": [],
    "store": None,
    "categories": ["Industrial & Scientific", "Test, Measure & Inspect", "Rulers", "Folding Rulers", "Rulers"],
    "details": {"Material": "Wood"},
    "parent_asin": "B0A",
    "bought_together": None,
}
BARE = ITEM | {"parent_asin": "B0B", "title": None, "features": [], "description": None, "categories": []}
REVIEW: dict[str, Any] = {
    "rating": 5.0,
    "title": "Straight",
    "text": "Still straight after a year.",
    "images": [],
    "asin": "B0A-blue",
    "parent_asin": "B0A",
    "user_id": "AE1",
    "timestamp": 1_600_000_000_123,
    "helpful_vote": 0,
    "verified_purchase": True,
}
REVIEWS = [REVIEW, REVIEW | {"user_id": "AE2", "rating": 2, "timestamp": 1_500_000_000_000}]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def category(folder: Path, reviews: list[dict[str, Any]], items: list[dict[str, Any]], suffix: str = ".jsonl") -> Path:
    jsonl(folder / f"Rulers{suffix}", reviews)
    jsonl(folder / f"meta_Rulers{suffix}", items)
    return folder


def log(folder: Path) -> list[tuple[str, str, str, int]]:
    return [tuple(row.values()) for row in pq.read_table(folder / "events.parquet").to_pylist()]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_items_become_notes_and_reviews_events_packed_or_not(tmp_path, suffix):
    written = convert("amazon-reviews", category(tmp_path / "in", REVIEWS, [ITEM, BARE], suffix), tmp_path / "out")

    assert written == (2, 2)
    assert log(tmp_path / "out") == [
        ("AE1", "B0A", "like", 1_600_000_000_123),
        ("AE2", "B0A", "click", 1_500_000_000_000),
    ]
    assert load_notes(tmp_path / "out") == [
        Note(
            "B0A",
            "Folding rule, 2 m",
            "Beech\nTen links\nOpens with one hand.",
            ("rulers", "folding rulers"),
            "Test, Measure & Inspect",
            2,
        ),
        Note("B0B", "", "", (), "Tools & Home Improvement", 0),
    ]


def test_the_events_load_back_as_clicks_of_both_users(tmp_path):
    convert("amazon-reviews", category(tmp_path / "in", REVIEWS, [ITEM]), tmp_path / "out", clicks_only=True)

    events = load_events(tmp_path / "out")

    assert (len(events), events.num_users, events.note_ids, events.untimed) == (2, 2, ("B0A",), 0)
    assert events.clicked.all()
    assert events.ts.tolist() == [1_600_000_000_123, 1_500_000_000_000]


def test_categories_in_the_folders_of_the_hub_are_joined_and_an_item_of_both_is_one_note(tmp_path):
    for name in ("Rulers", "Unknown"):
        jsonl(tmp_path / "raw" / "review_categories" / f"{name}.jsonl", [REVIEW])
        jsonl(tmp_path / "raw" / "meta_categories" / f"meta_{name}.jsonl", [ITEM])

    assert convert("amazon-reviews", tmp_path / "raw", tmp_path / "out") == (1, 2)
    assert load_notes(tmp_path / "out")[0].exposure == 2


def test_more_rows_than_a_row_group_come_out_in_order(tmp_path):
    many = [REVIEW | {"user_id": f"AE{number}", "timestamp": number} for number in range(70_000)]

    convert("amazon-reviews", category(tmp_path / "in", many, [ITEM]), tmp_path / "out")

    assert pq.ParquetFile(tmp_path / "out" / "events.parquet").metadata.num_row_groups == 2
    assert load_events(tmp_path / "out").ts.tolist() == list(range(70_000))
    assert load_notes(tmp_path / "out")[0].exposure == 70_000


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("review", "said"),
    [
        (without(REVIEW, "parent_asin"), "parent_asin is missing; it holds rating, title, text"),
        (REVIEW | {"user_id": ""}, "user_id must not be empty"),
        (REVIEW | {"timestamp": "yesterday"}, "timestamp must be a whole number"),
        (REVIEW | {"timestamp": 1.5}, "timestamp must be a whole number"),
        (REVIEW | {"timestamp": 2**63}, "timestamp must fit into 64 bits"),
        (REVIEW | {"rating": None}, "rating must be a number"),
    ],
)
def test_a_wrong_field_of_a_review_is_named_with_its_file_and_line(tmp_path, review, said):
    with pytest.raises(DataError, match=rf"^in/Rulers.jsonl line 2: {said}") as caught:
        convert("amazon-reviews", category(tmp_path / "in", [REVIEW, review], [ITEM]), tmp_path / "out")

    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (without(ITEM, "categories"), "categories is missing"),
        (ITEM | {"title": 7}, "title must be a string"),
        (ITEM | {"features": ["Beech", None]}, "features must be a list of strings"),
        (ITEM | {"description": "Opens"}, "description must be a list of strings"),
        (ITEM | {"parent_asin": None}, "parent_asin must not be empty"),
    ],
)
def test_a_wrong_field_of_an_item_is_named_with_its_file_and_line(tmp_path, item, said):
    with pytest.raises(DataError, match=rf"^in/meta_Rulers.jsonl line 1: {said}"):
        convert("amazon-reviews", category(tmp_path / "in", REVIEWS, [item]), tmp_path / "out")


@pytest.mark.parametrize(("line", "said"), [(b"{", "not valid JSON"), (b"[]", "must be a JSON object")])
def test_a_line_that_is_no_object_is_named(tmp_path, line, said):
    source = category(tmp_path / "in", REVIEWS, [ITEM])
    (source / "Rulers.jsonl").write_bytes(b"\n" + line)

    with pytest.raises(DataError, match=rf"Rulers.jsonl line 2: {said}"):
        convert("amazon-reviews", source, tmp_path / "out")


def test_a_torn_download_is_named(tmp_path):
    source = category(tmp_path / "in", [REVIEW] * 1000, [ITEM], ".jsonl.gz")
    packed = source / "Rulers.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-20])

    with pytest.raises(DataError, match=r"in/Rulers.jsonl.gz: cannot be unpacked after line \d+"):
        convert("amazon-reviews", source, tmp_path / "out")


def test_files_that_miss_their_partner_are_empty_or_double_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no .jsonl and no .jsonl.gz file"):
        convert("amazon-reviews", tmp_path, tmp_path / "out")

    source = category(tmp_path / "in", [], [ITEM])
    with pytest.raises(DataError, match=r"in/Rulers.jsonl is empty"):
        convert("amazon-reviews", source, tmp_path / "out")

    jsonl(source / "Rulers.jsonl.gz", REVIEWS)
    with pytest.raises(DataError, match=r"Rulers is there twice"):
        convert("amazon-reviews", source, tmp_path / "out")

    (source / "meta_Rulers.jsonl").unlink()
    (source / "Rulers.jsonl").unlink()
    with pytest.raises(DataError, match=r"meta_Rulers.jsonl is missing"):
        convert("amazon-reviews", source, tmp_path / "out")

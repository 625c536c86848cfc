"""Bodies of the contract: what is taken, what is refused, and that a refusal never repeats what was sent."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from model.note import Note
from service.api.bodies import parse, parse_bulk
from service.api.records import draft_note, note_record
from service.contract.notes import BulkNoteIn, NoteIn
from service.contract.tags import DraftIn
from service.errors import BadRequest

MARK = "qzxjvk"

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)
labels = st.none() | texts
said = texts.filter(str.strip)
ids = st.from_regex(r"[A-Za-z0-9._~:-]{1,128}", fullmatch=True)
notes = st.fixed_dictionaries(
    {"title": said},
    optional={
        "content": texts,
        "hashtags": st.lists(said, max_size=30),
        "category": labels,
        "author": labels,
        "exposure": st.integers(0, 2**53 - 1),
        "created_at": st.datetimes().map(lambda time: time.isoformat() + "Z") | st.none(),
    },
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def refusal(model: type[BaseModel], body: bytes | str) -> str:
    """What is said against the body; nothing if it is taken."""
    try:
        parse(model, body)
    except BadRequest as error:
        return str(error)
    return ""


@given(notes, ids, st.booleans())
def test_every_note_of_the_contract_is_taken_as_it_is_but_for_trimming(note, note_id, escaped):
    body = json.dumps(note, ensure_ascii=escaped).encode()

    record = note_record(parse(NoteIn, body), note_id)

    assert (record.note.id, record.note.content) == (note_id, note.get("content", ""))
    assert record.note.title in note["title"]
    assert note["title"].split() == record.note.title.split()
    assert len(record.note.hashtags) == len(note.get("hashtags", []))
    assert record.note.category == note.get("category")
    assert record.note.exposure == note.get("exposure", 0)
    assert (record.author, record.created_at) == (note.get("author"), note.get("created_at"))


@given(st.sampled_from([NoteIn, BulkNoteIn, DraftIn]), st.binary(max_size=200) | anything.map(json.dumps))
def test_whatever_else_comes_is_refused_in_few_words(model, body):
    assert len(refusal(model, body)) <= 2000


@given(
    st.sampled_from([*NoteIn.model_fields, "max_hashtags", "vocabulary", "note_id", MARK]),
    st.recursive(st.just(MARK * 40), lambda inner: st.lists(inner) | st.dictionaries(st.just(MARK), inner)),
)
def test_a_refusal_never_repeats_what_was_sent(field, value):
    body = json.dumps({"title": "a", field: value})
    for model in (NoteIn, BulkNoteIn, DraftIn):
        assert MARK not in refusal(model, body)


@given(st.lists(anything, max_size=8), st.sampled_from([None, 1]))
def test_an_array_falls_into_the_elements_that_json_sees(elements, indent):
    bad = [{"note": element} for element in elements]

    records, rejected = parse_bulk(json.dumps(bad, indent=indent).encode())

    assert records == []
    assert [one.position for one in rejected] == list(range(len(elements)))


@given(st.lists(st.tuples(ids, notes), max_size=6), st.booleans())
def test_both_forms_of_a_bulk_give_the_same_notes_as_one_by_one(pairs, escaped):
    elements = [json.dumps(note | {"note_id": note_id}, ensure_ascii=escaped) for note_id, note in pairs]
    expected = [note_record(parse(NoteIn, json.dumps(note)), note_id) for note_id, note in pairs]

    assert parse_bulk(f"[{','.join(elements)}]".encode()) == (expected, [])
    if elements:
        assert parse_bulk("\n".join(elements).encode()) == (expected, [])


def test_a_large_element_of_an_array_is_read_whole():
    note = {"note_id": "a", "content": "\U0001f642" * 20_000, "hashtags": ["\U0001f642" * 64] * 30}

    [record], rejected = parse_bulk(json.dumps([note]).encode())

    assert rejected == []
    assert len(record.note.content) == 20_000


@pytest.mark.parametrize(
    ("field", "longest"), [("content", 20_000), ("title", 300), ("category", 128), ("author", 128)]
)
def test_text_may_have_so_many_characters_and_no_more(field, longest):
    parse(NoteIn, json.dumps({"title": "a", field: "\U0001f642" * longest}))
    with pytest.raises(BadRequest, match=rf"{field}: .*at most {longest}"):
        parse(NoteIn, json.dumps({"title": "a", field: "\U0001f642" * (longest + 1)}))


def test_thousands_of_errors_are_not_listed():
    """Listing them takes pydantic long enough to hold up everybody else."""
    body = json.dumps({"title": "a"} | {f"{MARK}{number}": 0 for number in range(5000)})

    assert refusal(NoteIn, body) == "too many errors to list"


def test_the_first_three_errors_are_named_by_field_and_rule():
    body = json.dumps({"title": 1, "content": 2, "hashtags": 3, "category": 4, "author": 5})

    assert refusal(NoteIn, body) == (
        "title: Input should be a valid string; content: Input should be a valid string; "
        "hashtags: Input should be a valid array"
    )


def test_a_title_is_measured_after_trimming():
    note = parse(NoteIn, json.dumps({"title": " " * 200 + "t" * 300 + "\n"}))

    assert note.title == "t" * 300


def test_a_note_may_have_a_title_or_content_or_both_but_not_nothing():
    parse(NoteIn, '{"title": "a"}')
    parse(NoteIn, '{"content": "a"}')
    for empty in ("{}", '{"title": ""}', '{"title": " ", "content": " \\n\\u3000"}'):
        with pytest.raises(BadRequest, match="both empty"):
            parse(NoteIn, empty)


@pytest.mark.parametrize("hashtags", [[""], [" "], ["x" * 65], ["a"] * 31, [1], [None], ["a\0"], {"a": 1}, "a", None])
def test_other_hashtags_are_refused(hashtags):
    with pytest.raises(BadRequest, match="hashtags"):
        parse(NoteIn, json.dumps({"title": "a", "hashtags": hashtags}))


@pytest.mark.parametrize("exposure", [-1, 2**53, 0.0, True, "1", None])
def test_exposure_is_a_count(exposure):
    with pytest.raises(BadRequest, match="exposure"):
        parse(NoteIn, json.dumps({"title": "a", "exposure": exposure}))


@pytest.mark.parametrize(
    "time",
    [
        "2026-01-31T12:00:00Z",
        "2026-01-31t12:00:00z",
        "2026-01-31 12:00:00+00:00",
        "1999-12-31T23:59:59.999999999-11:30",
    ],
)
def test_times_of_rfc_3339_are_taken(time):
    assert parse(NoteIn, json.dumps({"title": "a", "created_at": time})).created_at == time


@pytest.mark.parametrize(
    "time",
    [
        "",
        "now",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-01-31T12:00Z",
        "2026-02-30T12:00:00Z",
        "2026-01-31T25:00:00Z",
        "2026-01-31T12:00:00+99:00",
        "0000-01-01T00:00:00Z",
        "20260131T120000Z",
        "2026-W05-6T12:00:00Z",
        "\u0662\u0660\u0662\u0666-01-31T12:00:00Z",
        "2026-01-31T12:00:00Z\n",
        1767225600,
    ],
)
def test_other_times_are_refused_without_repeating_them(time):
    with pytest.raises(BadRequest, match=r"^created_at: ") as refusal:
        parse(NoteIn, json.dumps({"title": "a", "created_at": time}))
    assert not str(time).strip() or str(time) not in str(refusal.value)


@pytest.mark.parametrize("note_id", ["", "a b", "a/b", "caf\u00e9", "a\n", "x" * 129, "a%20", 1, None])
def test_other_ids_are_refused(note_id):
    with pytest.raises(BadRequest, match="note_id"):
        parse(BulkNoteIn, json.dumps({"title": "a", "note_id": note_id}))


def test_a_draft_is_read_as_a_note_without_id_and_with_the_defaults_of_the_contract():
    draft = parse(DraftIn, '{"title": "a", "content": "b", "hashtags": ["c"]}')

    assert draft_note(draft) == Note("", "a", "b", ("c",))
    assert (draft.max_hashtags, draft.vocabulary, draft.related) == (5, "open", 0)


def test_bodies_are_frozen():
    with pytest.raises(ValidationError):
        parse(NoteIn, '{"title": "a"}').title = "b"

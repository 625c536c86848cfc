"""Bodies of the contract: what is taken, what is refused, and that a refusal never repeats what was sent."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from model.note import Note
from service.api.bodies import parse, parse_bulk, parse_events
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


BAD = {
    "too long": b'{"note_id": "x", "title": "L", "content": "' + b"x" * 600_000 + b'"}',
    "too many digits": b'{"note_id": "x", "title": "L", "exposure": ' + b"9" * 600_000 + b"}",
    "a long string": b'"' + b"x" * 600_000 + b'"',
    "a long number": b"9" * 600_000,
    "not UTF-8": b'{"note_id": "x", "title": "\xff"}',
    "half a character": b'{"note_id": "x", "title": "\xe6\xb2"}',
    "a lone surrogate": b'{"note_id": "x", "title": "\\ud800"}',
    "a lone surrogate as bytes": b'{"note_id": "x", "title": "\xed\xa0\x80"}',
    "full of escapes": b'{"note_id": "x", "title": "' + b"\\u0041\\\\" * 100_000 + b'"}',
    "a wrong escape": b'{"note_id": "x", "title": "\\x"}',
    "brackets in a string": b'{"note_id": "x", "title": 1, "content": "]}, {[\\""}',
    "not closed right": b'{"note_id": "x", "hashtags": ["a"}, "title": "t"]',
    "NaN": b'{"note_id": "x", "title": "a", "exposure": NaN}',
    "too deep": b'{"note_id": "x", "title": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a control character": b'{"note_id": "x", "title": "a\x01"}',
    "many values": b'{"note_id": "x", "hashtags": [' + b'"a",' * 100_000 + b'"a"]}',
    "no name": b'{note_id: "x"}',
    "a word": b"nothing",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("blanks", [b"", b" " * 600_000 + b"\n\t\r"], ids=["", "padded"])
def test_one_bad_element_of_an_array_never_sinks_the_others(bad, blanks):
    before, after = (b'{"note_id": "%s", "title": "t"}' % name for name in (b"before", b"after"))
    array = b"[" + blanks + b",".join([before + blanks, blanks + bad + blanks, blanks + after]) + blanks + b"]" + blanks

    records, rejected = parse_bulk(array)

    assert [record.note.id for record in records] == ["before", "after"]
    assert [one.position for one in rejected] == [1]
    assert " line " not in rejected[0].message


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_one_bad_event_never_sinks_the_others(bad):
    event = b'{"event_id": "e", "user_id": "u", "note_id": "n", "type": "view", "ts": 1}'

    events, rejected = parse_events(b' { "events" :\n[' + b", ".join([event, bad, event]) + b"\n] } ")

    assert len(events) == 2
    assert [one.position for one in rejected] == [1]


@pytest.mark.parametrize(
    "body",
    [b'{"events": [1, "\xff"], "more": 1}', b'{"events": [1, "\xff"]', b'{"events": [1, "\xff",]}', b'{"x": ["\xff"]}'],
)
def test_a_body_of_events_is_an_object_with_a_list_of_them(body):
    with pytest.raises(BadRequest):
        parse_events(body)


@pytest.mark.parametrize("value", [b"1", b'"x, [y"', b'"' + b"z" * 100 + b'"'])
def test_an_element_of_very_many_values_is_rejected_alone(value):
    note = b'{"note_id": "a", "title": "t"}'
    records, rejected = parse_bulk(b"[%b,[%b],%b]" % (note, b",".join([value] * 600_000), note))

    assert (len(records), [one.position for one in rejected]) == (2, [1])


def test_so_many_brackets_in_one_element_are_refused_before_they_take_long():
    with pytest.raises(BadRequest, match="the array holds too many values"):
        parse_bulk(b"[[" + b"[]," * 600_000 + b"1]]")


def test_at_most_a_thousand_elements_also_where_one_is_broken():
    with pytest.raises(BadRequest, match="at most 1000 events"):
        parse_events(b'{"events": ["\xff"' + b",1" * 1000 + b"]}")
    with pytest.raises(BadRequest, match="at most 1000 notes"):
        parse_bulk(b"[1" + b",1" * 1000 + b"]")


BOM = b"\xef\xbb\xbf"


def test_a_byte_order_mark_before_a_body_is_skipped():
    note = b'{"note_id": "a", "title": "t"}'

    assert parse(BulkNoteIn, BOM + note) == parse(BulkNoteIn, note)
    assert parse_bulk(BOM + b"[" + note + b"]") == parse_bulk(b"[" + note + b"]")
    assert parse_bulk(BOM + note + b"\n" + note) == parse_bulk(note + b"\n" + note)
    assert parse_bulk(BOM + note, "application/x-ndjson") == parse_bulk(note)
    assert parse_events(BOM + event(1)) == parse_events(event(1))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_body_in_another_encoding_is_named(encoding):
    with pytest.raises(BadRequest, match=f"^the body is {encoding.upper()}; JSON is UTF-8$"):
        parse_bulk('[{"note_id": "a", "title": "t"}]'.encode(encoding))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "\n\x1a", "\r\n\x1a\r\n"])
def test_lines_may_end_as_on_any_system(end):
    lines = end[:2].strip("\x1a").join(['{"note_id": "a", "title": "t"}', '{"note_id": "b", "title": "t"}']) + end

    records, rejected = parse_bulk(lines.encode(), "application/x-ndjson")

    assert ([record.note.id for record in records], rejected) == (["a", "b"], [])


def event(ts):
    return json.dumps(
        {"events": [{"event_id": "e", "user_id": "u", "note_id": "n", "type": "view", "ts": ts}]}
    ).encode()


@pytest.mark.parametrize(
    ("ts", "expected"),
    [
        (1700000000.25, 1700000000.25),
        (0, 0),
        (253402300799, 253402300799),
        ("2016-12-31T23:59:60Z", 1483228800),
        ("2016-12-31T15:59:60.5-08:00", 1483228800.5),
        ("1970-01-01 00:00:00.25z", 0.25),
    ],
)
def test_the_time_of_an_event_is_kept_in_seconds(ts, expected):
    assert [one.ts for one in parse_events(event(ts))[0]] == [expected]


@pytest.mark.parametrize(
    "ts",
    [1700000000123, -1, True, "soon", None, [], "2016-12-31T23:59:61Z", "2016-12-31T12:59:60Z", "2016-12-30T23:59:60Z"],
)
def test_other_times_of_events_are_refused_in_our_words(ts):
    [rejected] = parse_events(event(ts))[1]

    assert rejected.message == "ts: must be an RFC 3339 time with an offset, or seconds since 1970 up to the year 9999"


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
    for empty in ("{}", '{"title": ""}', '{"title": "\\u001d"}', '{"title": " ", "content": " \\n\\u3000"}'):
        with pytest.raises(BadRequest, match="both empty"):
            parse(NoteIn, empty)


@pytest.mark.parametrize(
    "hashtags", [[""], [" "], ["\x1d"], ["x" * 65], ["a"] * 31, [1], [None], ["a\0"], {"a": 1}, "a", None]
)
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
        "2016-12-31T23:59:60Z",
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
        "2026-01-31T12:00:60Z",
        "2026-01-30T23:59:60Z",
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

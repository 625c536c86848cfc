"""Bodies of the contract as the store and the model take them: notes, drafts and events."""

from collections.abc import Mapping, Sequence

from model.note import Note
from model.text.languages import detect_language, detect_languages
from service.contract.events import EventIn
from service.contract.fields import Body, seconds
from service.contract.notes import BulkNoteIn, NoteIn, NotePatch
from service.store.records import Event, StoredNote


def note_record(note: NoteIn, note_id: str) -> StoredNote:
    """A note for the store, which gives it its version; its language is detected unless it is given."""
    return _record(note, note_id, None if note.language else detect_language(note.title, note.content))


def note_records(notes: Sequence[BulkNoteIn]) -> list[StoredNote]:
    """The same of many notes, in order, whose languages are detected together."""
    unknown = [note for note in notes if not note.language]
    detected = iter(detect_languages([(note.title, note.content) for note in unknown]))
    return [_record(note, note.note_id, None if note.language else next(detected)) for note in notes]


def _record(note: NoteIn, note_id: str, detected: str | None) -> StoredNote:
    return StoredNote(
        Note(note_id, note.title, note.content, tuple(note.hashtags), note.category, note.exposure),
        version=0,
        author=note.author,
        created_at=note.created_at,
        attributes=note.attributes,
        language=note.language,
        hidden=note.hidden,
        detected=None if note.language else detected or "",
    )


def patched(stored: StoredNote, patch: NotePatch) -> StoredNote:
    """The note as the patch leaves it. Raises ValidationError where that is none: without title and content, say."""
    note = stored.note
    fields: dict[str, object] = {
        "title": note.title,
        "content": note.content,
        "hashtags": list(note.hashtags),
        "category": note.category,
        "author": stored.author,
        "exposure": note.exposure,
        "created_at": stored.created_at,
        "attributes": dict(stored.attributes),
        "language": stored.language,
        "hidden": stored.hidden,
    }
    fields |= {name: getattr(patch, name) for name in patch.model_fields_set}
    if patch.attributes is not None:
        fields["attributes"] = _present({**stored.attributes, **patch.attributes})
    return note_record(NoteIn.model_validate(_present(fields)), note.id)


def _present(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def draft_note(draft: Body) -> Note:
    """A draft, or another text, for the model; it has no id."""
    return Note("", draft.title, draft.content, tuple(draft.hashtags))


def text_note(text: str) -> Note:
    """A text for the model: a draft with this content and nothing else."""
    return Note("", content=text)


def event_record(event: EventIn) -> Event:
    """An event for the store, its time in seconds since 1970."""
    ts = event.ts if isinstance(event.ts, float | int) else seconds(event.ts)
    more = event.source_note_id, event.value, event.answer_id, event.position
    return Event(event.event_id, event.user_id, event.note_id, event.type, ts, *more)

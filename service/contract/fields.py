"""The fields of bodies, and the rules for every body with a text."""

import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

ID_PATTERN = r"^[A-Za-z0-9._~:-]{1,128}$"

_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_WHOLE = 2**53  # beyond it a JSON reader may round a whole number

# What a filter calls the note's own fields, and what else could be taken for one: no attribute has such a name.
RESERVED = frozenset(
    ("category", "author", "language", "exposure", "created_at", "hashtags", "hidden", "title", "content")
)
_ATTRIBUTE = re.compile(r"[a-z][a-z0-9_]{0,39}")
MAX_ATTRIBUTES, _MAX_VALUE_CHARS, _MAX_VALUES = 32, 200, 20
_SPACES = r"\s\u001c-\u001f\u0085"  # what Python strips, as JSON Schema writes it


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("text must not hold NUL characters")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must hold a character that is no space")
    return text


def _rfc_3339(text: str) -> str:
    try:
        if _RFC_3339.fullmatch(text):
            seconds(text)
            return text
    except ValueError:
        pass  # its message holds the text
    raise ValueError("must be an RFC 3339 time with an offset")


def time_of(seconds: float) -> str:
    """Seconds since 1970 as an RFC 3339 time, to the second."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def seconds(time: str) -> float:
    """An RFC 3339 time as seconds since 1970; a leap second is the same as the next one. Raises ValueError."""
    time = time.upper()
    if time[16:19] != ":60":
        return datetime.fromisoformat(time).timestamp()
    after = datetime.fromisoformat(f"{time[:16]}:59{time[19:]}").timestamp() + 1
    next_second = _FIRST + timedelta(seconds=int(after // 1))
    if (next_second.day, next_second.hour, next_second.minute, next_second.second) != (1, 0, 0, 0):
        raise ValueError("a leap second is the last one of a month, in UTC")
    return after


Attribute = str | int | float | bool | tuple[str, ...]
AttributeValue = Attribute | Sequence[str]  # as a client may give it


def _is_value(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= _MAX_VALUE_CHARS and "\0" not in text


def _attribute(value: Any) -> Attribute:
    """A value as it is stored: a number is whole where it can be, so that 3 and 3.0 are the same note."""
    match value:
        case bool():
            return value
        case int() | float() if abs(value) <= _MAX_WHOLE:
            return int(value) if value == int(value) else value
        case int() | float():
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        case str() if _is_value(value):
            return value
        case list() | tuple() if 0 < len(value) <= _MAX_VALUES and all(map(_is_value, value)):
            return tuple(value)
    raise ValueError(
        f"must be a string of 1 to {_MAX_VALUE_CHARS} characters without NUL, a finite number, a boolean, or a list of "
        f"1 to {_MAX_VALUES} such strings"
    )


def _names_checked(most: int) -> Callable[[Any], Any]:
    def check(attributes: Any) -> Any:
        if not isinstance(attributes, dict):
            raise ValueError("must be an object")  # noqa: TRY004 - pydantic takes a ValueError
        if len(attributes) > most:
            raise ValueError(f"must hold at most {most} names")
        for name in attributes:
            if name in RESERVED:
                raise ValueError(f"no attribute is named as a field of the note: {', '.join(sorted(RESERVED))}")
            if not _ATTRIBUTE.fullmatch(name):
                raise ValueError("a name is 1 to 40 of a-z 0-9 _, a letter first")
        return attributes

    return check


def _described(**schema: JsonValue) -> Any:
    """Keywords for the JSON Schema of a value that pydantic cannot know."""
    return Field(json_schema_extra=schema)


# The constraints come first: behind a validator they would measure the text before it is trimmed.
_NoNul = AfterValidator(_without_nul)
_text = _described(pattern="^[^\\u0000]*$")
_visible_text = _described(pattern=f"^[^\\u0000]*[^{_SPACES}\\u0000][^\\u0000]*$")
Title = Annotated[str, StringConstraints(strip_whitespace=True, max_length=300), _NoNul, _text]
Content = Annotated[str, StringConstraints(max_length=20_000), _NoNul, _text]
Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000), _NoNul, _text]
Label = Annotated[str, StringConstraints(max_length=128), _NoNul, _text]
_NotBlank = AfterValidator(_not_blank)
Hashtag = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64), _NotBlank, _NoNul, _visible_text
]
Words = Annotated[str, StringConstraints(max_length=1000), _NotBlank, _NoNul, _visible_text]
NoteId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Time = Annotated[str, AfterValidator(_rfc_3339), _described(format="date-time")]
AnswerId = Annotated[str, StringConstraints(min_length=1, max_length=64), _NoNul, _text]
Key = Annotated[str, StringConstraints(min_length=1, max_length=128), _NoNul, _text]

Language = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z]{2,3}$", to_lower=True),
    Field(description="BCP 47, the primary tag alone."),
]
_TEXT_VALUE: dict[str, JsonValue] = {
    "type": "string",
    "minLength": 1,
    "maxLength": _MAX_VALUE_CHARS,
    "pattern": "^[^\\u0000]*$",
}
_VALUE_SCHEMAS: list[JsonValue] = [
    _TEXT_VALUE,
    {"type": "number"},
    {"type": "boolean"},
    {"type": "array", "items": _TEXT_VALUE, "minItems": 1, "maxItems": _MAX_VALUES},
]
_NAME_SCHEMA: dict[str, JsonValue] = {"pattern": f"^{_ATTRIBUTE.pattern}$", "not": {"enum": [*sorted(RESERVED)]}}


def _attributes_schema(most: int, *values: JsonValue) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "type": "object",
            "maxProperties": most,
            "propertyNames": _NAME_SCHEMA,
            "additionalProperties": {"anyOf": [*values]},
        }
    )


Attributes = Annotated[
    dict[str, Annotated[Any, AfterValidator(_attribute)]],
    BeforeValidator(_names_checked(MAX_ATTRIBUTES)),
    _attributes_schema(MAX_ATTRIBUTES, *_VALUE_SCHEMAS),
]
# All that a note may have, and as many to take away.
AttributesPatch = Annotated[
    dict[str, Annotated[Any, AfterValidator(lambda value: None if value is None else _attribute(value))]],
    BeforeValidator(_names_checked(2 * MAX_ATTRIBUTES)),
    _attributes_schema(2 * MAX_ATTRIBUTES, *_VALUE_SCHEMAS, {"type": "null"}),
]

_SAYS_SOMETHING: dict[str, JsonValue] = {
    "anyOf": [{"required": [name], "properties": {name: {"pattern": f"[^{_SPACES}]"}}} for name in ("title", "content")]
}


Hashtags = Annotated[list[Hashtag], Field(max_length=30)]


class Body(BaseModel):
    """A note or a draft: strict, and with a title or a content."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, frozen=True, json_schema_extra=_SAYS_SOMETHING
    )

    title: Title = Field(default="", description="Trimmed; may be empty if the content is not.")
    content: Content = ""
    hashtags: Hashtags = []

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.title.strip() and not self.content.strip():  # pydantic trims less than Python does
            raise ValueError("title and content are both empty")
        return self

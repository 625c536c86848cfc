"""The fields of bodies, and the rules for every body with a text."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

ID_PATTERN = r"^[A-Za-z0-9._~:-]{1,128}$"

_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_SPACES = r"\s\u001c-\u001f\u0085"  # what Python strips, as JSON Schema writes it


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("text must not hold NUL characters")
    return text


def _rfc_3339(text: str) -> str:
    try:
        if _RFC_3339.fullmatch(text):
            seconds(text)
            return text
    except ValueError:
        pass  # its message holds the text
    raise ValueError("must be an RFC 3339 time with an offset")


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
Hashtag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64), _NoNul, _visible_text]
NoteId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Time = Annotated[str, AfterValidator(_rfc_3339), _described(format="date-time")]
Key = Annotated[str, StringConstraints(min_length=1, max_length=128), _NoNul, _text]

_SAYS_SOMETHING: dict[str, JsonValue] = {
    "anyOf": [{"required": [name], "properties": {name: {"pattern": f"[^{_SPACES}]"}}} for name in ("title", "content")]
}


class Body(BaseModel):
    """A note or a draft: strict, and with a title or a content."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, frozen=True, json_schema_extra=_SAYS_SOMETHING
    )

    title: Title = Field(default="", description="Trimmed; may be empty if the content is not.")
    content: Content = ""
    hashtags: Annotated[list[Hashtag], Field(max_length=30)] = []

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.title and not self.content.strip():
            raise ValueError("title and content are both empty")
        return self

"""The query parameters of each route, parsed once for each distinct query string.

The fields of a model are the parameters: their types say how the text of each is read.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.api.validation import explain
from service.contract.fields import NoteId
from service.contract.related import Filter
from service.errors import BadRequest

CACHED = 4096

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_NUMBER = TypeAdapter(Annotated[float, Field(allow_inf_nan=False)])
_FLAGS = {"0": False, "1": True, "false": False, "true": True}

PageSize = Annotated[int, Field(ge=1, le=1000)]


class NoParameters(BaseModel):
    """No parameter at all."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ListParameters(BaseModel):
    """Of `GET /notes`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(ge=1, le=1000)] = Field(default=100, description="How many notes at most.")
    after: NoteId | None = Field(default=None, description="Only ids after this one, which need not exist.")
    filter: Filter | None = Field(
        default=None, description='Only notes that match, as in `category = "Travel" AND price < 100`.'
    )


class PutParameters(BaseModel):
    """Of `PUT /notes/{id}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wait: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.0, description="Seconds to wait for the note to be searchable."
    )


class HashtagParameters(BaseModel):
    """Of `GET /hashtags`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefix: Annotated[str, Field(max_length=64)] = Field(
        default="", description="Only hashtags that begin like this, however it is spelled."
    )
    limit: PageSize = Field(default=100, description="How many hashtags at most.")
    after: Annotated[str, Field(max_length=64)] = Field(
        default="", description="`next` of the page before; a hashtag stands for its own place."
    )


class TrendParameters(BaseModel):
    """Of `GET /hashtags/trending`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    days: Annotated[int, Field(ge=1, le=90)] = Field(
        default=7, description="The newest notes are those of so many days, today with them."
    )
    limit: PageSize = Field(default=100, description="How many hashtags at most.")


P = TypeVar("P", bound=BaseModel)


def parse_query(model: type[P], query_string: bytes) -> P:
    """The query string as ``model``, which must not be changed. Raises BadRequest."""
    return cast(P, _parsed(model, query_string))


@lru_cache(maxsize=CACHED)
def _parsed(model: type[BaseModel], query_string: bytes) -> BaseModel:
    values: dict[str, Any] = {}
    for name, text in _pairs(query_string):
        kind = _kind(model, name)
        if kind is list:
            values.setdefault(name, []).append(text)
        elif name in values:
            raise BadRequest("a query parameter that takes one value came twice")
        else:
            values[name] = _value(name, kind, text)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadRequest(explain(error)) from None


def parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The parameters as OpenAPI describes them."""
    schema = model.model_json_schema() if model.model_fields else {"properties": {}}
    return [_parameter(name, field, name in schema.get("required", ())) for name, field in schema["properties"].items()]


def _parameter(name: str, field: dict[str, Any], is_required: bool) -> dict[str, Any]:
    kept = {key: value for key, value in field.items() if key not in ("title", "description")}
    if kept.get("type") == "boolean":
        kept = {"anyOf": [{"type": "integer", "enum": [0, 1]}, {"type": "boolean"}], "default": kept["default"]}
    if "anyOf" in kept and {"type": "null"} in kept["anyOf"]:  # a parameter that is not given
        [alone] = [option for option in kept["anyOf"] if option != {"type": "null"}]
        kept = alone
    return {
        "name": name,
        "in": "query",
        "required": is_required,
        "description": field["description"],
        "schema": kept,
    }


def _pairs(query_string: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise BadRequest("the query string is not percent-encoded UTF-8") from None


def _kind(model: type[BaseModel], name: str) -> type:
    """The plain type of a field; that of text for unknown ones."""
    return _plain(model.model_fields[name].annotation) if name in model.model_fields else str


def _plain(annotation: Any) -> type:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return _plain(get_args(annotation)[0])
    return annotation if isinstance(annotation, type) and origin is None else origin if origin is list else str


def _value(name: str, kind: type, text: str) -> object:
    read = _READ.get(kind)
    try:
        return read(text) if read else text
    except ValidationError as error:
        raise BadRequest(explain(error, name)) from None
    except ValueError as error:
        raise BadRequest(f"{name}: {error}") from None


def _flag(text: str) -> bool:
    if text not in _FLAGS:
        raise ValueError("must be 0 or 1")
    return _FLAGS[text]


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError("must be a whole number")
    return int(text)


_READ: dict[type, Callable[[str], object]] = {bool: _flag, int: _whole, float: _NUMBER.validate_python}

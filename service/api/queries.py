"""The query parameters of each route, parsed once for each distinct query string.

A new parameter of `GET /notes/{id}/related` is a field of `RelatedParameters` and of its `RelatedQuery`.
"""

import re
from functools import lru_cache
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from service.api.validation import explain
from service.contract.fields import Label, NoteId
from service.errors import BadRequest
from service.recommend.related import RelatedQuery

_CACHED = 4096
_MAX_CATEGORIES = 20
_MAX_EXCLUDED = 1000

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def _flag(text: str) -> bool:
    if text not in _FLAGS:
        raise ValueError("must be 0 or 1")
    return _FLAGS[text]


def _whole(text: str) -> str:
    if not _WHOLE.fullmatch(text):
        raise ValueError("must be a whole number")
    return text


Count = Annotated[int, Field(ge=1, le=100), BeforeValidator(_whole)]
Flag = Annotated[
    bool,
    BeforeValidator(_flag),
    WithJsonSchema({"anyOf": [{"type": "integer", "enum": [0, 1]}, {"type": "boolean"}]}),
]
Share = Annotated[float, Field(ge=0, le=1)]


class Parameters(BaseModel):
    """A route's query parameters; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NoParameters(Parameters):
    """No parameter at all."""


class RelatedParameters(Parameters):
    """Of `GET /notes/{id}/related`."""

    k: Count = Field(default=10, description="How many notes at most.")
    category: Annotated[tuple[Annotated[Label, Field(min_length=1)], ...], Field(max_length=_MAX_CATEGORIES)] = Field(
        default=(), description="Only notes of this category, or of one of these when it is repeated."
    )
    exclude: Annotated[tuple[NoteId, ...], Field(max_length=_MAX_EXCLUDED)] = Field(
        default=(), description="Not this note; may be repeated."
    )
    exclude_author: Flag = Field(default=False, description="1 leaves out notes of the same author.")
    diversity: Share = Field(
        default=0.0,
        description="How much notes that resemble each other are spread apart (maximal marginal relevance).",
    )
    debias: Share = Field(default=0.0, description="How much of a popularity prior is taken off the scores.")
    explain: Flag = Field(default=False, description="1 says what each score is made of.")

    def query(self) -> RelatedQuery:
        """The recommender's part of the parameters."""
        return RelatedQuery(
            self.k,
            tuple(dict.fromkeys(self.category)),
            tuple(dict.fromkeys(self.exclude)),
            self.exclude_author,
            self.diversity,
            self.debias,
        )


class PutParameters(Parameters):
    """Of `PUT /notes/{id}`."""

    wait: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.0, description="Seconds to wait for the note to be searchable."
    )


Q = TypeVar("Q", bound=Parameters)


def parse_query(model: type[Q], query_string: bytes) -> Q:
    """The query string as ``model``. Raises BadRequest.

    A parameter that takes one value and comes twice is refused as ambiguous.
    """
    return cast(Q, _parsed(model, query_string))


@lru_cache(maxsize=_CACHED)
def _parsed(model: type[Parameters], query_string: bytes) -> Parameters:
    values: dict[str, Any] = {}
    for name, value in _pairs(query_string):
        if name in model.model_fields and _is_many(model, name):
            values.setdefault(name, []).append(value)
        elif name in values:
            raise BadRequest("a query parameter that takes one value came twice")
        else:
            values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadRequest(explain(error)) from None


def parameters(model: type[Parameters]) -> list[dict[str, Any]]:
    """The parameters as OpenAPI describes them."""
    properties = model.model_json_schema()["properties"] if model.model_fields else {}
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.pop("description"),
            "schema": {key: value for key, value in schema.items() if key != "title"},
        }
        for name, schema in properties.items()
    ]


def _pairs(query_string: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise BadRequest("the query string is not percent-encoded UTF-8") from None


def _is_many(model: type[Parameters], name: str) -> bool:
    return isinstance(model.model_fields[name].default, tuple)

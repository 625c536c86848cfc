"""Dataclasses out of JSON that somebody else may have written: of their own types and fields, and no others."""

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_origin, get_type_hints

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_SHOWN = 300


def strictly(kind: type[T], fields: Mapping[str, Any]) -> T:
    """The dataclass with these fields. Raises ValueError with the first problem, as one short line."""
    try:
        from pydantic import ValidationError
    except ModuleNotFoundError:
        # A machine that only computes has no pydantic: there, types are those that the file has.
        return _trusting(kind, fields)
    try:
        adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]  # a class is hashable, whatever mypy says
        return adapter.validate_json(json.dumps(fields), strict=True, extra="forbid")
    except ValidationError as error:
        [detail, *_] = error.errors(include_url=False, include_input=False)
        place = ".".join(str(part)[:40] for part in detail["loc"])
        raise ValueError(f"{place}: {detail['msg'].lower()}"[:_SHOWN]) from None


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _trusting(kind: type[T], fields: Mapping[str, Any]) -> T:
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for name, value in fields.items():
        hint = hints.get(name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            given[name] = _trusting(hint, value)
        else:
            given[name] = tuple(value) if get_origin(hint) is tuple and isinstance(value, list) else value
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(str(error)[:_SHOWN]) from None

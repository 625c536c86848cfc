"""Errors of validation in words: our field and its rule, and never the caller's input."""

import re
from typing import Any

from pydantic import ValidationError

_EXPLAINED = 3
_PLACE = re.compile(r" at line \d+ column \d+$")


def explain(error: ValidationError, *place: str) -> str:
    """The first errors, by field and rule. ``place`` leads to the validated value."""
    errors = error.errors(include_url=False, include_input=False)[:_EXPLAINED]
    return "; ".join(dict.fromkeys(_explain_one((*place, *one["loc"]), one["type"], one["msg"]) for one in errors))


def _explain_one(place: tuple[Any, ...], kind: str, message: str) -> str:
    rule = message.removeprefix("Value error, ")
    if kind == "json_invalid":  # of an element, its line would not be that of the body
        rule = f"not valid JSON: {_PLACE.sub('', message.removeprefix('Invalid JSON: '))}"
    if kind == "extra_forbidden":  # an unknown field's name is input
        place, rule = place[:-1], "unknown field"
    if "attributes" in place:  # an attribute's, too
        place = place[: place.index("attributes") + 1]
    return f"{'.'.join(map(str, place))}: {rule}" if place else rule

"""Entity tags and conditional requests (RFC 9110, section 13).

A note's tag is ``"<version>-<digest of the answer>"``: a copy is out of date as soon as anything in the answer changes,
suggestions included. A write names the version alone, as ``"3"`` or by the whole tag: a new suggestion is no reason to
refuse an edit.
"""

import hashlib
import re

from starlette.datastructures import Headers

from service.errors import BadRequest
from service.store.interfaces import Expected

_TAG = re.compile(r'"([0-9]{1,15})(?:-[0-9a-f]{16})?"')
_NO_VERSION = -1


def note_tag(version: int, body: bytes) -> str:
    """The entity tag of an answer that shows a note."""
    return f'"{version}-{hashlib.blake2b(body, digest_size=8).hexdigest()}"'


def write_tag(version: int) -> str:
    """The entity tag of an acknowledged write: enough for the next ``If-Match``."""
    return f'"{version}"'


def expected_version(headers: Headers) -> Expected:
    """The version that ``If-Match`` and ``If-None-Match`` of a write require. A foreign tag matches no version.

    Raises BadRequest for a condition that is not supported.
    """
    match, none_match = headers.get("if-match"), headers.get("if-none-match")
    if match is not None and none_match is not None:
        raise BadRequest("If-Match and If-None-Match exclude each other")
    if none_match is not None:
        if none_match.strip() != "*":
            raise BadRequest("If-None-Match of a write takes only *")
        return "none"
    if match is None:
        return None
    if match.strip() == "*":
        return "any"
    if "," in match:
        raise BadRequest("If-Match takes one entity tag, or *")
    tag = _TAG.fullmatch(match.strip())
    return int(tag[1]) if tag else _NO_VERSION


def is_fresh(headers: Headers, tag: str) -> bool:
    """Whether ``If-None-Match`` of a read names this answer, so that the caller's copy is fresh."""
    tags = headers.get("if-none-match", "")
    return tags.strip() == "*" or tag in {one.strip().removeprefix("W/") for one in tags.split(",")}

"""The committed OpenAPI document: true to the app, valid, complete, and its examples are what the service takes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from support.gateway import MemoryGateway

from model.note import Note
from service.api.app import api
from service.api.openapi import EVERYWHERE, text
from service.errors import NoteLLMError

COMMITTED = Path(__file__).parents[4] / "docs" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(COMMITTED.read_text())

ROUTES = {
    "GET /notes/{note_id}/related": "related_notes",
    "POST /notes/{note_id}/related": "related_by_rules",
    "POST /related": "related_to_several",
    "POST /related/batch": "related_in_batch",
    "GET /search": "search_notes",
    "POST /search": "search_by_rules",
    "POST /notes/tags": "suggest_tags",
    "POST /v1/embeddings": "create_embeddings",
    "PUT /notes/{note_id}": "put_note",
    "PATCH /notes/{note_id}": "patch_note",
    "POST /notes": "put_notes",
    "POST /events": "record_events",
    "GET /notes": "list_notes",
    "GET /notes/{note_id}": "get_note",
    "DELETE /notes/{note_id}": "delete_note",
    "DELETE /users/{user_id}": "erase_user",
    "GET /hashtags": "list_hashtags",
    "GET /hashtags/trending": "trending_hashtags",
    "GET /hashtags/rules": "list_rules",
    "PUT /hashtags/{tag}": "put_rule",
    "DELETE /hashtags/{tag}": "delete_rule",
    "GET /outcomes": "get_outcomes",
    "GET /experiments": "list_experiments",
    "GET /experiments/{name}": "get_experiment",
    "GET /learning": "get_learning",
    "GET /status": "get_status",
}
_BODY = "request_timeout too_large unsupported_media_type"
_LIST = "bad_filter note_not_found note_pending store_unavailable index_unavailable"
CODES = {
    "GET /notes/{note_id}/related": _LIST,
    "POST /notes/{note_id}/related": f"{_BODY} {_LIST}",
    "POST /related": f"{_BODY} {_LIST} worker_unavailable",
    "POST /related/batch": _BODY,
    "GET /search": "bad_filter worker_unavailable store_unavailable index_unavailable",
    "POST /search": f"{_BODY} bad_filter worker_unavailable store_unavailable index_unavailable",
    "POST /notes/tags": f"{_BODY} worker_unavailable store_unavailable",
    "POST /v1/embeddings": f"{_BODY} worker_unavailable",
    "PUT /notes/{note_id}": f"{_BODY} precondition_failed idempotency_key_reused request_in_progress "
    "store_unavailable queue_full",
    "PATCH /notes/{note_id}": f"{_BODY} note_not_found precondition_failed idempotency_key_reused request_in_progress "
    "store_unavailable queue_full",
    "POST /notes": f"{_BODY} idempotency_key_reused request_in_progress store_unavailable queue_full",
    "POST /events": f"{_BODY} idempotency_key_reused request_in_progress store_unavailable",
    "GET /notes": "bad_filter store_unavailable",
    "GET /notes/{note_id}": "note_not_found store_unavailable",
    "DELETE /notes/{note_id}": "note_not_found precondition_failed idempotency_key_reused request_in_progress "
    "store_unavailable",
    "DELETE /users/{user_id}": "idempotency_key_reused request_in_progress store_unavailable",
    "GET /hashtags": "store_unavailable",
    "GET /hashtags/trending": "store_unavailable",
    "GET /hashtags/rules": "store_unavailable",
    "PUT /hashtags/{tag}": f"{_BODY} alias_loop idempotency_key_reused request_in_progress store_unavailable",
    "DELETE /hashtags/{tag}": "idempotency_key_reused request_in_progress store_unavailable",
    "GET /outcomes": "store_unavailable",
    "GET /experiments": "store_unavailable",
    "GET /experiments/{name}": "experiment_not_found store_unavailable",
    "GET /learning": "store_unavailable",
    "GET /status": "store_unavailable",
}
WRITES = {
    "put_note",
    "patch_note",
    "put_notes",
    "delete_note",
    "record_events",
    "put_rule",
    "delete_rule",
    "erase_user",
}
# They have a 409 that another try would not change.
LASTING_CONFLICTS = {"put_rule"}


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found = DOCUMENT
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def codes(operation: dict[str, Any]) -> dict[str, int]:
    """Every error code of an operation, with its status."""
    return {
        code: int(status)
        for status, response in operation["responses"].items()
        if int(status) >= 400
        for code in response["content"]["application/json"]["examples"]
    }


def leaves(kind: type[NoteLLMError]) -> Iterator[type[NoteLLMError]]:
    if not kind.__subclasses__():
        yield kind
    for child in kind.__subclasses__():
        yield from leaves(child)


def examples() -> Iterator[tuple[str, dict[str, Any], object]]:
    """Every example with its schema."""
    for name, operation in operations():
        contents = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in contents:
            for media in content.get("content", {}).values():
                for title, example in media["examples"].items():
                    yield f"{name}: {title}", media["schema"], example["value"]


def test_the_committed_document_is_the_one_that_the_routes_give():
    assert COMMITTED.read_text() == text(api()), "run `make openapi`"


async def test_the_service_answers_with_the_committed_document():
    async with MemoryGateway().client() as client:
        assert (await client.get("/openapi.json")).json() == DOCUMENT


def test_it_is_openapi_3_1():
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []


def test_every_route_has_a_name_a_group_a_summary_and_a_description():
    groups = {group["name"] for group in DOCUMENT["tags"]}

    assert {name: operation["operationId"] for name, operation in operations()} == ROUTES
    for name, operation in operations():
        assert set(operation["tags"]) <= groups
        assert re.fullmatch(r"[A-Z].{10,}[^.]", operation["summary"]), name
        assert operation["description"].startswith(operation["summary"])
        for parameter in operation.get("parameters", []):
            assert parameter["description"].strip(), f"{name}: {parameter['name']}"
        for response in operation["responses"].values():
            assert response["description"].strip()


@pytest.mark.parametrize("name", CODES)
def test_every_error_of_a_route_stands_under_its_status(name):
    everywhere = {kind.code: kind.status for kind in EVERYWHERE}
    with_id = {"not_found": 404, "method_not_allowed": 405} if "{" in name else {}
    status = {kind.code: kind.status for kind in leaves(NoteLLMError)}

    assert codes(dict(operations())[name]) == everywhere | with_id | {
        code: status[code] for code in CODES[name].split()
    }


def test_every_error_of_the_tree_is_documented():
    documented = {code: status for _, operation in operations() for code, status in codes(operation).items()}

    assert documented == {kind.code: kind.status for kind in leaves(NoteLLMError)}


def test_every_answer_describes_its_headers():
    for name, operation in operations():
        for status, response in operation["responses"].items():
            headers = set(response["headers"])
            assert "X-Request-ID" in headers, f"{name} {status}"
            may_pass = {"429", "503"} if operation["operationId"] in LASTING_CONFLICTS else {"409", "429", "503"}
            assert ("Retry-After" in headers) == (status in may_pass), f"{name} {status}"
            assert ("ETag" in headers) == (status in {"200", "202", "304"} and "/notes/{note_id}" in name.split()[1:]
                and operation["operationId"] != "related_notes"), f"{name} {status}"  # fmt: skip
            may_be_replayed = operation["operationId"] in WRITES
            assert ("Idempotency-Replayed" in headers) == (may_be_replayed and status < "300"), f"{name} {status}"


def test_every_body_and_every_answer_with_content_has_an_example():
    for name, operation in operations():
        for content in [operation.get("requestBody", {}), *operation["responses"].values()]:
            assert all(media["examples"] for media in content.get("content", {}).values()), name
    assert {name.split()[0] for name, operation in operations() if "requestBody" in operation} == {
        "PUT",
        "PATCH",
        "POST",
    }


@pytest.mark.parametrize(("schema", "value"), [pytest.param(*rest, id=name) for name, *rest in examples()])
def test_every_example_is_what_its_schema_says(schema, value):
    whole = Resource.from_contents(DOCUMENT, default_specification=DRAFT202012)
    registry = Registry().with_resource("urn:document", whole)
    absolute = json.loads(json.dumps(schema).replace('"#/', '"urn:document#/'))

    OAS31Validator(absolute, registry=registry).validate(value)


async def test_every_example_of_a_request_is_accepted():
    gateway = MemoryGateway()
    named = [Note(note_id, f"Three days in {note_id}") for note_id in ("kyoto-3", "osaka-1", "soup-1")]
    await gateway.publish(Note("n1", "Three days in Kyoto", hashtags=("cooking",)), *named)
    async with gateway.client() as client:
        for name, operation in operations():
            method, path = name.split()
            for kind, media in operation.get("requestBody", {"content": {}})["content"].items():
                for title, example in media["examples"].items():
                    value = example["value"]
                    content = value if isinstance(value, str) else json.dumps(value)
                    url = path.format(note_id="n1", tag="sea")
                    answer = await client.request(method, url, content=content, headers={"Content-Type": kind})
                    assert answer.status_code in (200, 202), f"{name}: {title}: {answer.text}"
                    assert not answer.json().get("rejected"), f"{name}: {title}: {answer.text}"


def test_bodies_say_what_they_refuse():
    note = DOCUMENT["components"]["schemas"]["NoteIn"]
    validator = jsonschema_rs.validator_for(note)  # its \s is that of JSON Schema, not of Python

    assert validator.is_valid({"title": "a", "created_at": None})
    spaces = [{"content": space} for space in map(chr, range(0xD800)) if space.isspace()]
    for refused in (*spaces, {}, {"title": "a\0"}, {"title": "a", "hashtags": [" "]}, {"title": "a", "x": 1}):
        assert not validator.is_valid(refused), refused
    assert note["properties"]["title"]["maxLength"] == 300


def test_nothing_refers_to_what_is_not_there():
    references = set(re.findall(r'"\$ref": "([^"]+)"', COMMITTED.read_text()))

    assert all(resolved({"$ref": reference}) for reference in references)
    assert "HTTPValidationError" not in DOCUMENT["components"]["schemas"]
    for _, operation in operations():
        for response in operation["responses"].values():
            for link in response.get("links", {}).values():
                assert link["operationId"] in ROUTES.values()

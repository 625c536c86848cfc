"""Requests generated from the committed OpenAPI document, good, bad and in sequence, against the real service.

``CONFORMANCE_REQUESTS`` says how many at least; `make conformance` sends 10,000. ``CONFORMANCE_SEED`` repeats a run.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import strategies
from schemathesis.engine import from_schema
from schemathesis.engine.events import EngineEvent, FatalError, NonFatalError, ScenarioFinished

REQUESTS = int(os.environ.get("CONFORMANCE_REQUESTS", "500"))
SEED = int(os.environ.get("CONFORMANCE_SEED", "1"))
DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())

# Refusals of a request that is as the document says: they depend on what was written before.
BY_STATE = {
    "note_not_found",
    "experiment_not_found",
    "note_pending",
    "precondition_failed",
    "alias_loop",
    "idempotency_key_reused",
    "request_in_progress",
}
# The same of notes, in words: the code is that of any bad note.
OF_OTHER_NOTES = {"in other notes the type is", "and the notes already have 10,000 different names"}
OF_THE_NOTE = {"PATCH": {"title and content are both empty", "must hold at most 32 names"}}
# The language of filters is no JSON Schema.
BY_LANGUAGE = {"bad_filter"}
DEFAULT_K = 10
SHORTEST_ECHO = 8  # characters; shorter strings occur in any text

CHECKS = {
    # Says nothing of a 412 or 422 that state alone explains; see `good_requests_are_accepted`.
    "positive_data_acceptance": {"enabled": False},
    # `tags` is an id as well: its path takes the methods of both, and Allow says so.
    "allow_header_conformance": {"enabled": False},
    "negative_data_rejection": {"expected-statuses": [400, 401, 403, 404, 405, 412, 413, 415, 422, 429]},
}

# What a hashtag is cannot be said in JSON Schema.
schemathesis.openapi.format("hashtag", strategies.from_regex(r"#?[a-z0-9]{1,8}([_ -][A-Z0-9]{1,8})?", fullmatch=True))


OUR_NAMES = {
    name
    for schema in DOCUMENT["components"]["schemas"].values()
    for name in (schema["title"], *schema.get("properties", {}))
} | {
    parameter["name"]
    for methods in DOCUMENT["paths"].values()
    for operation in methods.values()
    for parameter in operation.get("parameters", [])
}


def strings(value: object) -> Iterator[str]:
    """All strings in a JSON value but the names that our own schemas give to fields, and those of attributes.

    An error says at which attribute it is.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            of_attributes = name == "attributes" and isinstance(inner, dict)
            yield from strings(list(inner.values()) if of_attributes else inner)
            if name not in OUR_NAMES:
                yield name
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def holds_whole_float(value: object) -> bool:
    """JSON Schema takes 7.0 for an integer; the service does not."""
    if isinstance(value, float):
        return value.is_integer()
    if isinstance(value, dict | list):
        return any(map(holds_whole_float, value.values() if isinstance(value, dict) else value))
    return False


def breaks_a_rule_between_fields(case: schemathesis.Case) -> bool:
    """What the document says in words alone."""
    body = case.body if isinstance(case.body, dict) else {}
    sent = {**(case.query or {}), **body}
    seeds = [*(body.get("positives") or []), *(body.get("negatives") or [])]
    return (
        int(sent.get("k") or DEFAULT_K) + int(sent.get("offset") or 0) > 1000
        or (sent.get("per_group") is not None and sent.get("group_by") is None)
        or len(seeds) > 64
    )


@schemathesis.check
def errors_have_the_one_shape(ctx: Any, response: Any, case: schemathesis.Case) -> None:
    """At most 2 KiB, a code that the document names for this status, the request's id, and nothing that was sent."""
    if response.status_code < 400:
        return
    assert len(response.content) <= 2048
    answer = response.json()
    assert set(answer) == {"error"}
    error = answer["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert [error["request_id"]] == response.headers["x-request-id"]
    documented = case.operation.definition.raw["responses"].get(str(response.status_code))
    if documented:
        assert error["code"] in documented["content"]["application/json"]["examples"]
    sent = [case.body, case.path_parameters, case.query, list((case.headers or {}).values())]
    for text in {text for part in sent for text in strings(part) if len(text) >= SHORTEST_ECHO}:
        assert text not in error["message"], "the answer repeats what was sent"


@schemathesis.check
def good_requests_are_accepted(ctx: Any, response: Any, case: schemathesis.Case) -> None:
    """What the document allows is done, unless what was written before forbids it."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code < 400:
        return
    sent = {name.lower() for name in case.headers or {}}
    if {"if-match", "if-none-match"} <= sent or holds_whole_float(case.body):
        return
    if response.json()["error"]["code"] == "invalid_request" and breaks_a_rule_between_fields(case):
        return
    if response.json()["error"]["code"] == "invalid_request" and any(
        words in response.json()["error"]["message"] for words in OF_OTHER_NOTES | OF_THE_NOTE.get(case.method, set())
    ):
        return
    assert response.json()["error"]["code"] in BY_STATE | BY_LANGUAGE


@schemathesis.serializer("application/x-ndjson")
def lines(ctx: Any, value: object) -> bytes:
    return b"\n".join(json.dumps(one).encode() for one in (value if isinstance(value, list) else [value]))


@dataclass
class Tally:
    """What became of the generated requests."""

    requests: int = 0
    statuses: set[int] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)

    def add(self, event: EngineEvent) -> None:
        match event:
            case ScenarioFinished():
                self._add_scenario(event)
            case NonFatalError():
                self.problems[str(event.info.title)] = f"{event.label}: {event.info.format()}"
            case FatalError():
                raise event.exception

    def _add_scenario(self, event: ScenarioFinished) -> None:
        recorder = event.recorder
        answers = [interaction.response for interaction in recorder.interactions.values()]
        self.requests += len(answers)
        self.statuses |= {answer.status_code for answer in answers if answer}
        for case_id, checks in recorder.checks.items():
            for check in checks:
                if check.failure_info:
                    answer = recorder.interactions[case_id].response
                    said = answer and f"{answer.status_code} {answer.text[:500]}"
                    failure = check.failure_info
                    name = f"{recorder.label}: {check.name}: {failure.failure.title}"
                    self.problems[name] = f"{failure.failure.message}\n{said}\n{failure.code_sample[:2000]}"


def document() -> dict[str, Any]:
    """The committed document; its NDJSON, of which OpenAPI can only say that it is text, is written from the array."""
    copy = json.loads(json.dumps(DOCUMENT))
    content = copy["paths"]["/notes"]["post"]["requestBody"]["content"]
    content["application/x-ndjson"]["schema"] = content["application/json"]["schema"]
    return copy


def configuration(url: str, headers: dict[str, str], seed: int, *, first: bool, examples: int) -> schemathesis.Config:
    phases = {
        "examples": {"enabled": first},
        "coverage": {"enabled": first},
        "fuzzing": {"enabled": True},
        "stateful": {"enabled": True, "generation": {"max-examples": max(5, examples // 10)}},
    }
    return schemathesis.Config.from_dict(
        {
            "base-url": url,
            "headers": headers,
            "seed": seed,
            "continue-on-failure": True,
            "generation": {"max-examples": examples, "no-shrink": True},
            "phases": phases,
            "checks": CHECKS,
            "operations": [
                # Its bodies are told apart by how they begin: an object that is said to be JSON is a line of NDJSON.
                {"include-operation-id": "put_notes", "checks": {"negative_data_rejection": {"enabled": False}}}
            ],
        }
    )


@pytest.mark.timeout(3600)
def test_no_generated_request_gets_an_answer_that_the_document_does_not_promise(service, headers):
    tally = Tally()
    seed = SEED
    while tally.requests < REQUESTS:
        first = seed == SEED
        examples = 10 if REQUESTS < 1000 else 100
        config = configuration(service.api, headers, seed, first=first, examples=examples)
        for event in from_schema(schemathesis.openapi.from_dict(document(), config=config)).execute():
            tally.add(event)
        seed += 1
    print(f"{tally.requests} requests, statuses {sorted(tally.statuses)}, seeds {SEED} to {seed - 1}")

    assert not tally.problems, "\n\n".join(f"{name}\n{problem}" for name, problem in tally.problems.items())
    assert max(tally.statuses) < 500
    assert {200, 202, 204, 404, 405, 412, 422} <= tally.statuses
    assert service.process.poll() is None

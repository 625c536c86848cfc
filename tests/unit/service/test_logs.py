"""Structured logs: one line of JSON an event, and never an exception's message."""

import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.logs import JsonFormatter, outline

MARK = "x-mark-x"


def written(record: logging.LogRecord) -> dict[str, object]:
    line = JsonFormatter().format(record)
    assert "\n" not in line
    return json.loads(line)


def record(event: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("service.worker", logging.INFO, __file__, 1, event, (), None)
    vars(made).update(fields)
    return made


def failed(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_an_event_is_an_object_with_its_fields():
    made = record("batch_embedded", notes=12, infer_s=0.5)
    made.created = 1767225600.25

    assert written(made) == {
        "time": "2026-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "service.worker",
        "event": "batch_embedded",
        "notes": 12,
        "infer_s": 0.5,
    }


@given(
    st.text(),
    st.text()
    | st.text(st.characters(categories=["Cs"]))
    | st.binary()
    | st.integers()
    | st.floats()
    | st.builds(object),
)
def test_whatever_a_field_holds_is_one_line_of_json(event, value):
    made = record("event", field=value)
    made.msg = event

    assert written(made)["event"] == event


def test_an_exception_is_its_type_and_places_without_its_message():
    error = failed(ValueError(MARK))
    made = record("failed")
    made.exc_info = (type(error), error, error.__traceback__)

    line = written(made)

    assert line["error"] == "ValueError"
    assert any(place.endswith(" failed") for place in line["places"])
    assert MARK not in json.dumps(line)


def test_the_outline_of_a_deep_exception_is_short():
    def sink(depth: int) -> None:
        if depth:
            sink(depth - 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        sink(100)

    assert len(outline(caught.value)["places"]) == 5


def test_configured_logs_go_to_stderr_from_the_given_level_up():
    script = (
        "import logging; from service.logs import configure; configure('DEBUG'); configure('WARNING');"
        "log = logging.getLogger('service.x'); log.info('quiet'); log.warning('loud', extra={'notes': 1})"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    [line] = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["event"], line["level"], line["notes"], done.stdout) == ("loud", "warning", 1, "")

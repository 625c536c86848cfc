"""The demo as a person runs it: the committed model, the sample notes, the printed commands, and crashes on the way."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.service import NOTELLM, Service, running, until

from model.data.samples.generate import sample_notes
from service.client import NoteLLMClient
from service.contract.status import NotesStatusOut
from service.settings import MINI

LOAD_S = 240


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return [note.id for note in sample_notes()]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Loaded with the samples, while its worker and one shard of its index were killed in the middle."""
    service = Service(tmp_path_factory.mktemp("demo"), MINI)
    # The model predicts every note, or the load would be over before the first kill.
    service.environment["NOTELLM_WORKER__CACHED_READINGS"] = "0"
    with running(service):
        subprocess.run([*NOTELLM, "load", "samples", "--url", service.api, "--no-wait"], check=True, timeout=LOAD_S)
        for name, share in (("worker", 0.2), ("indexer", 0.4), ("worker", 0.6)):
            until(lambda share=share: searchable(service) > share * len(sample_notes()), LOAD_S)
            os.kill(service.children()[name], signal.SIGKILL)
            until(lambda name=name: name in service.children())
        until(lambda: service.ready() and searchable(service) == len(sample_notes()), LOAD_S)
        yield service


@pytest.fixture(scope="module")
def notellm(service: Service) -> Iterator[NoteLLMClient]:
    with service.client() as notellm:
        yield notellm


def searchable(service: Service) -> int:
    with service.client() as notellm:
        return notellm.status().notes.searchable


@pytest.mark.timeout(600)
def test_after_kills_in_the_middle_of_a_load_every_note_is_searchable_exactly_once(notellm, notes):
    status = notellm.status()
    assert status.notes == NotesStatusOut(live=len(notes), searchable=len(notes), pending=0, failed=0)
    assert sum(shard.notes for shard in status.index.shards) == len(notes)
    found = set()
    for note_id in notes:
        ids = [item.note_id for item in notellm.related(note_id, k=100).items]
        assert len(set(ids)) == len(ids) == 100
        assert note_id not in ids
        found.update(ids)
    assert found <= set(notes)


def test_related_notes_are_mostly_of_the_same_kind(notellm):
    """The mini model was trained on these very notes: anything less would mean that vectors or ids are mixed up."""
    for note_id, category in (("travel-01", "Travel"), ("dogs-05", "Dogs"), ("programming-03", "Programming")):
        items = notellm.related(note_id).items
        assert sum(item.category == category for item in items) >= 7
        assert [item.score for item in items] == sorted((item.score for item in items), reverse=True)


def test_a_draft_that_is_not_among_the_samples_gets_category_hashtags_and_related_notes(notellm):
    answer = notellm.tags(
        "My puppy finally sleeps through the night",
        "We moved the crate next to our bed and took her out at five. The vet says it is a matter of weeks.",
        related=5,
    )
    assert answer.category.name == "Dogs"
    assert 1 <= len(answer.hashtags) <= 5
    assert {item.category for item in answer.related} & {"Dogs", "Cats"}


def test_a_note_written_now_is_found_within_the_wait_and_again_after_a_restart(service, notellm, notes):
    note = {
        "title": "Night bus to Oaxaca",
        "content": "Cold air, bad films, a sunrise over agave fields.",
        "hashtags": ["travel"],
    }
    assert notellm.put("new1", note, wait_s=10).status == "searchable"
    before = notellm.related("new1").items
    assert len(before) == 10

    children = service.children().values()
    assert service.stop(signal.SIGINT) == 0
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    service.start()

    until(lambda: searchable(service) == len(notes) + 1)
    with service.client() as reopened:
        after = reopened.related("new1").items
    assert [item.note_id for item in after] == [item.note_id for item in before]

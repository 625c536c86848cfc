"""`notellm serve --backend vllm`: a note goes in, is found, and a draft gets its hashtags and category."""

from collections.abc import Iterator

import pytest
from support.service import Service, running

from model.data.samples.generate import sample_notes
from service.settings import MINI


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("vllm"), MINI, "--backend", "vllm")
    service.environment |= {"HF_HUB_OFFLINE": "1"}
    with running(service):
        yield service


@pytest.mark.timeout(600)
def test_a_note_is_searchable_soon_after_it_was_written(service):
    notes = [note for note in sample_notes() if note.category in ("Baking", "Travel")][:24]
    with service.client(timeout_s=60) as notellm:
        for note in notes:
            notellm.put(note.id, {"title": note.title, "content": note.content, "hashtags": note.hashtags})
        rye = {"title": "Rye sourdough in a cold kitchen", "content": "The starter needs two days."}
        assert notellm.put("rye", rye, wait_s=10).status == "searchable"
        related = notellm.related("rye", k=3).items
    categories = {note.id: note.category for note in notes}
    assert [categories[item.note_id] for item in related] == ["Baking"] * 3


def test_a_draft_gets_hashtags_and_a_category(service):
    with service.client(timeout_s=60) as notellm:
        answer = notellm.tags("Rye sourdough in a cold kitchen", "The starter needs two days.")
    assert answer.category.name == "Baking"
    assert any(tag.source != "neighbors" for tag in answer.hashtags)


def test_the_form_that_vllm_reads_was_written_into_the_state_folder(service):
    [folder] = (service.state / "serving").iterdir()
    assert (folder / "serving.json").is_file()

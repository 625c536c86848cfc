"""`notellm serve --backend vllm`: a note goes in, is found, and a draft gets its hashtags and category."""

from collections.abc import Iterator

import httpx
import pytest
from support.service import Service, running

from model.samples.generate import sample_notes
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
    with httpx.Client(base_url=service.api, timeout=60) as client:
        for note in notes:
            body = {"title": note.title, "content": note.content, "hashtags": list(note.hashtags)}
            assert client.put(f"/notes/{note.id}", json=body).status_code in (200, 201, 202)
        body = {"title": "Rye sourdough in a cold kitchen", "content": "The starter needs two days.", "hashtags": []}
        written = client.put("/notes/rye", params={"wait": 10}, json=body).json()
        assert written["status"] == "searchable"
        related = client.get("/notes/rye/related", params={"k": 3}).json()["items"]
    categories = {note.id: note.category for note in notes}
    assert [categories[item["note_id"]] for item in related] == ["Baking"] * 3


def test_a_draft_gets_hashtags_and_a_category(service):
    draft = {"title": "Rye sourdough in a cold kitchen", "content": "The starter needs two days.", "max_hashtags": 5}
    answer = httpx.post(f"{service.api}/notes/tags", json=draft, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["category"]["name"] == "Baking"
    assert any(tag["source"] != "neighbours" for tag in answer.json()["hashtags"])


def test_the_form_that_vllm_reads_was_written_into_the_state_folder(service):
    [folder] = (service.state / "serving").iterdir()
    assert (folder / "serving.json").is_file()

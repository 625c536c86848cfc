"""`notellm serve --samples`: the sample notes come with their predictions, so that a first load waits for no model."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from support.service import Service, running

from model.data.samples.generate import sample_notes
from service.settings import MINI


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(Service(tmp_path_factory.mktemp("samples"), MINI, "--samples")) as service:
        yield service


def test_no_sample_note_needs_a_forward_pass(service):
    with service.client() as notellm:
        count = len(sample_notes())
        assert notellm.status().notes.searchable == count
        port = (service.state / "run" / "worker-0.ops").read_text()
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        assert f'notellm_embed_cache_hits_total{{cache="recent"}} {float(count)}' in metrics
        related = notellm.related("travel-01", k=5)
        assert len(related.items) == 5
        assert notellm.get("travel-01").suggested_category is not None


def test_of_a_text_that_its_tokenizer_cannot_read_the_model_says_nothing(service):
    texts = {"party": "\U0001f389\U0001f389", "smile": "\U0001f642", "thai": "สวัสดีครับ ยินดีต้อนรับ", "dots": "!!! ..."}
    with service.client() as notellm:
        for note_id, text in texts.items():
            note = {"title": text, "hashtags": ["Partytime"]} if note_id == "dots" else {"title": text}
            assert notellm.put(note_id, note, wait_s=10).status == "searchable"
        for note_id in ("party", "smile", "thai"):
            stored = notellm.get(note_id)
            assert (stored.suggested_category, stored.suggested_hashtags) == (None, [])
            assert notellm.related(note_id, k=20).items == []
            draft = notellm.tags(texts[note_id], related=5)
            assert (draft.category, draft.hashtags, draft.related) == (None, [], [])
        # A hashtag that it can read is something to go by, and so is a word.
        assert len(notellm.related("dots", k=20).items) == 20
        assert notellm.tags("\U0001f389 my sourdough bread").category.name == "Baking"
        assert {"party", "smile", "thai"}.isdisjoint(item.note_id for item in notellm.related("travel-01", k=100).items)
        vectors = [np.array(entry.embedding) for entry in notellm.embed(list(texts.values())[:3]).data]
    assert all(abs(vectors[one] @ vectors[other]) < 0.5 for one, other in ((0, 1), (0, 2), (1, 2)))

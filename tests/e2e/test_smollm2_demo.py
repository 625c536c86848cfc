"""The demo with SmolLM2: its adapter becomes a checkpoint at the first start, and a language model reads drafts."""

import httpx
import pytest
from support.service import Service, running

from model.data.samples.generate import sample_notes
from service.settings import MINI

RAMEN = ("A weekend of ramen in Osaka", "Four bowls in two days, ranked.")


@pytest.mark.timeout(400)
def test_the_samples_are_there_and_a_draft_is_understood(tmp_path):
    service = Service(tmp_path, MINI.with_name("smollm2"), "--samples")
    with running(service), service.client() as notellm:
        count = len(sample_notes())
        assert notellm.status().notes.searchable == count
        port = (service.state / "run" / "worker-0.ops").read_text()
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        assert f'notellm_embed_cache_hits_total{{cache="recent"}} {float(count)}' in metrics
        tags = notellm.tags(*RAMEN)
        assert tags.category.name in ("Restaurants", "Travel", "Cooking")
        assert any(tag.source != "neighbors" for tag in tags.hashtags)

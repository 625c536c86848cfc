"""`notellm serve --samples`: the sample notes come with their predictions, so that a first load waits for no model."""

import httpx
from support.service import Service, running

from model.data.samples.generate import sample_notes
from service.settings import MINI


def test_no_sample_note_needs_a_forward_pass(tmp_path):
    with running(Service(tmp_path, MINI, "--samples")) as service, service.client() as notellm:
        count = len(sample_notes())
        assert notellm.status().notes.searchable == count
        port = (service.state / "run" / "worker-0.ops").read_text()
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        assert f'notellm_embed_cache_hits_total{{cache="recent"}} {float(count)}' in metrics
        related = notellm.related("travel-01", k=5)
        assert len(related.items) == 5
        assert notellm.get("travel-01").suggested_category is not None

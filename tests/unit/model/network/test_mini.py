"""The committed model: whole, small, and doing what its card says."""

import pytest

from model.data.samples.generate import sample_notes
from model.inference.open import open_backend
from model.network.checkpoint import load_manifest
from model.note import Note
from service.settings import MINI

DRAFTS = {
    "Dogs": Note("d", "Our puppy chews everything", "New shoes, table legs, the leash. What helped with teething?"),
    "Baking": Note("b", "Why did my loaf collapse", "Sourdough starter was lively but the bread came out flat."),
    "Programming": Note("p", "A bug that only shows in production", "Logs, a debugger and two days later: a race."),
}


@pytest.fixture(scope="module")
def backend():
    return open_backend("hf", MINI)


def test_it_is_small_enough_to_be_committed():
    assert sum(path.stat().st_size for path in MINI.iterdir()) <= 25_000_000


def test_its_closed_set_is_the_samples_categories():
    assert set(load_manifest(MINI).categories) == {note.category for note in sample_notes()}


@pytest.mark.parametrize("category", DRAFTS)
def test_it_knows_the_category_of_a_draft_it_has_never_seen(backend, category):
    [prediction] = backend.predict(backend.tokenize([DRAFTS[category]]), 5)
    assert prediction.category.name == category
    assert prediction.hashtags

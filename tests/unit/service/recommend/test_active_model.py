"""Which recommender a gateway answers with, as the store's active model changes."""

import logging

import pytest
from prometheus_client import REGISTRY

from service.errors import StoreUnavailable
from service.recommend.active_model import ActiveModel


class Pointer:
    """The store's pointer to the active model, which can be down."""

    def __init__(self) -> None:
        self.fingerprint: str | None = None
        self.down = False

    async def __call__(self) -> str | None:
        if self.down:
            raise StoreUnavailable("the store does not answer")
        return self.fingerprint


@pytest.fixture
def pointer() -> Pointer:
    return Pointer()


def is_active(fingerprint: str) -> float | None:
    return REGISTRY.get_sample_value("notellm_active_model", {"fingerprint": fingerprint})


async def test_before_the_store_names_a_model_it_is_the_given_one(pointer):
    active = ActiveModel(pointer, "am-own", lambda fingerprint: [fingerprint])

    await active.follow()

    assert (active(), active.fingerprint, is_active("am-own")) == (["am-own"], "am-own", 1)


async def test_it_follows_the_pointer_there_and_back_and_makes_each_recommender_once(pointer, caplog):
    active = ActiveModel(pointer, "am-old", lambda fingerprint: [fingerprint])
    first = active()
    pointer.fingerprint = "am-new"
    with caplog.at_level(logging.INFO):
        await active.follow()
        await active.follow()

    assert (active(), active.fingerprint) == (["am-new"], "am-new")
    assert (is_active("am-old"), is_active("am-new")) == (0, 1)
    assert [(line.message, line.before, line.fingerprint) for line in caplog.records] == [
        ("model_active", "am-old", "am-new")
    ]
    pointer.fingerprint = "am-old"
    await active.follow()
    assert active() is first
    assert (is_active("am-old"), is_active("am-new")) == (1, 0)


@pytest.mark.parametrize("answer", ["none", "down"])
async def test_the_last_model_stays_when_the_store_names_none(pointer, answer):
    active = ActiveModel(pointer, "am-first", lambda fingerprint: fingerprint)
    pointer.fingerprint = "am-last"
    await active.follow()
    pointer.fingerprint, pointer.down = None, answer == "down"

    await active.follow()

    assert active() == "am-last"

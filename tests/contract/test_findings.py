"""What commands tell and gateways show, in Redis: kept by name, seen by one number, and bounded."""

import pytest
from redis.asyncio import Redis

from service.store.experiments.findings import MOST, Findings
from service.store.schema import FINDINGS


@pytest.fixture
def findings(redis: Redis) -> Findings:
    return Findings(redis)


async def test_the_last_word_of_each_name_is_kept_and_whoever_knows_it_asks_for_a_number(findings):
    assert await findings.changed(None) == (0, {})
    await findings.tell("experiment", "spread", '{"first": 1}')
    await findings.tell("turn", "spread", '{"of": "a turn"}')
    await findings.tell("experiment", "spread", '{"second": "2 words"}')

    revision, told = await findings.changed(0)

    assert list(told.items()) == [
        (("experiment", "spread"), b'{"second": "2 words"}'),
        (("turn", "spread"), b'{"of": "a turn"}'),
    ]
    assert await findings.changed(revision) is None
    await findings.forget("experiment", "spread")
    assert (await findings.changed(revision) or ())[1] == {("turn", "spread"): b'{"of": "a turn"}'}


async def test_of_each_kind_those_that_were_told_longest_ago_go(redis, findings):
    for number in range(MOST["turn"] + 3):
        await findings.tell("turn", f"t{number}", "{}")
        await findings.tell("experiment", f"e{number}", "{}")
        await findings.tell("turn", "t0", "{}")

    _, told = await findings.changed(None) or (0, {})

    turns = {name for kind, name in told if kind == "turn"}
    assert turns == {"t0", *(f"t{number}" for number in range(4, MOST["turn"] + 3))}
    assert await redis.hlen(FINDINGS) == 1 + MOST["turn"] + MOST["turn"] + 3

"""Workers killed, or stopped in the middle of a batch, while notes are written, rewritten and deleted; and poison."""

import asyncio
import subprocess
import time
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis
from support.redis import RedisServer
from support.service import NOTELLM, UNSET
from support.workers import NAMES, Author, done, in_hand, lives, problems
from support.working import until

from service.store.notes import RedisStore
from service.store.schema import DEAD

NOTES_A_ROUND = 100
PATIENCE_S = 60


async def strain(redis: Redis, url: str, rounds: Iterator, without: str, figures: dict[str, object]) -> list[str]:
    """A kill or a stop a round; the last stop lasts until all is done. Problems in the end."""
    at_work = {"rounds": 0, "killed at work": 0, "stopped at work": 0}
    author = Author(RedisStore(redis, max_queue=1_000_000), seed=5)
    with lives(url, without) as workers:
        for one in rounds:
            at_work["rounds"] += 1
            await author.write(NOTES_A_ROUND)
            await asyncio.sleep(one.chance.uniform(0.0, 0.1))
            name = one.chance.choice(NAMES)
            if one.seed % 2:
                at_work["killed at work"] += bool(await in_hand(redis, name))
                workers.kill(name)
            else:
                workers.stop(name)
                claimed = await in_hand(redis, name)
                at_work["stopped at work"] += bool(claimed)
                # It goes on with the older version in its hands, after another worker has published the newer one.
                await author.rewrite([note_id for note_id in claimed if note_id in author.titles])
                await asyncio.sleep(1.5 if one.seed % 4 else one.chance.uniform(0.0, 0.5))
                workers.go_on(name)
        await author.write(NOTES_A_ROUND)
        workers.stop(NAMES[0])
        await until(lambda: done(redis), PATIENCE_S if not without else 10)
        workers.go_on(NAMES[0])
        await asyncio.sleep(0.5)  # time for a late publication
    figures |= {**at_work, "notes": len(author.titles), "deletes": len(author.deleted)}
    found = await problems(redis, url, author) + [str(letter) for letter in await redis.xrange(DEAD)]
    figures["problems"] = len(found)
    return found


async def test_every_note_is_found_once_as_it_was_last_written(redis, redis_server, rounds, figures):
    assert await strain(redis, redis_server.url, rounds(12, 200), "", figures) == []
    assert figures["killed at work"] + figures["stopped at work"] > figures["rounds"] // 4


async def test_the_twin_that_publishes_without_a_look_at_the_version_overwrites(redis, redis_server, rounds, figures):
    found = await strain(redis, redis_server.url, rounds(12, 20), "version check", figures)
    assert any("predicted" in problem for problem in found)


async def test_the_twin_that_takes_nothing_over_never_ends(redis, redis_server, rounds, figures):
    with pytest.raises(TimeoutError):
        await strain(redis, redis_server.url, rounds(2, 2), "take-over", figures)


async def poisoned(redis: Redis, server: RedisServer, without: str, figures: dict[str, object]) -> list[str]:
    """80 poison notes among 2,000; problems in the end."""
    author = Author(RedisStore(redis, max_queue=1_000_000), seed=6)
    stall_s, last, left = 0.0, time.monotonic(), 1 << 30
    with lives(server.url, without):
        for batch in range(8):
            await author.rewrite([f"n{batch}-{number}" for number in range(240)])
            await author.poison([f"p{batch}-{number}" for number in range(10)])
        while not await done(redis):
            if (now_left := await redis.xlen("notellm:v1:jobs:hashing-a")) < left:
                last, left = time.monotonic(), now_left
            stall_s = max(stall_s, time.monotonic() - last)
            assert stall_s < PATIENCE_S
            await asyncio.sleep(0.02)
    found = await problems(redis, server.url, author)
    listed = await asyncio.to_thread(notellm, server, "deadletters", "list")
    letters = [line for line in listed.splitlines() if line.startswith("p") and "RuntimeError: cannot read" in line]
    figures |= {"notes": 2_000, "found": len(author.titles), "dead letters with reason": len(letters)}
    figures |= {"longest stall s": f"{stall_s:.1f}", "problems": len(found)}
    return found if len(letters) == 80 else [*found, f"{len(letters)} dead letters: {listed[:500]}"]


async def test_poison_ends_as_dead_letters_and_stops_nobody(redis, redis_server, figures):
    assert await poisoned(redis, redis_server, "", figures) == []


async def test_the_twin_that_drops_poison_is_found_out(redis, redis_server, figures):
    assert "0 dead letters" in (await poisoned(redis, redis_server, "dead letters", figures))[-1]


def notellm(server: RedisServer, *words: str) -> str:
    """What a command prints."""
    environment = {**UNSET, "NOTELLM_REDIS_URL": server.url}
    return subprocess.run([*NOTELLM, *words], env=environment, capture_output=True, text=True, check=True).stdout

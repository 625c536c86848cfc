from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis
from support.cluster import Cluster
from support.redis import RedisServer

from service.store.cells.ring import Cells, names
from service.store.connection import open_redis

# How long an example takes tells of the machine: the first text of a fresh checkout waits for tables of Unicode.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    """An empty Redis Cluster."""
    running_cluster.settle()
    running_cluster.flush()
    return running_cluster


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of an empty Redis."""
    client = open_redis(redis_server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def cells(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Cells[Redis]]:
    """Three cells on it."""
    _, *others = names(3)
    opened = Cells.of([redis, *(open_redis(redis_server.url, cell=name) for name in others)])
    yield opened
    for client in opened.others:
        await client.aclose()

import pytest

from indexer.serving.server import ShardServer
from service.shard.indexes import Indexes
from service.store.changes import RedisChangeStream


def nothing(fingerprint: str) -> RedisChangeStream:
    pytest.fail(f"opened an index for {fingerprint!r}")


@pytest.fixture
def indexes(tmp_path) -> Indexes:
    return Indexes(tmp_path / "index", ShardServer(0, 1), nothing, shard=0, shards=1, snapshot_every_s=60.0)


@pytest.mark.parametrize("name", ["{}", "../precious", ".", "..", ""])
async def test_a_name_in_the_registry_that_is_no_fingerprint_is_never_a_path(indexes, tmp_path, name):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "kept").touch()
    await indexes.adjust({name.format(precious): 4})
    await indexes.adjust({})
    assert [path.name for path in precious.iterdir()] == ["kept"]


async def test_a_folder_that_is_not_of_an_index_stays(indexes, tmp_path):
    (tmp_path / "index" / "lost+found").mkdir(parents=True)
    (tmp_path / "index" / "c2edb7a1907933cb").mkdir()
    await indexes.adjust({})
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["lost+found"]

"""A real Redis Cluster over TLS: nodes that are found, trusted, and named where they are not."""

from collections.abc import Iterator

import pytest
from support.cluster import Cluster

from model.note import Note
from service.errors import StoreUnavailable
from service.store.info import examine
from service.store.records import StoredNote
from service.store.schema import NOTE
from service.wiring import stores

IDS = [f"n{number}" for number in range(12)]  # in every cell some


@pytest.fixture
def secured() -> Iterator[Cluster]:
    """Three primaries."""
    cluster = Cluster(replicas=0, tls=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


async def test_each_cell_is_found_over_tls_and_a_node_is_trusted_by_the_name_that_others_call_it(secured):
    async with stores.open_cells(secured.url, 3) as cells:
        store = stores.note_store(cells, 100)
        assert await store.put([StoredNote(Note(note_id, "A title"), 0) for note_id in IDS]) == [1] * len(IDS)
        assert [found and found.note.id for found in await store.get(IDS)] == IDS
    with stores.open_sync_cells(secured.url, 3) as cells:
        assert [cells.of_note(note_id).exists(NOTE + note_id) for note_id in IDS] == [1] * len(IDS)
    assert (await examine(secured.url)).problems == ()
    [untrusted] = (await examine(secured.tls_url())).problems
    assert (untrusted.cause, "self-signed" in untrusted.line) == ("certificate", True)

    # Named by a host of the certificate, whose nodes call each other by their addresses.
    secured.certified("DNS:localhost")
    for node in secured.nodes:
        files = {name: f"{secured.folder}/localhost.{name}" for name in ("crt", "key")}
        node("CONFIG SET", "tls-cert-file", files["crt"], "tls-key-file", files["key"])
    url = f"{secured.tls_url('localhost')}?ssl_ca_certs={secured.folder}/localhost.crt"
    async with stores.open_cells(url, 3) as cells:
        with pytest.raises(StoreUnavailable, match="certificate"):
            await stores.note_store(cells, 100).get(IDS)
        for node in secured.nodes:
            node("CONFIG SET", "cluster-announce-hostname", "localhost", "cluster-preferred-endpoint-type", "hostname")
        secured.settle()
        found = await stores.note_store(cells, 100).get(IDS)
    assert [note and note.note.id for note in found] == IDS

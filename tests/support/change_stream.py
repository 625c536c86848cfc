"""The entries of the embeddings stream as the scripts of the store write them."""

from indexer.types import Change
from service.store.records import pack_vector


def encode_change(change: Change) -> dict[bytes, bytes]:
    """An entry for `service.store.records.decode_change`, as older releases wrote it: with two fields at most."""
    fields = {
        b"id": change.id.encode(),
        b"version": b"%d" % change.version,
        b"fingerprint": change.fingerprint.encode(),
    }
    if change.vector is not None:
        fields[b"vector"] = pack_vector(change.vector)
    for name in {"category", "author"} & change.fields.keys():
        fields[name.encode()] = str(change.fields[name]).encode()
    if change.written_ms is not None:
        fields[b"written_ms"] = b"%d" % change.written_ms
    return fields

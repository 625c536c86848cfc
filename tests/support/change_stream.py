"""The entries of the embeddings stream as the scripts of the store write them."""

from indexer.types import Change
from service.store.records import pack_vector


def encode_change(change: Change) -> dict[bytes, bytes]:
    """Inverse of `service.store.records.decode_change`, without the cursor, which Redis assigns."""
    fields = {
        b"id": change.id.encode(),
        b"version": b"%d" % change.version,
        b"fingerprint": change.fingerprint.encode(),
    }
    if change.vector is not None:
        fields[b"vector"] = pack_vector(change.vector)
    for name, label in ((b"category", change.category), (b"author", change.author)):
        if label is not None:
            fields[name] = label.encode()
    if change.written_ms is not None:
        fields[b"written_ms"] = b"%d" % change.written_ms
    return fields

"""The shard of an id, and the addresses of a shard's replicas."""

from hashlib import blake2b


def replicas(addresses: str) -> list[str]:
    """The addresses of one shard's replicas, from a list with commas."""
    return [address.strip() for address in addresses.split(",")]


def shard_of(id: str, shards: int) -> int:  # noqa: A002
    """The id's shard in 0..shards-1, the same in every process and release.

    Jump consistent hash (Lamping and Veach, 2014) of a BLAKE2b digest: growing from S to S + 1 shards moves
    about one id in S + 1, all of them to the new shard.

    Raises:
        ValueError: if there is no shard.
    """
    if shards < 1:
        raise ValueError(f"need at least one shard; got {shards}")
    key = int.from_bytes(blake2b(id.encode(), digest_size=8).digest(), "big")
    bucket, jump = 0, 0
    while jump < shards:
        bucket = jump
        key = (key * 2862933555777941757 + 1) & 0xFFFF_FFFF_FFFF_FFFF
        jump = int((bucket + 1) * (1 << 31) / ((key >> 33) + 1))
    return bucket

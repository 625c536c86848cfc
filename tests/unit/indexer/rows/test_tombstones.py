"""How long a tombstone is kept."""

from indexer.rows.tombstones import Tombstones


def test_a_tombstone_is_known_until_its_id_is_live_again():
    tombstones = Tombstones()
    tombstones.put("a", 3)
    tombstones.put("b", 1)
    tombstones.put("b", 2)

    assert (tombstones.version("a"), tombstones.version("b"), tombstones.version("c")) == (3, 2, None)
    tombstones.remove("a")
    assert tombstones.version("a") is None
    assert len(tombstones) == 1


def test_it_is_dropped_once_as_many_snapshots_as_are_kept_were_written_after_its_first():
    tombstones = Tombstones()
    known = []
    for number in range(6):
        if number == 1:
            tombstones.put("a", 1)
        known.append(tombstones.version("a") is not None)
        tombstones.snapshot_written(kept=3)

    # Snapshot 1 is the first with the tombstone; after number 4 was written, 2, 3 and 4 are kept.
    assert known == [False, True, True, True, True, False]


def test_a_delete_repeated_later_is_as_young_as_its_last():
    tombstones = Tombstones()
    tombstones.put("a", 1)
    for _ in range(3):
        tombstones.snapshot_written(kept=3)
    tombstones.put("a", 2)
    for _ in range(3):
        tombstones.snapshot_written(kept=3)

    assert tombstones.version("a") == 2
    assert len(tombstones) == 1


def test_ages_survive_a_copy():
    tombstones = Tombstones()
    tombstones.put("a", 1)
    tombstones.snapshot_written(kept=1)
    tombstones.put("b", 1)

    copy = Tombstones(tombstones.epochs())
    copy.snapshot_written(kept=1)

    assert (copy.version("a"), copy.version("b"), tombstones.version("a")) == (None, 1, 1)

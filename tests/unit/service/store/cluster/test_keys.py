"""The keys of a cell, as commands and scripts name them."""

import importlib
import re
from pathlib import Path

import pytest
from redis.crc import key_slot

import service.store
from service.store.cluster.keys import tagged, tagged_script, untagged
from service.store.schema import LUA, NOTE, RESTORING, UNLESS_RESTORING

# Their one key is the first thing that they look at.
OF_ONE_KEY = {("watches.py", "LEASE"), ("idempotency.py", "FORGET")}


@pytest.mark.parametrize(
    ("command", "places"),
    [
        (("GET", "notellm:v1:active"), [1]),
        (("SET", b"notellm:v1:active", b"notellm:v1:active"), [1]),
        (("MGET", "notellm:v1:note:a", "notellm:v1:note:b"), [1, 2]),
        (("DEL", "notellm:v1:note:a", "notellm:v1:note:b"), [1, 2]),
        (("HSET", "notellm:v1:webhook", "model", "notellm:v1:x"), [1]),
        (("ZADD", "notellm:v1:ids", 0, "notellm:v1:x"), [1]),
        (("XADD", "notellm:v1:dead", "*", "id", "notellm:v1:x"), [1]),
        (("XGROUP CREATE", "notellm:v1:jobs:m", "workers", "0", "MKSTREAM"), [1]),
        (("XINFO CONSUMERS", "notellm:v1:jobs:m", "workers"), [1]),
        (("XREAD", b"COUNT", 5, b"STREAMS", "notellm:v1:embeddings", "0-0"), [4]),
        (
            ("XREADGROUP", "GROUP", "workers", "w", "STREAMS", "notellm:v1:jobs:m", "notellm:v1:jobs:n", ">", ">"),
            [5, 6],
        ),
        (("EVALSHA", "d1", 0, "notellm:v1:x"), []),
        (("EVALSHA", "d1", 1, "notellm:v1:answer:a", "notellm:v1:x"), [3]),
        (("SCAN", 0, b"MATCH", "notellm:v1:note:*", b"COUNT", 5), [3]),
        (("INFO", "memory"), []),
        (("WAIT", 1, 1000), []),
        (("SCRIPT LOAD", "return 1"), []),
    ],
)
def test_the_keys_of_a_command_get_the_tag_and_nothing_else_does(command, places):
    got = tagged(command)

    changed = [place for place, (before, after) in enumerate(zip(command, got, strict=True)) if before != after]
    assert changed == places
    assert all(got[place].startswith(b"notellm:v1:{c00}:") for place in places)


def test_all_keys_are_in_one_slot_whatever_stands_in_an_id():
    ids = ["a", "{b}", "}{", "x{y}z", ""]

    _, *keys = tagged(("MGET", *(NOTE + note_id for note_id in ids), RESTORING))

    assert len({key_slot(key) for key in keys}) == 1
    assert len({key_slot((NOTE + note_id).encode()) for note_id in ids}) > 1


@pytest.mark.parametrize(
    "command", [("SORT", "notellm:v1:ids"), ("RENAME", "a", "b"), ("GET", "elsewhere"), ("XREADS",)]
)
def test_what_is_not_of_our_store_is_no_command_of_a_cell(command):
    with pytest.raises(ValueError, match="key"):
        tagged(command)


def test_a_script_names_the_keys_of_the_cell_and_a_scan_finds_those_of_the_store():
    text = tagged_script(LUA)

    assert text.count("notellm:v1:{c00}:") == text.count("notellm:v1:") == LUA.count("notellm:v1:") > 20
    assert untagged([b"notellm:v1:{c00}:note:{c00}:x"]) == [b"notellm:v1:note:{c00}:x"]


def test_every_script_begins_with_a_look_at_a_key_that_is_not_there():
    """So a node that gives the slot away refuses it before it has written anything, and not halfway."""
    folder = Path(service.store.__file__).parent
    seen = set()
    for file in folder.rglob("*.py"):
        module = importlib.import_module(".".join(file.relative_to(folder.parents[1]).with_suffix("").parts))
        for name in re.findall(r"(?:register_script|acknowledged)\((?:redis, )?([A-Z_]+)\)", file.read_text()):
            begins = getattr(module, name).startswith(UNLESS_RESTORING)
            assert begins != ((file.name, name) in OF_ONE_KEY), (file.name, name)
            seen.add((file.name, name))
    assert len(seen) > 20

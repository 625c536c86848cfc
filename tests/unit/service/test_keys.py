"""The keys file: what is written, who may read it, and how a gateway follows it."""

import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from service.keys import Keyring, KeysError, create_key, load_keys, open_keyring, revoke_key
from service.setting_groups import HttpSettings
from service.settings import Settings, SetupError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def reloads(outcome: str) -> float:
    return REGISTRY.get_sample_value("notellm_keys_reloads_total", {"outcome": outcome}) or 0.0


def test_the_file_holds_the_hash_of_a_key_and_not_the_key(file):
    key, secret = create_key(file, ["read", "write"], "ingest")

    assert secret not in file.read_text()
    [kept] = json.loads(file.read_text())["keys"]
    assert kept["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert (kept["id"], kept["name"], kept["scopes"]) == (key.id, "ingest", ["read", "write"])


def test_a_key_has_256_random_bits_and_is_new_every_time(file):
    secrets = {create_key(file, ["read"])[1] for _ in range(20)}

    assert len(secrets) == 20
    assert all(len(secret.removeprefix("notellm_")) >= 256 / 6 for secret in secrets)


def test_only_the_owner_reads_the_file(file):
    create_key(file, ["read"])
    file.chmod(0o644)
    create_key(file, ["read"])

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_admin_implies_the_other_scopes_and_no_other_does(file):
    admin, _ = create_key(file, ["admin"])
    reader, _ = create_key(file, ["read"])

    assert all(admin.allows(scope) for scope in ("read", "write", "tags", "admin"))
    assert [scope for scope in ("read", "write", "tags", "admin") if reader.allows(scope)] == ["read"]


def test_rotation_is_create_switch_revoke(file):
    old, old_secret = create_key(file, ["read"])
    keyring = Keyring(file)
    new, new_secret = create_key(file, ["read"])
    keyring.refresh()
    assert [keyring.find(secret.encode()) for secret in (old_secret, new_secret)] == [old, new]

    assert revoke_key(file, old.id) == old
    keyring.refresh()
    assert [keyring.find(secret.encode()) for secret in (old_secret, new_secret)] == [None, new]


@pytest.mark.parametrize("secret", [b"", b"notellm_", b"\xff\xfe", "caf\u00e9".encode(), b"\0", b"a" * 10_000])
def test_what_is_no_key_is_not_found(file, secret):
    create_key(file, ["read"])

    assert Keyring(file).find(secret) is None


def test_neither_the_hash_nor_the_id_opens_anything(file):
    key, _ = create_key(file, ["read"])

    keyring = Keyring(file)
    assert [keyring.find(text.encode()) for text in (key.sha256, key.id)] == [None, None]


BROKEN = {
    "no JSON": "{",
    "empty": "",
    "a list": "[]",
    "no keys": "{}",
    "an unknown scope": '{"keys": [{"id": "a", "scopes": ["root"], "sha256": "%s", "created_at": ""}]}' % ("0" * 64),
    "no scope": '{"keys": [{"id": "a", "scopes": [], "sha256": "%s", "created_at": ""}]}' % ("0" * 64),
    "a key instead of its hash": '{"keys": [{"id": "a", "scopes": ["read"], "sha256": "x-mark-x", "created_at": ""}]}',
    "an unknown field": '{"keys": [], "x-mark-x": 1}',
    "twice the same id": '{"keys": [%s, %s]}'
    % ((f'{{"id": "a", "scopes": ["read"], "sha256": "{"0" * 64}", "created_at": ""}}',) * 2),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_file_keeps_the_keys_that_were_and_is_told_once(file, content, caplog):
    key, secret = create_key(file, ["read"])
    keyring = Keyring(file)
    failed = reloads("failed")
    file.write_text(content)

    for _ in range(3):
        keyring.refresh()

    assert keyring.find(secret.encode()) == key
    [told] = [record for record in caplog.records if record.message == "keys_file_broken"]
    assert str(file) in told.reason
    assert "x-mark-x" not in told.reason
    assert told.levelno == logging.ERROR
    assert reloads("failed") == failed + 1


def test_a_file_that_is_mended_or_comes_back_is_read_again(file):
    create_key(file, ["read"])
    keyring = Keyring(file)
    good = file.read_text()
    file.unlink()
    keyring.refresh()
    file.write_text(good)
    added, secret = create_key(file, ["write"])

    keyring.refresh()

    assert keyring.find(secret.encode()) == added


def test_a_change_within_the_same_instant_and_of_the_same_length_is_seen(file):
    _, secret = create_key(file, ["read"])
    keyring = Keyring(file)
    before = file.stat()
    _, other = create_key(file.with_name("other.json"), ["read"])
    file.with_name("other.json").replace(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size

    keyring.refresh()

    assert keyring.find(secret.encode()) is None
    assert keyring.find(other.encode())


def test_when_the_last_key_is_revoked_nobody_is_let_in(file):
    key, secret = create_key(file, ["read"])
    keyring = Keyring(file)
    revoke_key(file, key.id)

    keyring.refresh()

    assert keyring.find(secret.encode()) is None


def test_an_unchanged_file_is_not_read_again(file):
    create_key(file, ["read"])
    keyring = Keyring(file)
    before = reloads("ok")

    keyring.refresh()

    assert reloads("ok") == before


def test_a_missing_file_and_one_without_keys_say_how_to_make_one(file):
    with pytest.raises(KeysError, match="notellm keys create"):
        Keyring(file)
    file.write_text('{"keys": []}')
    with pytest.raises(KeysError, match="notellm keys create"):
        Keyring(file)


def test_keys_made_at_the_same_time_are_all_kept(file):
    threads = [threading.Thread(target=create_key, args=(file, ["read"])) for _ in range(8)]
    script = f"from pathlib import Path; from service.keys import create_key; create_key(Path({str(file)!r}), ['read'])"
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]

    assert len(load_keys(file)) == 10


def test_a_file_that_cannot_be_written_is_left_as_it_was(file, monkeypatch):
    create_key(file, ["read"])
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(KeysError, match="No space left on device"):
        create_key(file, ["write"])

    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_behind_a_link_is_changed_where_it_is(file, tmp_path):
    create_key(file, ["read"])
    link = tmp_path / "link.json"
    link.symlink_to(file)

    create_key(link, ["write"])

    assert link.is_symlink()
    assert len(load_keys(file)) == 2


@pytest.mark.parametrize("scopes", [["write"], ["admin"], ["read", "write"]])
def test_pages_of_any_origin_are_not_let_in_where_a_key_may_write(file, scopes):
    create_key(file, ["read"])
    create_key(file, scopes)
    settings = Settings(keys_file=file, http=HttpSettings(cors_origins=("https://app.example", "*")))

    with pytest.raises(SetupError, match="NOTELLM_HTTP__CORS_ORIGINS") as refused:
        open_keyring(settings)
    assert "\n" not in str(refused.value)


def test_pages_of_any_origin_are_let_in_where_keys_only_read(file):
    create_key(file, ["read"])
    create_key(file, ["tags"])
    assert open_keyring(Settings(keys_file=file, http=HttpSettings(cors_origins=("*",))))


def test_without_keys_pages_of_listed_origins_alone_are_let_in():
    with pytest.raises(SetupError, match="no keys"):
        open_keyring(Settings(http=HttpSettings(cors_origins=("*",))))
    assert open_keyring(Settings(http=HttpSettings(cors_origins=("https://app.example",)))) is None

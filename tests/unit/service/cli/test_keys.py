"""`notellm keys` as a person types it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.cli.main import cli
from service.keys import Keyring, load_keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def keys(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(cli, ["keys", *map(str, arguments)], env=environment)


def test_create_prints_the_key_alone_and_how_to_use_it_beside(file):
    made = keys("create", "--scope", "read", "--scope", "write", "--name", "ingest", "--file", file)

    assert made.exit_code == 0
    key = made.stdout.strip()
    assert made.stdout == f"{key}\n"
    found = Keyring(file).find(key.encode())
    assert found
    assert (found.scopes, found.name) == (("read", "write"), "ingest")
    assert f"NOTELLM_KEYS_FILE={file}" in made.stderr
    assert key not in made.stderr


def test_list_shows_all_but_the_secrets_and_revoke_takes_one_away(file):
    secrets = [keys("create", "--scope", scope, "--file", file).stdout.strip() for scope in ("read", "admin")]
    first, second = load_keys(file)

    listed = keys("list", "--file", file).stdout
    assert [line.split()[:2] for line in listed.splitlines()] == [[first.id, "read"], [second.id, "admin"]]
    assert not any(secret in listed for secret in (*secrets, first.sha256))

    assert keys("revoke", first.id, "--file", file).exit_code == 0
    assert load_keys(file) == (second,)


def test_the_file_is_that_of_the_service_unless_another_is_named(file):
    made = keys("create", "--scope", "read", NOTELLM_KEYS_FILE=str(file))

    assert made.exit_code == 0
    assert len(json.loads(file.read_text())["keys"]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create"], "--scope"),
        (["create", "--scope", "root"], "root"),
        (["create", "--scope", "read", "--name", "x" * 65], "64 characters"),
        (["create", "--scope", "read", "--name", "a\nb"], "control character"),
        (["create", "--scope", "read", "--file", "/nowhere/keys.json"], "/nowhere"),
        (["list"], "notellm keys create"),
        (["revoke", "5f0c2a9e"], "notellm keys create"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_file(arguments, said, file):
    answer = keys(*arguments, NOTELLM_KEYS_FILE=str(file))

    assert answer.exit_code != 0
    assert said in answer.stderr.splitlines()[-1]
    assert answer.stdout == ""
    assert "Traceback" not in answer.output
    assert not file.exists()


def test_an_id_that_is_not_there_is_said(file):
    keys("create", "--scope", "read", "--file", file)

    answer = keys("revoke", "5f0c2a9e", "--file", file)

    assert "`notellm keys list` shows them" in answer.stderr
    assert len(load_keys(file)) == 1

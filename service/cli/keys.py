"""The commands about API keys."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli.common import echo

if TYPE_CHECKING:
    from service.keys import Scope

SCOPES = ("read", "write", "tags", "admin")

_FILE = click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), envvar="NOTELLM_KEYS_FILE", show_envvar=True,
    default=Path("notellm-keys.json"), show_default=True, help="The keys file.",
)  # fmt: skip


@click.group()
def keys() -> None:
    """Make, list and revoke the keys of the service.

    A service with a keys file asks every caller for a key (Authorization: Bearer ...). The file holds
    hashes only; a running service follows its changes within a second. To replace a key, create a second one,
    switch its users over, revoke the first.

    \b
    Example:
      notellm keys create --scope read --scope write --name ingest
    """


@keys.command()
@click.option(
    "--scope", "scopes", type=click.Choice(SCOPES), multiple=True,
    help="What the key may do; repeat it for more. admin implies the others.",
)  # fmt: skip
@click.option("--name", default="", help="For people, to tell keys apart; at most 64 characters.")
@_FILE
def create(scopes: tuple["Scope", ...], name: str, file: Path) -> None:
    """Make a key and print it: this once, for the file keeps only its hash.

    \b
    Example:
      KEY=$(notellm keys create --scope read --scope write --name ingest --file keys.json)
    """
    if not scopes:
        raise click.UsageError(f"--scope is missing: what may the key do? {', '.join(SCOPES)}")
    with _mistakes():
        from service.keys import create_key

        key, secret = create_key(file, scopes, name)
    echo(secret)
    echo(
        f"\nKey {key.id} ({', '.join(key.scopes)}) is in {file.absolute()}, as a hash: keep the line above.\n"
        f"  serve with it: NOTELLM_KEYS_FILE={file.absolute()} notellm serve\n"
        "  ask with it:   curl -H 'Authorization: Bearer <the key>' http://127.0.0.1:8000/status\n"
        "  commands take it from NOTELLM_KEY.",
        err=True,
    )


@keys.command("list")
@_FILE
def list_keys(file: Path) -> None:
    """Print the live keys, oldest first: id, scopes, when they were made, name.

    \b
    Example:
      notellm keys list --file keys.json
    """
    with _mistakes():
        from service.keys import load_keys

        for key in load_keys(file):
            echo(f"{key.id}  {','.join(key.scopes):20}  {key.created_at}  {key.name}".rstrip())


@keys.command()
@click.argument("key_id", metavar="ID")
@_FILE
def revoke(key_id: str, file: Path) -> None:
    """Remove the key ID from the file; a running service refuses it within a second.

    \b
    Example:
      notellm keys revoke 5f0c2a9e --file keys.json
    """
    with _mistakes():
        from service.keys import revoke_key

        revoked = revoke_key(file, key_id)
    echo(f"key {revoked.id} is revoked")


def key_option(command: Callable[..., None]) -> Callable[..., None]:
    """The option of a command that is a client of a running service."""
    return click.option(
        "--key", envvar="NOTELLM_KEY", show_envvar=True, default=None,
        help="A key of the service, if it asks for one. Everybody on the machine can read an option.",
    )(command)  # fmt: skip


@contextmanager
def _mistakes() -> Iterator[None]:
    from service.keys import KeysError

    try:
        yield
    except (KeysError, ValueError) as error:
        raise click.ClickException(str(error)) from error

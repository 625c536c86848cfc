"""Shared by the commands of a rollout: the service that they ask, and what a model needs to answer."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from service.cli.common import load_settings, store_mistakes

if TYPE_CHECKING:
    from service.store.rollout import Gap
    from service.wiring.rollout import Rollout

T = TypeVar("T")


def run(command: Callable[["Rollout"], Awaitable[T]]) -> T:
    """What a command says of the service that is set; mistakes become ClickException."""
    import asyncio

    from service.wiring.rollout import rollout

    async def with_service() -> T:
        async with rollout(load_settings()) as service:
            return await command(service)

    with store_mistakes():
        return asyncio.run(with_service())


def check_known(service: "Rollout", fingerprint: str) -> None:
    """Raises ClickException unless the model is registered."""
    if fingerprint not in service.registered.dims:
        raise click.ClickException(
            f"no model {fingerprint} is registered; `notellm model list` shows the registered ones"
        )


async def check_whole(service: "Rollout", fingerprint: str) -> None:
    """Raises ClickException if the model's index lacks notes that the active model's holds, or cannot be asked."""
    from indexer.types import ShardUnavailable

    try:
        lacking = await gap_of(service, fingerprint)
    except ShardUnavailable as error:
        raise click.ClickException(f"{error}, so the notes that it lacks are unknown; --force does not ask") from error
    if lacking.notes:
        raise click.ClickException(
            f"{fingerprint} lacks {lacking.notes} notes that {service.registered.active} finds, "
            f"{lacking.dead_lettered} of them dead-lettered; wait for the others, or lose them from all answers with "
            "--force"
        )


async def gap_of(service: "Rollout", fingerprint: str) -> "Gap":
    """What the model's index lacks of the active model's. Raises ShardUnavailable."""
    from service.store.rollout import Gap, gap

    active = service.registered.active
    if active is None or fingerprint == active:
        return Gap(0, 0)
    return await gap(service.registry, service.searcher, fingerprint, active)

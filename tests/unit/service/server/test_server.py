"""How a gateway listens."""

import asyncio
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack

import uvloop

from service.server.admission import Admission
from service.server.server import GatewayServer, doors
from service.settings import LimitSettings


async def nothing(scope, receive, send) -> None:
    """Never asked."""


def test_connections_that_come_together_are_accepted_together():
    """Not one in each round of the loop, which takes long while there is much to do."""

    async def accepted_in_five_rounds(clients: ExitStack) -> int:
        server = GatewayServer(nothing, Admission(LimitSettings()))
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        listeners = doors(socket.create_server(("127.0.0.1", 0), backlog=64))
        await server.startup(listeners)
        for _ in range(20):
            clients.enter_context(socket.create_connection(listeners[0].getsockname()))
        for _ in range(5):
            await asyncio.sleep(0)
        accepted = len(server.server_state.connections)
        await server.shutdown(listeners)
        return accepted

    with ExitStack() as clients, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(accepted_in_five_rounds(clients)) == 20


def open_files(soft: int, hard: int, connections: int) -> tuple[int, str]:
    """The limit of a process after it was told to allow so many connections, and what it logged."""
    script = (
        "import resource; from service import logs; from service.server.server import allow_connections\n"
        f"logs.configure('INFO'); resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"allow_connections({connections}); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout), done.stderr


def test_as_many_files_may_be_open_as_connections_need():
    most = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])

    raised, said = open_files(256, most, connections=1000)
    assert raised > 1000
    assert said == ""

    bounded, said = open_files(256, 512, connections=1000)
    assert bounded == 512
    assert "too_few_open_files" in said

"""Proxies and certificates of the environment: asked for other machines alone, and refused in one line."""

import asyncio
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from service.cli.main import cli
from service.client import AsyncNoteLLMClient, NoAnswer, NoteLLMClient, Refused, SetupError
from service.client.calls import Calls

ELSEWHERE = "http://notellm.example"
SOCKS = "socks5://127.0.0.1:9"

Ask = Callable[[str], None]


def blocking(url: str) -> None:
    with NoteLLMClient(url) as client:
        client.status()


def awaited(url: str) -> None:
    async def ask() -> None:
        async with AsyncNoteLLMClient(url) as client:
            await client.status()

    asyncio.run(ask())


@pytest.fixture(params=[blocking, awaited])
def ask(request: pytest.FixtureRequest) -> Ask:
    """One call of a client."""
    return request.param


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


class Proxy(ThreadingHTTPServer):
    """A proxy that reaches nobody, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_error(502)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        serving = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        serving.start()
        yield proxy
        proxy.shutdown()
        serving.join()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "LOCALHOST", "[::1]"])
def test_this_machine_is_asked_directly(ask, proxy, monkeypatch, unused_tcp_port, host, variable):
    monkeypatch.setenv(variable, proxy.url)

    with pytest.raises(NoAnswer, match=r"^no service answers at http://"):
        ask(f"http://{host}:{unused_tcp_port}")

    assert proxy.asked == []


@pytest.mark.parametrize("client", [NoteLLMClient, AsyncNoteLLMClient])
def test_a_request_that_no_service_takes_is_refused_as_it_would_be(client):
    call = Calls().related("n1", filter="x" * 70_000)

    with pytest.raises(Refused) as error:
        client(ELSEWHERE)._request(call)

    assert (error.value.status, error.value.code, error.value.retry_after_s) == (431, "head_too_large", None)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_another_machine_is_asked_through_the_proxy(ask, proxy, monkeypatch, variable):
    monkeypatch.setenv(variable, proxy.url)

    with pytest.raises(Refused, match=r"^HTTP 502$"):
        ask(ELSEWHERE)

    assert proxy.asked == [f"{ELSEWHERE}/status"]


@pytest.mark.parametrize(
    ("variable", "value", "names"),
    [
        ("ALL_PROXY", SOCKS, "ALL_PROXY .*httpx.socks"),
        ("HTTPS_PROXY", "ftp://me:hidden@127.0.0.1:9", "HTTPS_PROXY .*scheme"),
        ("HTTP_PROXY", "http://me:hid#den@127.0.0.1:9", "HTTP_PROXY"),
        ("NO_PROXY", "[::1]", "NO_PROXY"),
        ("SSL_CERT_FILE", "/nowhere.pem", "SSL_CERT_FILE .*No such file"),
        ("SSL_CERT_FILE", __file__, "SSL_CERT_FILE .*no certificate"),
        ("SSLKEYLOGFILE", "/nowhere/keys", "SSLKEYLOGFILE .*No such file"),
    ],
)
def test_an_environment_that_cannot_be_used_is_one_line(ask, monkeypatch, variable, value, names):
    monkeypatch.setenv(variable, value)

    with pytest.raises(SetupError, match=names) as error:
        ask(ELSEWHERE)

    assert "\n" not in str(error.value)
    printed = "".join(traceback.format_exception(error.value))
    assert "hid" not in printed
    assert "site-packages" not in printed


@pytest.mark.parametrize("variable", ["ALL_PROXY", "SSL_CERT_FILE"])
def test_an_environment_that_cannot_be_used_does_not_matter_on_this_machine(
    ask, monkeypatch, unused_tcp_port, variable
):
    monkeypatch.setenv(variable, SOCKS)

    with pytest.raises(NoAnswer):
        ask(f"http://127.0.0.1:{unused_tcp_port}")


def test_https_on_this_machine_takes_the_certificates_of_the_environment(ask, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")

    with pytest.raises(SetupError, match="SSL_CERT_FILE"):
        ask("https://localhost")


@pytest.mark.parametrize("url", ["http://[::1", "http://a:b", "http://\0"])
def test_a_url_that_cannot_be_parsed_is_one_line(ask, url):
    with pytest.raises(SetupError, match=r"^the URL of the service cannot be parsed: .+$"):
        ask(url)


def test_the_load_command_shows_the_line(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", SOCKS)

    answer = CliRunner().invoke(cli, ["load", "samples", "--url", ELSEWHERE])

    assert answer.exit_code == 1
    assert [line for line in answer.output.splitlines() if line] == [answer.output.strip()]
    assert answer.output.startswith("Error: the proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: ")


def test_the_client_loads_no_other_part_of_ours():
    script = "import sys, service.client; print(*sys.modules, sep='\\n')"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    loaded = set(done.stdout.split())
    ours = {name for name in loaded if name.partition(".")[0] in {"service", "model", "indexer"}}
    assert {name.partition(".")[2].partition(".")[0] for name in ours} == {"", "client", "contract"}
    assert {name.partition(".")[0] for name in ours} == {"service"}
    assert loaded.isdisjoint({"prometheus_client", "numpy", "orjson", "msgpack", "redis", "fastapi", "starlette"})

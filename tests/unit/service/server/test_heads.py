"""What is refused without a parser must be what the parser would have read: it is the oracle here."""

from dataclasses import dataclass, field

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.server.heads import plain_get

PLAIN = b"GET /notes/n1/related?k=10 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer k1\r\nAccept: */*\r\n\r\n"


@dataclass
class Seen:
    """What the parser says of some bytes."""

    begun: int = 0
    complete: int = 0
    body: bytes = b""
    url: bytes = b""
    authorization: list[bytes] = field(default_factory=list)

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self.authorization.append(value)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


def parsed(data: bytes) -> tuple[Seen, httptools.HttpRequestParser] | None:
    """None for what is no HTTP."""
    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
    try:
        parser.feed_data(data)
    except httptools.HttpParserError:
        return None
    except httptools.HttpParserUpgrade:
        seen.begun = 99
    return seen, parser


def test_a_plain_get_is_read():
    assert plain_get(PLAIN) == ("/notes/n1/related", [b"Bearer k1"])


PIECES = [
    *(b"GET ", b"GET /", b"POST /", b"HEAD /", b"/notes/n1", b"?k=1", b"%20", b" ", b" HTTP/1.1", b" HTTP/1.0", b"\t"),
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\n\n",
        b"a",
        b":",
        b": ",
        b"\xff",
        b"\0",
        b"Host: a",
        b"GET / HTTP/1.1\r\n",
    ),
    *(
        b"Content-Length: 3",
        b"content-length:0",
        b"Content-Length : 3",
        b"Transfer-Encoding: chunked",
        b"abc",
        b"0\r\n",
    ),
    *(b"Connection: close", b"Connection:keep-alive", b"Connection: keep-alive, close", b"Expect: 100-continue"),
    *(
        b"Proxy-Connection: close",
        b"Upgrade: h2c",
        b"Authorization: Bearer k1",
        b"authorization:k2",
        b"X: Authorization: k3",
        b" folded: 1",
    ),
]


@settings(max_examples=3000, deadline=None)
@given(
    st.one_of(
        st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join),
        st.lists(st.sampled_from(PIECES), max_size=6).map(
            lambda pieces: b"GET /n HTTP/1.1\r\nHost: a\r\n" + b"\r\n".join(pieces) + b"\r\n\r\n"
        ),
    )
)
def test_what_is_taken_for_a_request_is_one_for_the_parser_and_to_its_last_byte(data):
    read, by_parser = plain_get(data), parsed(data)

    if read is None or by_parser is None:
        return  # the parser reads it, or would have refused it with another status
    seen, parser = by_parser
    assert (seen.begun, seen.complete, seen.body) == (1, 1, b"")
    assert parser.get_method() == b"GET"
    assert parser.get_http_version() == "1.1"
    assert parser.should_keep_alive()
    assert httptools.parse_url(seen.url).path == read[0].encode()
    assert [value.strip() for value in seen.authorization] == [value.strip() for value in read[1]]


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:-1],
        PLAIN[:-2],
        PLAIN + PLAIN,
        PLAIN.replace(b"Accept: */*", b"Content-Length: 3"),
        PLAIN.replace(b"Accept: */*", b"transfer-encoding: chunked"),
        PLAIN.replace(b"Accept: */*", b"Connection: close"),
        PLAIN.replace(b"Accept: */*", b"Expect: 100-continue"),
        PLAIN.replace(b"GET", b"DELETE"),
        PLAIN.replace(b"1.1", b"1.0"),
        PLAIN.replace(b"n1", b"%6e1"),
    ],
)
def test_everything_else_is_left_to_the_parser(data):
    assert plain_get(data) is None


@pytest.mark.parametrize("kept", [b"Connection: keep-alive", b"connection:keep-alive", b"Connection: Keep-Alive"])
def test_a_connection_that_is_kept_is_plain(kept):
    assert plain_get(PLAIN.replace(b"Accept: */*", kept))

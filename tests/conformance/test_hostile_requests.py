"""What no well-meant client sends, over real sockets: the service refuses in the one shape or hangs up, and lives."""

import gzip
import json
import random
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest
from support.bodies import HOSTILE, MARK, NOTE
from support.service import Service

GOOD = json.dumps(NOTE).encode()
PATIENCE_S = 20.0
MIB = 1024 * 1024


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """Of an error, which must have the one shape."""
        assert self.headers["content-type"] == "application/json"
        assert len(self.body) <= 2048
        error = json.loads(self.body)["error"]
        assert set(error) == {"code", "message", "request_id"}
        assert error["request_id"] == self.headers["x-request-id"]
        return error["code"]


Send = Callable[..., list[Answer]]


@pytest.fixture
def send(service: Service, http: httpx.Client) -> Iterator[Send]:
    """Sends bytes as they are and returns every answer until the service hangs up; afterwards it must still serve.

    With ``ends`` it says that nothing more will come.
    """
    place = urlsplit(service.api)

    def exchange(*parts: bytes | Iterable[bytes], ends: bool = False) -> list[Answer]:
        with socket.create_connection((place.hostname, place.port), timeout=PATIENCE_S) as connection:
            try:
                for part in parts:
                    for piece in [part] if isinstance(part, bytes) else part:
                        connection.sendall(piece)
                if ends:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it hung up while we spoke
            return answers(read_all(connection))

    yield exchange
    assert http.get("/status").status_code == 200
    assert "gateway" in service.children()


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionError:
        pass
    return received


def answers(received: bytes) -> list[Answer]:
    """All complete answers, each checked for what holds of any."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("ascii").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(fields.get("content-length", 0))
        answer = Answer(int(status_line.split()[1]), fields, rest[:length])
        assert len(answer.body) == length
        received = rest[length:]
        if answer.status == 100:
            continue
        assert answer.status < 500, answer.body
        assert "x-request-id" in fields
        assert MARK.encode() not in head + answer.body
        if answer.status >= 400:
            assert answer.code
        found.append(answer)
    return found


@pytest.fixture
def request_of(headers: dict[str, str]) -> Callable[..., bytes]:
    """The bytes of a request; ``fields`` in any form."""

    def build(line: str | bytes, body: bytes | None = None, *fields: bytes, close: bool = True) -> bytes:
        raw = line if isinstance(line, bytes) else line.encode("latin-1")
        own = [b"Host: service", *(f"{name}: {value}".encode() for name, value in headers.items())]
        if body is not None:
            own.append(b"Content-Length: %d" % len(body))
        if close:
            own.append(b"Connection: close")
        return b"\r\n".join([raw + b" HTTP/1.1", *own, *fields, b"", body or b""])

    return build


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("route", ["PUT /notes/hostile", "POST /notes/tags", "POST /events"])
def test_a_hostile_body_is_refused(send, request_of, route, body):
    [answer] = send(request_of(route, body))

    assert (answer.status, answer.code) == (422, "invalid_request")


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("kind", ["", "application/json", "application/x-ndjson"])
def test_a_hostile_bulk_is_refused_or_nothing_of_it_is_taken(send, request_of, kind, body):
    for form in (body, b"[" + body + b"]", b"[" + body + b",1]", body + b"\n" + body):
        [answer] = send(request_of("POST /notes", form, b"Content-Type: " + kind.encode()))

        if answer.status == 202:
            assert json.loads(answer.body)["accepted"] == 0
        else:
            assert (answer.status, answer.code) == (422, "invalid_request")


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_event_does_not_sink_the_others(send, request_of, body):
    good = b'{"event_id":"hostile","user_id":"u","note_id":"n","type":"view","ts":1}'
    [answer] = send(request_of("POST /events", b'{"events":[' + body + b"," + good + b"]}"))

    if answer.status == 202:
        told = json.loads(answer.body)
        assert told["accepted"] + told["duplicates"] == 1
        # What is packed has commas outside of any string: to a reader of JSON it is so many elements.
        elements = 1 + body.count(b",") if body == HOSTILE["packed"] else 1
        assert [one["position"] for one in told["rejected"]] == list(range(elements))
    else:
        assert (answer.status, answer.code) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("route", "size"),
    [("PUT /notes/hostile", MIB), ("POST /notes/tags", MIB), ("POST /events", 8 * MIB), ("POST /notes", 100 * MIB)],
)
@pytest.mark.parametrize("told", [True, False], ids=["with its length", "in chunks"])
def test_a_body_that_is_too_large_is_refused_before_it_is_there(send, request_of, route, size, told):
    piece = b" " * MIB
    if told:
        head = request_of(route, None, b"Content-Length: %d" % size)
        found = send(head, piece)
    else:
        head = request_of(route, None, b"Transfer-Encoding: chunked")
        found = send(head, (b"%x\r\n%b\r\n" % (len(piece), piece) for _ in range(size // MIB + 1)))

    assert [(answer.status, answer.code) for answer in found] in ([(413, "too_large")], [])
    assert found or not told


def test_a_header_of_100_mib_ends_the_connection(send):
    found = send(b"GET /status HTTP/1.1\r\nHost: a\r\nX-Long: ", (b"x" * MIB for _ in range(100)))

    assert [(answer.status, answer.code) for answer in found] in ([(431, "head_too_large")], [])


def test_a_head_of_10000_fields_ends_the_connection(send):
    found = send(b"GET /status HTTP/1.1\r\n", (b"X-%d: x\r\n" % number * 10 for number in range(10_000)), b"\r\n")

    assert [(answer.status, answer.code) for answer in found] in ([(431, "head_too_large")], [])


@pytest.mark.parametrize("value", [b"Bearer caf\xc3\xa9", b"Bearer \xff\xfe", b"\xe9", b"Bearer " + b"k" * 30_000, b""])
def test_an_authorization_of_other_characters_is_no_error_of_ours(send, request_of, value):
    [answer] = send(request_of("GET /status", None, b"Authorization: " + value))

    assert answer.status in (200, 400, 401)


@pytest.mark.parametrize(
    "field",
    [
        b"Idempotency-Key: caf\xc3\xa9",
        b"Idempotency-Key: " + b"x" * 256,
        b"Idempotency-Key: ",
        b'If-Match: "1", "2"',
        b'If-None-Match: "1"',
    ],
)
def test_a_header_that_a_write_does_not_take_is_refused(send, request_of, field):
    [answer] = send(request_of("PUT /notes/hostile-header", GOOD, field))

    assert (answer.status, answer.code) == (422, "invalid_request")


@pytest.mark.parametrize(
    "field",
    [
        b"X-Request-ID: x-mark-x\xff",
        b"X-Request-ID: " + b"x" * 30_000,
        b"Accept: x-mark-x/*;q=nan",
        b"Accept-Encoding: gzip;q=-1, x-mark-x, *;q=9",
        b"Range: bytes=0-0,-1",
        b"If-None-Match: " + b'"x-mark-x",' * 3000,
        b"Cookie: " + b"x-mark-x=1; " * 3000,
        b"X-Forwarded-For: x-mark-x, 127.0.0.1",
        b"Content-Type: \xff/x-mark-x; charset=x-mark-x",
        b"Expect: x-mark-x",
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eC1tYXJrLXg=",
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    ],
)
def test_a_header_that_says_nothing_to_us_changes_nothing(send, request_of, field):
    [answer] = send(request_of("GET /status", None, field))

    assert answer.status == 200


@pytest.mark.parametrize(
    "line",
    [
        "GET /x-mark-x",
        "GET /notes/" + "x" * 129,
        "GET /notes/%00/related",
        "GET /notes/%ff",
        "GET /notes/%",
        "GET /notes/%zz",
        "GET /notes/\xff\xfe",
        "GET /notes/a%2Fb%2Fx-mark-x",
        "GET //notes//a",
        "GET /notes/../../x-mark-x",
        "GET /notes/x-mark-x;a=b",
        "GET /notes/" + "x" * 60_000,
        "GET http://x-mark-x/notes/a!",
        "GET /status?%ff",
        "GET /status?" + "&".join(f"{MARK}{number}={number}" for number in range(3000)),
        "GET /notes/a/related?" + "&".join(f"exclude={number}" for number in range(3000)),
        "GET /notes/a/related?k=" + "9" * 50_000,
        "GET /notes/a/related?category=" + "%F0%9F%99%82" * 129,
        "get /status",
        "BREW /status",
        "TRACE /status",
        "CONNECT x-mark-x:443",
        "OPTIONS *",
        "M" * 1000 + " /status",
    ],
)
def test_a_strange_request_line_is_refused(send, request_of, line):
    [answer] = send(request_of(line))

    assert answer.status in (400, 404, 405, 422)


@pytest.mark.parametrize("length", [66_000, 120_000, 1_000_000])
def test_a_request_line_above_the_limit_is_refused_at_every_length(send, request_of, length):
    [answer] = send(request_of("GET /status?" + "x" * length))

    assert (answer.status, answer.code) == (431, "head_too_large")


@pytest.mark.parametrize(
    "fields",
    [
        [b"Content-Length: -1"],
        [b"Content-Length: +2"],
        [b"Content-Length: 0x2"],
        [b"Content-Length: x-mark-x"],
        [b"Content-Length: 99999999999999999999999999"],
        [b"Content-Length: 2", b"Content-Length: 3"],
        [b"Content-Length: 2", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked, x-mark-x"],
        [b"X-Bad\x00: a"],
        [b"X-Bad : a"],
        [b": a"],
        [b"X-Bad: a\x00b"],
        [b"Idempotency-Key: a\x7f"],
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(send, request_of, fields):
    found = send(request_of("PUT /notes/hostile-head", None, *fields), b"{}")

    assert {(answer.status, answer.code) for answer in found} == {(400, "bad_request")}


@pytest.mark.parametrize(
    "chunks",
    [
        b"x-mark-x\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\n{}",
        b"2\r\n{}x-mark-x\r\n0\r\n\r\n",
    ],
)
def test_broken_chunks_are_refused(send, request_of, chunks):
    found = send(request_of("PUT /notes/hostile-chunks", None, b"Transfer-Encoding: chunked"), chunks)

    assert {(answer.status, answer.code) for answer in found} == {(400, "bad_request")}


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: 100", b'{"title": "half'),
        (b"Transfer-Encoding: chunked", b"f\r\n" + b'{"title": "half'),
        (b"Transfer-Encoding: chunked", b'2\r\n{"\r\n'),
    ],
    ids=["too few bytes", "half a chunk", "chunks without end"],
)
def test_half_a_body_stores_nothing(send, request_of, http, framing, body):
    found = send(request_of("PUT /notes/half", None, framing), body, ends=True)

    assert [answer.status for answer in found] in ([], [400], [422])
    assert http.get("/notes/half").status_code == 404


def test_bytes_behind_a_body_are_no_part_of_it(send, request_of, http):
    found = send(request_of("PUT /notes/behind", GOOD, close=False) + b"x-mark-x\r\n\r\n")

    assert [answer.status for answer in found] in ([202, 400], [400])
    # The connection may end before the note was read, but what is stored is the note and nothing else.
    kept = http.get("/notes/behind")
    assert kept.status_code == (200 if len(found) == 2 else kept.status_code)
    assert kept.status_code == 404 or kept.json()["content"] == NOTE["content"]


@pytest.mark.parametrize(
    ("body", "coding", "refusal"),
    [
        (gzip.compress(GOOD), b"gzip", None),
        (gzip.compress(GOOD)[:-4], b"gzip", (422, "invalid_request")),
        (b"\x1f\x8b" + bytes(1000), b"gzip", (422, "invalid_request")),
        (gzip.compress(bytes(100 * MIB)), b"gzip", (413, "too_large")),
        (gzip.compress(GOOD), b"br", (415, "unsupported_media_type")),
        (gzip.compress(GOOD), b"gzip, gzip", (415, "unsupported_media_type")),
    ],
)
def test_a_packed_body_is_what_it_unpacks_to(send, request_of, body, coding, refusal):
    [answer] = send(request_of("PUT /notes/packed", body, b"Content-Encoding: " + coding))

    assert (answer.status, answer.code) == refusal if refusal else answer.status in (200, 202)


def test_a_body_that_waits_to_be_asked_for_is_asked_for(send, request_of):
    head = request_of("PUT /notes/asked", None, b"Content-Length: %d" % len(GOOD), b"Expect: 100-continue")
    [answer] = send(head, GOOD)

    assert answer.status == 202


def test_a_hundred_requests_in_one_breath_are_answered_in_order(send, request_of):
    requests = [request_of(f"GET /notes/breath-{number}/related", None, close=False) for number in range(100)]
    found = send(b"".join(requests), request_of("GET /status"))

    assert [answer.status for answer in found] == [404] * 100 + [200]


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/9.9", b"x-mark-x", b""])
def test_another_version_of_http_is_answered_or_refused(send, version):
    found = send(b"GET /nowhere " + version + b"\r\nHost: a\r\nConnection: close\r\n\r\n", ends=True)

    assert all(answer.status in (400, 404) for answer in found)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\r\n\r\n\r\n",
        b"\x00" * 1000,
        b"SSH-2.0-x-mark-x\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b'{"title": "x-mark-x"}',
        *(random.Random(seed).randbytes(2000) for seed in range(20)),
    ],
    ids=lambda said: repr(said[:12]),
)
def test_what_is_no_http_is_refused(send, said):
    assert {(answer.status, answer.code) for answer in send(said, ends=True)} <= {(400, "bad_request")}


def test_a_tls_handshake_is_refused(service):
    place = urlsplit(service.api)
    context = ssl.create_default_context()
    with (
        socket.create_connection((place.hostname, place.port), timeout=PATIENCE_S) as connection,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(connection, server_hostname="service")


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"title": "a"} | {f"{MARK}{number}": 0 for number in range(10_000)}).encode(),
        json.dumps({"title": "a", "hashtags": [0] * 50_000}).encode(),
        json.dumps({"title": "a", "hashtags": [{MARK: [MARK]}] * 30}).encode(),
        b'{"title": "a", ' + b'"title": "b", ' * 10_000 + b'"content": "c"}',
        b'{"title": "a", "exposure": 1' + b"0" * 100_000 + b"}",
        b'{"title": "a", "exposure": 1e' + b"9" * 1000 + b"}",
        b'{"title": "' + b"\\ud83d" * 20_000 + b'"}',
    ],
    ids=["fields", "items", "nested", "one field again", "digits", "exponent", "surrogates"],
)
@pytest.mark.parametrize("route", ["PUT /notes/hostile", "POST /notes/tags", "POST /notes"])
def test_a_body_of_very_many_parts_is_refused_or_read(send, request_of, route, body):
    [answer] = send(request_of(route, body))

    assert answer.status in (200, 202, 422)


def test_the_gateway_never_failed(service):
    """Nothing in this folder, generated requests included, made an error of ours."""
    log = (service.state / "logs" / "gateway.log").read_text()

    assert '"request"' in log
    assert "request_failed" not in log
    assert "Traceback" not in log
    assert MARK not in log

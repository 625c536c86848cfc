"""The errors of a client::

ClientError
 ├── SetupError    the URL, or a proxy or certificate of the environment, cannot be used
 ├── NoAnswer      nobody answered, or something that is not NoteLLM
 └── Refused       status, code, message, request_id, retry_after_s
"""


class ClientError(Exception):
    """A call that brought no answer; the message is one line."""


class SetupError(ClientError):
    """No client can be made: the URL, or a proxy or certificate of the environment, cannot be used."""


class NoAnswer(ClientError):
    """Nobody answered, or something that is not NoteLLM; the cause is the error of httpx or pydantic."""


class Refused(ClientError):
    """The service said no, or would: a request line above 64 KiB is not even sent.

    ``code`` is stable, and empty when a proxy on the way refused. ``retry_after_s`` is None when the same call would be
    refused again.
    """

    def __init__(self, status: int, code: str, message: str, request_id: str, retry_after_s: float | None) -> None:
        self.status, self.code, self.message = status, code, message
        self.request_id, self.retry_after_s = request_id, retry_after_s
        super().__init__(f"{status} {code}: {message} (request {request_id})" if code else f"HTTP {status}")

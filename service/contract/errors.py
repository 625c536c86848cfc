"""The one shape of every error."""

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What went wrong; `code` is stable, `message` is for people."""

    code: str
    message: str
    request_id: str


class ErrorOut(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail

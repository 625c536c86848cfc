"""A client of NoteLLM's HTTP API. See `NoteLLMClient` and `AsyncNoteLLMClient`."""

from .client import *  # noqa: F403  the names that `client` lists, no others
from .client import __all__ as __all__

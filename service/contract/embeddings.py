"""Embeddings of texts, in the shape of OpenAI's API, so that its clients work here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .fields import Text

MAX_TEXTS = 64

Encoding = Literal["float", "base64"]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class EmbeddingsIn(BaseModel):
    """Texts to embed. Each is read as a note with that content and nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    input: Annotated[Texts, BeforeValidator(_listed, json_schema_input_type=Text | Texts)]
    model: Any = Field(default=None, description="Not looked at: the service has one model, which the answer names.")
    encoding_format: Encoding = Field(
        default="float", description="`base64`: the bytes of float32 numbers, little-endian."
    )


class EmbeddingOut(BaseModel):
    """The embedding of one text: a vector of length 1, as numbers or in base64."""

    object: Literal["embedding"]
    index: int = Field(description="Which of the texts, from 0.")
    embedding: list[float] | str


class UsageOut(BaseModel):
    """What was read, in tokens of the model: the texts, cut where it cuts notes, and its own words around them."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsOut(BaseModel):
    """Embeddings in the order of the texts."""

    object: Literal["list"]
    data: list[EmbeddingOut]
    model: str
    usage: UsageOut

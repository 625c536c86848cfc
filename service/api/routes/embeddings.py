"""The route of embeddings."""

import asyncio

from fastapi import APIRouter, Request, Response

from service.api import openapi
from service.api.auth import GuardedRoute, needs
from service.api.bodies import parse
from service.api.queries import NoParameters
from service.api.records import text_note
from service.api.responses import embeddings_out
from service.api.routes.requests import JSON, limits_of, parameters_of, read_body, recommender_of
from service.contract.embeddings import EmbeddingsIn, EmbeddingsOut
from service.errors import WorkerUnavailable

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.post(
    "/v1/embeddings",
    response_model=EmbeddingsOut,
    tags=["embeddings"],
    responses={
        200: openapi.answer("The vectors, in the order of the texts.", "embeddings"),
        **openapi.errors(WorkerUnavailable, *openapi.WITH_BODY),
    },
    openapi_extra=openapi.body(EmbeddingsIn, "text", "texts"),
    dependencies=[needs("read", "tags")],
)
async def create_embeddings(request: Request) -> Response:
    """Vectors of up to 64 texts, in the shape of OpenAI's API.

    They are of length 1, and lie in one space with the notes of the index: a text has the vector of a stored note with
    that content and nothing else.
    """
    parameters_of(request, NoParameters)
    recommender = recommender_of(request)
    body = await read_body(request, limits_of(request).max_embeddings_bytes)
    # Megabytes of JSON would delay every other request.
    wanted = await asyncio.to_thread(parse, EmbeddingsIn, body)
    embeddings = await recommender.embed([text_note(text) for text in wanted.input])
    return Response(embeddings_out(embeddings, recommender.fingerprint, wanted.encoding_format), media_type=JSON)

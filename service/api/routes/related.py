"""The route of related notes."""

from fastapi import APIRouter, Request, Response

from service.api import openapi
from service.api.auth import GuardedRoute, needs
from service.api.queries import RelatedParameters
from service.api.responses import related_out
from service.api.routes.requests import JSON, Id, parameters_of, recommender_of
from service.contract.related import RelatedOut
from service.errors import IndexUnavailable, NoteNotFound, NotePending, StoreUnavailable

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.get(
    "/notes/{note_id}/related",
    response_model=RelatedOut,
    tags=["related"],
    responses={
        200: openapi.answer(
            "Related notes, by descending score.", "related", "explained", "while_an_edit_waits", "without_the_store"
        ),
        **openapi.errors(NoteNotFound, NotePending, StoreUnavailable, IndexUnavailable, *openapi.WITH_ID),
    },
    openapi_extra=openapi.takes(RelatedParameters),
    dependencies=[needs("read", "related")],
)
async def related_notes(note_id: Id, request: Request) -> Response:
    """Notes related to this one, by descending score.

    Never the note itself, a deleted note, or one twice. While an edit of the note is not searchable yet, these are the
    notes related to the version before it, and `stale` is true. While a shard is down the others answer; while the
    store is down there are ids and scores alone. Either way `degraded` is true.
    """
    asked = parameters_of(request, RelatedParameters)
    recommender = recommender_of(request)
    related = await recommender.related(note_id, asked.query())
    return Response(related_out(related, recommender.fingerprint, explain=asked.explain), media_type=JSON)

"""The route of suggestions for a draft."""

from fastapi import APIRouter, Request, Response

from service.api import openapi
from service.api.auth import GuardedRoute, needs
from service.api.bodies import parse
from service.api.queries import NoParameters
from service.api.records import draft_note
from service.api.responses import tags_out
from service.api.routes.requests import READER, answering_of, json_answer, limits_of, parameters_of, read_body
from service.api.rules import digest_of_rules
from service.contract.tags import DraftIn, TagsOut
from service.errors import StoreUnavailable, WorkerUnavailable

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.post(
    "/notes/tags",
    response_model=TagsOut,
    tags=["tags"],
    responses={
        200: openapi.answer("What suits the draft.", "suggestions"),
        **openapi.errors(WorkerUnavailable, StoreUnavailable, *openapi.WITH_BODY),
    },
    openapi_extra=openapi.body(DraftIn, "draft", "known_hashtags_only") | openapi.takes(NoParameters, READER),
    dependencies=[needs("tags")],
)
async def suggest_tags(request: Request) -> Response:
    """Hashtags, category and, if wanted, related notes for a draft that is not stored.

    The category is one of the model's closed set. Hashtags come most likely first.
    """
    parameters_of(request, NoParameters)
    draft = parse(DraftIn, await read_body(request, limits_of(request).max_body_bytes))
    answering = answering_of(request)
    suggestions = await answering.recommender.tags(
        draft_note(draft), max_hashtags=draft.max_hashtags, vocabulary=draft.vocabulary, related=draft.related
    )
    category = suggestions.category[0] if suggestions.category else ""
    answer_id = answering.log(
        "tags", digest_of_rules(draft), [tag.tag for tag in suggestions.hashtags], category=category
    )
    out = tags_out(suggestions, answering.recommender, answer_id, with_related=draft.related > 0)
    return json_answer(out)

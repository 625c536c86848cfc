"""The route of readers."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.convertors import Convertor, register_url_convertor

from service.api import audit, openapi
from service.api.auth import GuardedRoute, needs
from service.api.queries import NoParameters
from service.api.routes.requests import REPLAYED, once, parameters_of, recommender_of
from service.errors import BadRequest, StoreUnavailable
from service.store.interfaces import Answer
from service.store.records import digest_of

UserId = Annotated[
    str,
    Path(
        min_length=1,
        max_length=128,
        description="The `user_id` of events, percent-encoded.",
        json_schema_extra={"pattern": "^[^\\u0000]*$"},
    ),
]


class _Rest(Convertor[str]):
    """All that is left of a path: slashes and line breaks, too, may be in the id of a reader."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("rest", _Rest())
router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.delete(
    "/users/{user_id:rest}",
    status_code=204,
    response_class=Response,
    tags=["users"],
    responses={
        204: openapi.answer("Nothing is kept of the reader.", headers=(REPLAYED,)),
        **openapi.errors(StoreUnavailable, *openapi.WITH_KEY, *openapi.WITH_ID),
    },
    openapi_extra=openapi.takes(NoParameters, "Idempotency-Key"),
    dependencies=[needs("admin")],
)
async def erase_user(user_id: UserId, request: Request) -> Response:
    """Erase a reader: their events, and what they have seen.

    The store holds nothing of them from the answer on, and exported files from the next `notellm events export` on. The
    ids of their events still count as duplicates. Repeat it after 503: it goes on where it was.
    """
    parameters_of(request, NoParameters)
    if "\0" in user_id:
        raise BadRequest("path.user_id: text must not hold NUL characters")
    audit.name(request, erased=[digest_of(user_id)])

    async def erase() -> Answer:
        await recommender_of(request).erase(user_id)
        return Answer(204, b"")

    return await once(request, b"", erase)

"""The route of events."""

import asyncio

import orjson
from fastapi import APIRouter, Request, Response

from service.api import openapi
from service.api.auth import GuardedRoute, needs
from service.api.bodies import parse_events
from service.api.queries import NoParameters
from service.api.routes.requests import REPLAYED, limits_of, once, parameters_of, read_body, recommender_of
from service.contract.events import EventsIn, EventsOut
from service.errors import StoreUnavailable
from service.store.interfaces import Answer

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.post(
    "/events",
    status_code=202,
    response_model=EventsOut,
    tags=["events"],
    responses={
        202: openapi.answer("The good events are kept, the others named.", "delivered", headers=(REPLAYED,)),
        **openapi.errors(StoreUnavailable, *openapi.WITH_KEY, *openapi.WITH_BODY),
    },
    openapi_extra=openapi.body(EventsIn, "events") | openapi.takes(NoParameters, "Idempotency-Key"),
    dependencies=[needs("write")],
)
async def record_events(request: Request) -> Response:
    """Keep what readers did, up to 1,000 events; one that was sent before is counted as a duplicate."""
    parameters_of(request, NoParameters)
    body = await read_body(request, limits_of(request).max_events_bytes)
    events, rejected = await asyncio.to_thread(parse_events, body)

    async def record() -> Answer:
        accepted = await recommender_of(request).record(events)
        duplicates = len(events) - accepted
        return Answer(202, orjson.dumps({"accepted": accepted, "duplicates": duplicates, "rejected": rejected}))

    return await once(request, body, record)

"""The route of the service's state."""

from fastapi import APIRouter, Request, Response

from service.api import openapi
from service.api.auth import GuardedRoute, needs
from service.api.queries import NoParameters
from service.api.responses import status_out
from service.api.routes.requests import json_answer, parameters_of, recommender_of
from service.contract.status import StatusOut
from service.errors import StoreUnavailable

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.get(
    "/status",
    response_model=StatusOut,
    tags=["status"],
    responses={
        200: openapi.answer("The state of the service.", "figures"),
        **openapi.errors(StoreUnavailable),
    },
    dependencies=[needs("read")],
)
async def get_status(request: Request) -> Response:
    """Notes by status, the queue, the index, the model, how fresh the index is, and what is wrong with the store."""
    parameters_of(request, NoParameters)
    recommender = recommender_of(request)
    status = await recommender.status()
    state = request.app.state
    return json_answer(status_out(status, recommender.fingerprint, state.reach(), state.watch(), state.warnings()))

"""The route of the turns of learning."""

from fastapi import APIRouter, Request, Response

from service.api import openapi
from service.api.auth import GuardedRoute, needs
from service.api.queries import NoParameters
from service.api.routes.experiments import overview_of
from service.api.routes.requests import JSON, parameters_of
from service.contract.learning import LearningOut
from service.errors import StoreUnavailable

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.get(
    "/learning",
    response_model=LearningOut,
    tags=["experiments"],
    responses={200: openapi.answer("The last turns.", "learning"), **openapi.errors(StoreUnavailable)},
    dependencies=[needs("read")],
)
async def get_learning(request: Request) -> Response:
    """The last turns of `notellm learn`: their steps, the gate's table, and what became of the new model."""
    parameters_of(request, NoParameters)
    return Response(LearningOut(turns=overview_of(request).turns()).model_dump_json(), media_type=JSON)

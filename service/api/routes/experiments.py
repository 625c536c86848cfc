"""The routes of experiments, and what they say."""

from typing import Annotated, cast

from fastapi import APIRouter, Path, Request, Response

from service.api import openapi
from service.api.auth import GuardedRoute, needs
from service.api.queries import NoParameters
from service.api.routes.requests import JSON, parameters_of
from service.contract.experiments import ExperimentsOut, ReportedExperimentOut
from service.errors import ExperimentNotFound, StoreUnavailable
from service.experiments.overview import Overview

# As `service.store.experiments.records` has it.
Name = Annotated[
    str, Path(pattern="^[a-z0-9][a-z0-9_-]{0,39}$", description="1 to 40 of a-z 0-9 _ -, a letter or digit first")
]

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


@router.get(
    "/experiments",
    response_model=ExperimentsOut,
    tags=["experiments"],
    responses={200: openapi.answer("All experiments.", "experiments"), **openapi.errors(StoreUnavailable)},
    dependencies=[needs("read")],
)
async def list_experiments(request: Request) -> Response:
    """The experiments, those that are over, too, the last one first."""
    parameters_of(request, NoParameters)
    return Response(ExperimentsOut(items=overview_of(request).experiments()).model_dump_json(), media_type=JSON)


@router.get(
    "/experiments/{name}",
    response_model=ReportedExperimentOut,
    tags=["experiments"],
    responses={
        200: openapi.answer("The experiment.", "experiment"),
        **openapi.errors(ExperimentNotFound, StoreUnavailable, *openapi.WITH_ID),
    },
    dependencies=[needs("read")],
)
async def get_experiment(name: Name, request: Request) -> Response:
    """One experiment, and what it says: the report that `notellm experiment report` or `notellm learn` made last.

    It is made of exported events, with which a gateway has nothing to do; `made` and `until` say of when it is.
    """
    parameters_of(request, NoParameters)
    found = overview_of(request).experiment(name)
    if found is None:
        raise ExperimentNotFound("there is no experiment of this name; GET /experiments has all")
    return Response(found.model_dump_json(), media_type=JSON)


def overview_of(request: Request) -> Overview:
    """What this gateway knows of experiments and of turns."""
    return cast(Overview, request.app.state.overview)

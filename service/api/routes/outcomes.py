"""The route of what became of answers."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from model.evaluation.online.ratio import Rate
from service.api import openapi
from service.api.auth import GuardedRoute, needs
from service.api.routes.requests import json_answer, parameters_of, recommender_of
from service.contract.outcomes import OutcomesOut
from service.errors import StoreUnavailable

_DIGITS = 6

router = APIRouter(route_class=GuardedRoute, generate_unique_id_function=lambda route: route.name)


class OutcomeParameters(BaseModel):
    """Of `GET /outcomes`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    days: Annotated[int, Field(ge=1, le=14)] = Field(default=7, description="Of so many days (UTC), today with them.")


@router.get(
    "/outcomes",
    response_model=OutcomesOut,
    tags=["status"],
    responses={200: openapi.answer("Rates of clicks.", "outcomes"), **openapi.errors(StoreUnavailable)},
    openapi_extra=openapi.takes(OutcomeParameters),
    dependencies=[needs("read")],
)
async def get_outcomes(request: Request) -> Response:
    """How often what was shown was clicked, by the events that name an answer; `notellm report` says more.

    Clicks are clicks, likes and saves. Intervals know that the events of one reader belong together.
    """
    found = await recommender_of(request).outcomes(parameters_of(request, OutcomeParameters).days)
    sources = [{**source._asdict(), **_out(rate)} for source, rate in found.sources.items()]
    positions = [{"position": position, **_out(rate)} for position, rate in found.positions.items()]
    return json_answer({"sources": sources, "positions": positions})


def _out(rate: Rate) -> dict[str, Any]:
    share = rate.share
    bounds = {name: bound and round(bound, _DIGITS) for name, bound in (("low", share.low), ("high", share.high))}
    return {"shown": rate.shown, "clicked": rate.clicks, "rate": round(share.mean, _DIGITS), **bounds}

"""The routes of the contract, a module each resource. A route only translates between HTTP and the recommender."""

from service.api.routes import (
    embeddings,
    events,
    experiments,
    hashtags,
    learning,
    notes,
    outcomes,
    related,
    search,
    status,
    tags,
    users,
)

_RESOURCES = (
    related,
    search,
    tags,
    embeddings,
    notes,
    events,
    users,
    hashtags,
    status,
    outcomes,
    experiments,
    learning,
)

ROUTES = [route for module in _RESOURCES for route in module.router.routes]

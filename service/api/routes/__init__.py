"""The routes of the contract, a module each resource. A route only translates between HTTP and the recommender."""

from service.api.routes import embeddings, events, notes, related, search, status, tags

ROUTES = [
    route for module in (related, search, tags, embeddings, notes, events, status) for route in module.router.routes
]

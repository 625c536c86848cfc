"""The routes of the contract, a module each resource. A route only translates between HTTP and the recommender."""

from service.api.routes import embeddings, events, hashtags, notes, outcomes, related, search, status, tags, users

ROUTES = [
    route
    for module in (related, search, tags, embeddings, notes, events, users, hashtags, status, outcomes)
    for route in module.router.routes
]

"""The shapes of the HTTP contract, shared by server and client: pydantic, and nothing else of ours."""

"""The HTTP edge of a node: dialects, the request pipeline, the server and the control API.

- `protocols/`: each dialect as pure functions between HTTP messages and `InferRequest`/`InferResponse`
- `pipeline`: one request's way over the replicas of its model
- `server`: aiohttp, limits, Host and Origin checks, dispatch by path
- `mesh_api`: `/mesh/v1`
- `metrics`: what the gateway counts, and Prometheus' text format
"""

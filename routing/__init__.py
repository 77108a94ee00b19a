"""Where a request goes, what happens when that fails, and where models should run.

- `table`: which node serves which model version, and who is a candidate.
- `load`: what this gateway believes about each replica's load, and about the path to its node.
- `choice`: filter, score, pick: one pure function, and the route it returns.
- `header`: that route as the `Mesh-Route` response header.
- `breaker`: per-replica circuit breakers on the data path.
- `budget`: how many retries are allowed at all.
- `attempts`: the retry plan of one request.
- `router`: the doors through which a node tells all of these what happened.
- `placement`: which nodes should serve a deployment.

All of it is pure: time (monotonic seconds) and randomness are parameters.
"""

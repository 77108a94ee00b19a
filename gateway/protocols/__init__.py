"""Dialects: pure functions between HTTP messages and the mesh's own requests and responses.

No module here knows a web framework, a clock or a socket, so that the server below can be replaced
and the simulator can call a dialect directly.
"""

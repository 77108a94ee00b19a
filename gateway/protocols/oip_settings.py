"""Triton's trace and logging extensions: what is so may be read, but not changed by clients of a model server.

Logs and traces belong to the owner of a node, who sets them when it starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.gateway.protocols.http import json_response
from meshnode.gateway.protocols.status import HttpRefusal

if TYPE_CHECKING:
    from meshnode.gateway.protocols.http import HttpResponse


def trace_setting() -> HttpResponse:
    """Answer `GET …/trace/setting`: no request is traced into a file of this node."""
    return json_response(
        {
            "trace_level": ["OFF"],
            "trace_rate": "1000",
            "trace_count": "-1",
            "log_frequency": "0",
            "trace_file": "",
            "trace_mode": "triton",
        }
    )


def logging() -> HttpResponse:
    """Answer `GET /v2/logging`."""
    return json_response(
        {
            "log_file": "",
            "log_info": True,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": 0,
            "log_format": "default",
        }
    )


def no_regions() -> HttpResponse:
    """Answer `GET /v2/cudasharedmemory/…/status`: no region is registered."""
    return json_response([])


def forgotten() -> HttpResponse:
    """Answer `POST /v2/cudasharedmemory/…/unregister`: what is not registered is forgotten already."""
    return json_response({})


def not_set_here(what: str, instead: str) -> HttpRefusal:
    """Return the refusal (501) of a change that clients may not make.

    Args:
        what: What was to be changed.
        instead: Who can, and how.
    """
    return HttpRefusal(501, f"{what} cannot be changed by a client of this protocol; {instead}")

"""A shop that asks a model what else a customer may like. It knows two gateways of the mesh.

The loss of one, or of the whole region that it is in, must not be noticed by customers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

GATEWAY_TIMEOUT_S = 1.0


def make_shop(
    gateways: Sequence[str], headers: dict[str, str], inputs: Callable[[str], list[dict[str, Any]]]
) -> web.Application:
    """Return the application.

    Args:
        gateways: URLs of gateways, the nearest first.
        headers: With the mesh's API key.
        inputs: Makes the model's tensors of a customer's name.
    """
    session = web.AppKey("session", aiohttp.ClientSession)

    async def sessions(app: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=GATEWAY_TIMEOUT_S)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as app[session]:
            yield

    async def suggestions(request: web.Request) -> web.Response:
        body = {"inputs": inputs(request.match_info["customer"])}
        for gateway in gateways:
            url = f"{gateway}/v2/models/suggestions/infer"
            try:
                async with request.app[session].post(url, json=body) as answer:
                    if answer.status == 200:
                        found = (await answer.json())["outputs"]
                        return web.json_response({"suggestions": found, "by": gateway})
            except (aiohttp.ClientError, TimeoutError):
                continue
        return web.json_response({"error": "no gateway answered"}, status=503)

    app = web.Application()
    app.cleanup_ctx.append(sessions)
    app.router.add_get("/suggestions/{customer}", suggestions)
    return app

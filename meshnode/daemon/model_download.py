"""Fetching a model from a URL that a caller named, wherever that caller may send this node."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, Final

from meshnode.errors import InvalidRequest, ModelError, TransferFailed
from meshnode.limits import MAX_MODEL_FILE_BYTES, MAX_MODEL_REDIRECTS, MODEL_DOWNLOAD_TIMEOUT_S
from meshnode.models.repository.source_urls import is_web, last_part, shown
from meshnode.models.repository.unpacking import is_archive, unpack
from meshnode.models.repository.upload_paths import check_names
from meshnode.net.outbound import OutboundRule, opened, pieces

if TYPE_CHECKING:
    from pathlib import Path

ANYWHERE: Final = OutboundRule(
    (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
)  # fmt: skip
"""The rule for the owner of a node, whose machine it is."""


async def downloaded(url: str, rule: OutboundRule, folder: Path) -> Path:
    """Fetch a model file or an archive, which is unpacked; return where it lies.

    Args:
        url: Beginning with `http://` or `https://`.
        rule: Where it may lead, after redirects too.
        folder: An empty folder to put it into.

    Raises:
        InvalidRequest: if the URL is no such one, or names no file.
        Forbidden: if it leads to where it may not.
        TooLarge: if it is longer than a model file may be.
        TransferFailed: if it cannot be fetched in time.
        ModelError: if the archive cannot be read.
    """
    if not is_web(url):
        raise InvalidRequest(
            f"models are registered from http:// and https:// URLs, not from {shown(url)[:100]!r}"
        )
    name = last_part(url)
    check_names([name])
    path = folder / name
    async with opened(
        rule, "GET", url, timeout_s=MODEL_DOWNLOAD_TIMEOUT_S, max_redirects=MAX_MODEL_REDIRECTS
    ) as response:
        if response.status != 200:
            raise TransferFailed(f"{shown(url)} answered {response.status} instead of a model")
        with await asyncio.to_thread(path.open, "wb") as file:
            async for piece in pieces(response, MAX_MODEL_FILE_BYTES):
                await asyncio.to_thread(file.write, piece)
    return await asyncio.to_thread(_unpacked, path) if is_archive(name) else path


def _unpacked(path: Path) -> Path:
    target = path.parent / "unpacked"
    unpack(path, target, MAX_MODEL_FILE_BYTES)
    path.unlink()
    children = list(target.iterdir())
    if not children:
        raise ModelError(f"the archive {path.name} is empty")
    return children[0] if len(children) == 1 else target

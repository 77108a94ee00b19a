"""URLs that models come from: which there are, and how they are shown."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from meshnode.errors import ConfigError

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PACKAGES: Final = {"http": "", "https": "", "s3": "s3", "gs": "gcs", "gcs": "gcs"}
"""Scheme -> the extra of this package that has its library; empty where it comes with the package."""


def is_url(text: str) -> bool:
    """Whether a text that names models is a URL, and no path."""
    return _URL.match(text) is not None


def check_url(url: str) -> str:
    """Return a URL if models can come from there.

    Raises:
        ConfigError: saying which URLs can be read.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in _PACKAGES:
        known = ", ".join(f"{name}://" for name in _PACKAGES)
        raise ConfigError(
            f"{shown(url)!r} cannot be read: models come from a folder, or from {known}"
        )
    if not rest.strip("/") or any(ord(char) < 33 for char in url):
        raise ConfigError(
            f"{shown(url)!r} names no host or bucket; write it as {scheme}://HOST/PATH"
        )
    return url


def extra_of(url: str) -> str:
    """Return the extra of this package that is needed to read a URL; empty if none is."""
    return _PACKAGES.get(url.partition("://")[0].lower(), "")


def is_web(url: str) -> bool:
    """Whether a URL is read by HTTP."""
    return url.lower().startswith(("http://", "https://"))


def shown(url: str) -> str:
    """Return a URL as people and logs see it: a password, and what signs it, are left out."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def last_part(url: str) -> str:
    """Return the last part of a URL's path, or its bucket or host where it has no path."""
    parts = urlsplit(url)
    path = unquote(parts.path) if is_web(url) else parts.path
    return path.rstrip("/").rpartition("/")[2] or parts.hostname or "models"

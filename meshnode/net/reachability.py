"""Why an address could not be reached, in words that tell what to look at.

The same failure to connect has different causes, and what the operating system says tells them
apart: silence is a firewall's, a refusal comes from the device itself.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Final

SILENT: Final = (
    "no answer in time (something took the connection and then said nothing: another program, or a "
    "proxy whose far end is gone)"
)
"""Why a dial failed that ended between a connection and its hello."""

_NO_ROUTE: Final = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EADDRNOTAVAIL)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM)


def dial_reason(error: Exception) -> str:
    """Return why a dial failed, as part of a sentence."""
    if isinstance(error, socket.gaierror):
        return _name_reason(error)
    if isinstance(error, TimeoutError):
        return (
            "no answer (a firewall drops what is sent there, the address is wrong, or the device is "
            "off or asleep)"
        )
    if isinstance(error, ConnectionRefusedError):
        return "connection refused (the device answers, but nothing listens there: is meshnode running?)"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        if error.errno in _NO_ROUTE:
            return "no route (this device's networks do not lead there)"
        if error.errno in _FORBIDDEN:
            return "forbidden (a firewall of this device does not let it out)"
    return said(error)


def _name_reason(error: socket.gaierror) -> str:
    if error.errno == socket.EAI_AGAIN:
        return "the name cannot be looked up now (is there a network, and a DNS server?)"
    return "the name is not known (is it spelled right?)"


def said(error: Exception) -> str:
    """Return what an error says of itself; never nothing."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno) if error.errno else str(error) or "no answer in time"
    return str(error) or type(error).__name__

"""What the daemon and its supervisor tell each other.

The daemon tells systemd that it is ready or stopping, by its notification protocol. The socket's path
is in `NOTIFY_SOCKET`; one that begins with `@` is in Linux' abstract namespace (sd_notify(3)). Nothing
else is needed of a library for that. An exit code tells whether starting it again may help.
"""

from __future__ import annotations

import logging
import os
import socket

_LAUNCHD_JOB = "XPC_SERVICE_NAME"
"""launchd names its job in it; in a terminal on macOS it is `0` or missing."""

log = logging.getLogger(__name__)

VARIABLE = "NOTIFY_SOCKET"


def notify(state: str) -> None:
    """Tell the supervisor, if there is one; a daemon runs on whether or not it hears.

    Args:
        state: What sd_notify takes, such as `READY=1`; several are separated by line ends.
    """
    path = os.environ.get(VARIABLE, "")
    if not path.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.settimeout(1.0)  # the service manager reads at once, or not at all
            line.connect(address)
            line.sendall(state.encode())
    except OSError as error:
        log.warning("the service manager could not be told %s: %s", state, error)


def final_exit_code(code: int) -> int:
    """Return what to end with where starting again cannot help.

    launchd starts whatever did not end with 0 again, for ever. systemd and Windows give up by themselves.
    """
    return 0 if os.environ.get(_LAUNCHD_JOB, "0") not in ("", "0") else code

"""A health check from inside a container: `python -m meshnode.client.probe healthz|readyz [DATA_DIR]`.

It asks the node over its control channel, so it works whatever the gateway wants of callers: without an API key, with
TLS, and without a gateway at all. It starts in some hundredths of a second, since it imports the standard library only.

| exit code | when |
|---|---|
| 0 | the node answered 200 |
| 1 | it answered something else, which is printed, or nothing |
| 2 | the arguments are wrong |
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from pathlib import Path
from typing import Final

from meshnode.limits import PROBE_TIMEOUT_S

PATHS: Final = ("healthz", "readyz")
"""What may be asked: whether the process answers, and whether it should be sent requests."""


def main(arguments: list[str]) -> int:
    """Ask, and return the exit code."""
    folder = arguments[1] if len(arguments) > 1 else os.environ.get("MESHNODE_DATA_DIR", "")
    if not 1 <= len(arguments) <= 2 or arguments[0] not in PATHS or not folder:
        print(  # noqa: T201 - whoever runs the check shows it
            f"usage: python -m meshnode.client.probe {'|'.join(PATHS)} DATA_DIR (or MESHNODE_DATA_DIR)",
            file=sys.stderr,
        )
        return 2
    try:
        status, said = asked(Path(folder), f"/{arguments[0]}")
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        print(f"no answer: {error}", file=sys.stderr)  # noqa: T201
        return 1
    if status != 200:
        print(said, file=sys.stderr)  # noqa: T201
    return int(status != 200)


def asked(folder: Path, path: str) -> tuple[int, str]:
    """Return the status and the text that a node's control channel answers.

    Args:
        folder: The node's data folder.
        path: What is asked for, from its slash.

    Raises:
        OSError: if nobody answers there in time.
        ValueError: if the folder's file `control` is none.
        KeyError: likewise.
    """
    place = {"unix": str(folder / "control.sock")}
    if (folder / "control").exists():
        place = json.loads((folder / "control").read_text(encoding="utf-8"))
    headers = {}
    target: str | tuple[str, int]
    if "unix" in place:
        family, target = socket.AF_UNIX, place["unix"]
    else:
        host, _, port = place["tcp"].rpartition(":")
        family, target = socket.AF_INET, (host, int(port))
        headers["Authorization"] = f"Bearer {place['token']}"
    with socket.socket(family) as stream:
        stream.settimeout(PROBE_TIMEOUT_S)
        stream.connect(target)
        connection = http.client.HTTPConnection("localhost")
        connection.sock = stream
        connection.request("GET", path, headers=headers)
        with connection.getresponse() as response:
            return response.status, response.read().decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

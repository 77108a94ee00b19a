"""The local control channel: HTTP that only the daemon's owner can speak.

Everything that changes a mesh goes through it, so access is decided by file permissions:

| where | used when | kept from others by |
|---|---|---|
| `DATA_DIR/control.sock` | the path fits into a socket address | the socket's mode 0600 |
| a short path, `DATA_DIR/control` names it | it does not | a folder of mode 0700, checked to be ours |
| TCP on loopback, `DATA_DIR/control` has port and token | Windows | that file's mode 0600 |

A Unix socket's path has 104 bytes on macOS and the BSDs (108 on Linux), its final NUL included:
`sockaddr_un.sun_path`. The smaller one counts everywhere, so that a folder that works on one
system works on another.

The daemon: `plan_control`, bind, `write_control`; at its end `remove_control`. A TCP plan has port
0; the daemon writes the port that it got. The client: `control_address`, which reads
`DATA_DIR/control` first and else takes the socket in the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.errors import ConfigError
from meshnode.limits import MAX_CONTROL_FILE_BYTES, MAX_SOCKET_PATH_BYTES
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_NAME: Final = "control.sock"
FILE_NAME: Final = "control"
_TOKEN_BYTES: Final = 32  # 256 bits: guessing is hopeless at any rate


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """Where a daemon's control channel is: exactly one of `unix` and `tcp` is set.

    Attributes:
        unix: Path of a Unix socket.
        tcp: A loopback address.
        token: With `tcp`, what the client sends as `Authorization: Bearer`; else empty.
    """

    unix: str | None = None
    tcp: Address | None = None
    token: str = ""

    def __repr__(self) -> str:
        """Show the place, never the token."""
        return f"<ControlAddress {self.unix if self.tcp is None else self.tcp}>"

    def authorizes(self, header: str | None) -> bool:
        """Whether a request with this `Authorization` header may pass (constant time).

        On a Unix socket the file's permissions have decided already.
        """
        if self.tcp is None:
            return True
        expected = f"Bearer {self.token}".encode()
        return bool(self.token) and hmac.compare_digest(expected, (header or "").encode())


def plan_control(
    data_dir: str | Path, platform: str, environ: Mapping[str, str] | None = None
) -> ControlAddress:
    """Decide where the daemon's control channel will listen.

    Makes the folder of a short socket path, since it has to exist before the socket is bound.

    Args:
        data_dir: The data folder, absolute.
        platform: As `sys.platform`.
        environ: Environment variables, for `XDG_RUNTIME_DIR`; the process's own by default.

    Returns:
        A Unix socket, or on Windows TCP on loopback with port 0 and a fresh token.

    Raises:
        ConfigError: if the folder of a short path belongs to someone else.
    """
    if platform == "win32":
        return ControlAddress(
            tcp=Address("127.0.0.1", 0), token=secrets.token_urlsafe(_TOKEN_BYTES)
        )
    direct = Path(data_dir) / SOCKET_NAME
    if _fits(direct):
        return ControlAddress(unix=str(direct))
    import tempfile

    variables = os.environ if environ is None else environ
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    shared = "/tmp"  # noqa: S108 - the folder made in it is checked to be ours alone
    parents = [variables.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), shared]
    for parent in parents:
        folder = Path(parent) / f"meshnode-{digest}"
        if Path(parent).is_absolute() and Path(parent).is_dir() and _fits(folder / SOCKET_NAME):
            _make_private(folder)
            return ControlAddress(unix=str(folder / SOCKET_NAME))
    raise ConfigError(
        f"{data_dir} is too long a path for a control socket; use a shorter --data-dir"
    )


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES


def _make_private(folder: Path) -> None:
    """Make the folder with mode 0700, or check that nobody else can have put it there."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{folder} is not a folder that only you can use, so the control socket cannot be "
            "there; remove it, or use a shorter --data-dir"
        )


def write_control(data_dir: str | Path, address: ControlAddress) -> None:
    """Tell clients where the control channel is; call it once the channel is bound.

    Closes the socket to other users, and writes `DATA_DIR/control` where clients would not find
    it otherwise; where they would, removes one that an earlier daemon left.

    Raises:
        OSError: if the data folder is not writable.
    """
    file = Path(data_dir) / FILE_NAME
    if address.unix is not None:
        Path(address.unix).chmod(0o600)
        if address.unix == str(Path(data_dir) / SOCKET_NAME):
            file.unlink(missing_ok=True)
            return
        content: dict[str, str] = {"unix": address.unix}
    else:
        content = {"tcp": str(address.tcp), "token": address.token}
    # Never readable by others, not even for a moment, and never seen half written.
    partial = file.with_name(f"{FILE_NAME}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    with open(
        partial, "x", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)
    ) as stream:
        json.dump(content, stream)
    partial.replace(file)


def remove_control(data_dir: str | Path, address: ControlAddress) -> None:
    """Remove what `plan_control` and `write_control` made, at the daemon's end; never raises."""
    with contextlib.suppress(OSError):
        (Path(data_dir) / FILE_NAME).unlink(missing_ok=True)
    if address.unix is None:
        return
    socket_path = Path(address.unix)
    with contextlib.suppress(OSError):
        socket_path.unlink(missing_ok=True)
    if socket_path.parent != Path(data_dir):
        with contextlib.suppress(OSError):
            socket_path.parent.rmdir()


def was_cut_off(data_dir: Path) -> bool:
    """Whether the last daemon of a data folder, which has ended, left its control channel behind.

    It removes that after its goodbye, so that a killed one can be told from one that has left.
    """
    try:
        address = control_address(data_dir)
    except ConfigError:
        return True
    return address.unix is None or Path(address.unix).exists()


def control_address(data_dir: str | Path) -> ControlAddress:
    """Return where the daemon of a data folder listens, whether or not it runs.

    Raises:
        ConfigError: if `DATA_DIR/control` cannot be read or is damaged.
    """
    file = Path(data_dir) / FILE_NAME
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_CONTROL_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return ControlAddress(unix=str(Path(data_dir) / SOCKET_NAME))
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read ({error.strerror}); only the daemon's owner can control it"
        ) from None
    address = _parse_file(content)
    if address is None:
        raise ConfigError(f"{file} is damaged; stop the daemon, remove the file and start again")
    return address


def _parse_file(content: bytes) -> ControlAddress | None:
    try:
        document = json.loads(content)
    except ValueError:
        return None
    match document:
        case {"unix": str(path)} if path:
            return ControlAddress(unix=path)
        case {"tcp": str(place), "token": str(token)} if token.isascii() and token.isprintable():
            try:
                return ControlAddress(tcp=Address.parse(place), token=token)
            except ValueError:
                return None
        case _:
            return None

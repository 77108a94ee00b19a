import json
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshnode.client.control import (
    ControlAddress,
    control_address,
    plan_control,
    remove_control,
    write_control,
)
from meshnode.errors import ConfigError
from meshnode.limits import MAX_SOCKET_PATH_BYTES
from meshnode.types import Address


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path is short, whatever the test's name."""
    with tempfile.TemporaryDirectory(prefix="mn-") as name:
        yield Path(name)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def long_dir(parent: Path) -> Path:
    folder = parent / ("d" * 120)
    folder.mkdir(parents=True)
    return folder


def test_a_short_data_folder_holds_its_own_socket(short_dir: Path) -> None:
    planned = plan_control(short_dir, "linux")
    assert planned == ControlAddress(unix=str(short_dir / "control.sock"))
    assert control_address(short_dir) == planned


def test_the_limit_counts_encoded_bytes_and_its_last_byte_is_usable(short_dir: Path) -> None:
    room = MAX_SOCKET_PATH_BYTES - len(str(short_dir / "x" / "control.sock")) + 1
    fits = short_dir / ("a" * room)
    over = short_dir / ("a" * (room + 1))
    # As many characters as the one that fits, but each `ä` takes two bytes.
    wide = short_dir / ("ä" * room)
    environ = {"XDG_RUNTIME_DIR": str(short_dir)}
    assert plan_control(fits, "linux", environ).unix == str(fits / "control.sock")
    for folder in (over, wide):
        planned = plan_control(folder, "linux", environ).unix
        assert planned is not None
        assert not planned.startswith(str(folder))
    fits.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(fits / "control.sock"))  # the platform agrees


def test_a_long_data_folder_gets_a_private_folder_below_the_runtime_folder(
    tmp_path: Path, short_dir: Path
) -> None:
    data_dir = long_dir(tmp_path)
    planned = plan_control(data_dir, "linux", {"XDG_RUNTIME_DIR": str(short_dir)})
    assert planned.unix is not None
    folder = Path(planned.unix).parent
    assert folder.parent == short_dir
    assert mode_of(folder) == 0o700
    # The same data folder is found again, another one is kept apart.
    assert plan_control(data_dir, "linux", {"XDG_RUNTIME_DIR": str(short_dir)}) == planned
    other = plan_control(long_dir(tmp_path / "b"), "linux", {"XDG_RUNTIME_DIR": str(short_dir)})
    assert other != planned


@pytest.mark.parametrize("runtime", ["", "relative", "/does/not/exist", "/" + "r" * 200])
def test_without_a_usable_runtime_folder_the_temporary_folder_is_taken(
    tmp_path: Path, short_dir: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_dir))
    planned = plan_control(long_dir(tmp_path), "darwin", {"XDG_RUNTIME_DIR": runtime})
    assert planned.unix is not None
    assert Path(planned.unix).parent.parent == short_dir


def test_a_folder_that_others_can_open_is_refused_for_the_socket(
    tmp_path: Path, short_dir: Path
) -> None:
    """In a shared temporary folder someone else may have made it first, and would be listening."""
    data_dir, environ = long_dir(tmp_path), {"XDG_RUNTIME_DIR": str(short_dir)}
    planned = plan_control(data_dir, "linux", environ).unix
    assert planned is not None
    Path(planned).parent.chmod(0o755)
    with pytest.raises(ConfigError, match="only you can use"):
        plan_control(data_dir, "linux", environ)


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path, short_dir: Path) -> None:
    data_dir, environ = long_dir(tmp_path), {"XDG_RUNTIME_DIR": str(short_dir)}
    planned = plan_control(data_dir, "linux", environ).unix
    assert planned is not None
    folder = Path(planned).parent
    folder.rmdir()
    (tmp_path / "target").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="only you can use"):
        plan_control(data_dir, "linux", environ)


def test_where_no_path_is_short_enough_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.client.control.MAX_SOCKET_PATH_BYTES", 10)
    with pytest.raises(ConfigError, match="shorter --data-dir"):
        plan_control(tmp_path, "linux")


def test_windows_gets_loopback_with_a_fresh_token(tmp_path: Path) -> None:
    first, second = plan_control(tmp_path, "win32"), plan_control(tmp_path, "win32")
    assert first.tcp == Address("127.0.0.1", 0)
    assert len(first.token) >= 43  # 256 bits in base64
    assert first.token != second.token
    assert first.token not in repr(first)


def test_the_token_alone_authorizes_on_tcp(tmp_path: Path) -> None:
    address = plan_control(tmp_path, "win32")
    assert address.authorizes(f"Bearer {address.token}")
    for header in (None, "", "Bearer", "Bearer wrong", f"Basic {address.token}", "Bearer ä"):
        assert not address.authorizes(header)
    assert not ControlAddress(tcp=Address("127.0.0.1", 1)).authorizes("Bearer ")


def test_a_unix_socket_is_authorized_by_its_permissions() -> None:
    assert ControlAddress(unix="/run/x.sock").authorizes(None)


def test_the_written_file_names_port_and_token_to_the_owner_alone(tmp_path: Path) -> None:
    bound = ControlAddress(tcp=Address("127.0.0.1", 4711), token="secret")
    write_control(tmp_path, bound)
    assert mode_of(tmp_path / "control") == 0o600
    content = json.loads((tmp_path / "control").read_text())
    assert content == {"tcp": "127.0.0.1:4711", "token": "secret"}
    assert control_address(tmp_path) == bound
    assert [path.name for path in tmp_path.iterdir()] == ["control"]


def test_a_short_socket_is_found_through_the_file_and_leaves_nothing_behind(
    tmp_path: Path, short_dir: Path
) -> None:
    data_dir = long_dir(tmp_path)
    planned = plan_control(data_dir, "linux", {"XDG_RUNTIME_DIR": str(short_dir)})
    assert planned.unix is not None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(planned.unix)
        write_control(data_dir, planned)
        assert mode_of(Path(planned.unix)) == 0o600
        assert control_address(data_dir) == planned
    remove_control(data_dir, planned)
    assert list(short_dir.iterdir()) == []
    assert list(data_dir.iterdir()) == []


def test_a_socket_in_the_data_folder_replaces_the_file_of_an_earlier_daemon(
    short_dir: Path,
) -> None:
    write_control(short_dir, ControlAddress(tcp=Address("127.0.0.1", 1), token="old"))
    planned = plan_control(short_dir, "linux")
    assert planned.unix is not None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(planned.unix)
        write_control(short_dir, planned)
        assert mode_of(Path(planned.unix)) == 0o600
    assert control_address(short_dir) == planned
    remove_control(short_dir, planned)
    remove_control(short_dir, planned)  # twice is harmless
    assert list(short_dir.iterdir()) == []


def test_removing_a_tcp_channel_removes_its_file(tmp_path: Path) -> None:
    bound = ControlAddress(tcp=Address("127.0.0.1", 4711), token="secret")
    write_control(tmp_path, bound)
    remove_control(tmp_path, bound)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"unix": 3}',
        b'{"unix": ""}',
        b'{"tcp": "127.0.0.1:1"}',
        b'{"tcp": "nowhere", "token": "t"}',
        b'{"tcp": "127.0.0.1:1", "token": "two\\r\\nlines"}',
        b'{"unix": "' + b"x" * 5000 + b'"}',
    ],
)
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "control").write_bytes(content)
    with pytest.raises(ConfigError, match="damaged; stop the daemon"):
        control_address(tmp_path)


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "control").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        control_address(tmp_path)


def test_a_data_folder_that_is_a_file_has_no_control_channel_yet(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert control_address(tmp_path / "file").unix == str(tmp_path / "file" / "control.sock")

"""Uploads piece by piece: offsets, limits, idleness, and who may touch them."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.daemon import uploads as uploads_module
from meshnode.daemon.uploads import Uploads
from meshnode.errors import (
    ConfigError,
    InvalidRequest,
    NotFound,
    Saturated,
    TooLarge,
    TransferFailed,
)
from meshnode.gateway.protocols.caller import OWNER, Caller
from meshnode.limits import (
    MAX_MODEL_FILE_BYTES,
    MAX_MODEL_FILES,
    MAX_UPLOADS,
    MAX_UPLOADS_PER_KEY,
    UPLOAD_IDLE_S,
    UPLOAD_RESERVE_BYTES,
    UPLOAD_ROOM_BYTES,
)
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import Callable

CI = Caller(Scope.DEPLOY, "a" * 16, "ci")
OTHER = Caller(Scope.ADMIN, "b" * 16, "other")
FILES = [("m/1/model.onnx", 5), ("m/1/empty", 0), ("m/config.pbtxt", 3)]


class FakeClock:
    def __init__(self) -> None:
        self.time_s = 1000.0

    def now(self) -> float:
        return self.time_s

    def wall_s(self) -> float:
        return self.time_s + 1_700_000_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def uploads(tmp_path: Path, clock: FakeClock) -> Uploads:
    return Uploads(tmp_path / "uploads", clock)


async def begun(uploads: Uploads, files: Any = FILES, caller: Caller = CI) -> str:
    return str((await uploads.begin(files, caller))["id"])


def staged(uploads: Uploads) -> set[str]:
    folder = uploads._folder
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def received(uploads: Uploads, upload: str) -> list[int]:
    return [file["received_bytes"] for file in uploads.view(upload, CI)["files"]]


async def test_files_arrive_piece_by_piece_and_are_given_out_whole(uploads: Uploads) -> None:
    made = await uploads.begin(FILES, CI)
    assert made["piece_bytes"] == 8 * 1024 * 1024
    assert made["expires_at"] == "2023-11-14T23:30:00Z"
    upload = made["id"]
    assert await uploads.take(upload, 0, 0, b"ab", CI) == 2
    assert await uploads.take(upload, 2, 0, memoryview(b"xyz"), CI) == 3
    assert await uploads.take(upload, 0, 2, b"cde", CI) == 5
    async with uploads.complete(upload, CI) as place:
        assert place.name == "m"
        assert (place / "1" / "model.onnx").read_bytes() == b"abcde"
        assert (place / "1" / "empty").read_bytes() == b""
        assert (place / "config.pbtxt").read_bytes() == b"xyz"
    assert staged(uploads) == set()
    with pytest.raises(NotFound, match="begin anew"):
        uploads.view(upload, CI)


async def test_a_repeated_piece_is_answered_and_a_gap_says_where_to_go_on(uploads: Uploads) -> None:
    upload = await begun(uploads)
    await uploads.take(upload, 0, 0, b"abc", CI)
    for offset, data in ((0, b"abc"), (0, b"a"), (1, b"bc"), (3, b"")):
        assert await uploads.take(upload, 0, offset, data, CI) == 3
    for offset, data in ((4, b"e"), (2, b"cd")):
        with pytest.raises(InvalidRequest, match=r"there are 3 bytes.*begins at offset=3, not"):
            await uploads.take(upload, 0, offset, data, CI)
    with pytest.raises(InvalidRequest, match="announced with 5 bytes; this piece ends at 6"):
        await uploads.take(upload, 0, 3, b"def", CI)
    with pytest.raises(InvalidRequest, match="3 files, counted from 0; there is no 3"):
        await uploads.take(upload, 3, 0, b"x", CI)
    assert received(uploads, upload) == [3, 0, 0]
    await uploads.take(upload, 0, 3, b"de", CI)
    assert (uploads._folder / upload / "m/1/model.onnx").read_bytes() == b"abcde"


async def test_pieces_sent_at_once_are_taken_one_after_the_other(uploads: Uploads) -> None:
    upload = await begun(uploads)
    tries = [uploads.take(upload, 0, 0, b"abc", CI) for _ in range(10)]
    assert set(await asyncio.gather(*tries)) == {3}


async def test_what_is_incomplete_says_what_lacks_and_stays(uploads: Uploads) -> None:
    upload = await begun(uploads)
    await uploads.take(upload, 0, 0, b"abcde", CI)
    await uploads.take(upload, 2, 0, b"x", CI)
    with pytest.raises(InvalidRequest, match=r"file 2, 'm/config.pbtxt', lacks 2 of 3 bytes"):
        async with uploads.complete(upload, CI):
            pytest.fail("it is not complete")
    assert received(uploads, upload) == [5, 0, 1]


async def test_an_upload_whose_deployment_fails_stays(uploads: Uploads) -> None:
    upload = await begun(uploads, [("m.onnx", 0)])
    with pytest.raises(ZeroDivisionError):
        async with uploads.complete(upload, CI):
            raise ZeroDivisionError
    async with uploads.complete(upload, CI) as place:
        assert place.name == "m.onnx"


async def test_uploads_belong_to_the_key_that_began_them(uploads: Uploads) -> None:
    upload = await begun(uploads)
    for caller in (OTHER, Caller(Scope.DEPLOY)):
        with pytest.raises(NotFound):
            uploads.view(upload, caller)
        with pytest.raises(NotFound):
            await uploads.take(upload, 0, 0, b"a", caller)
        with pytest.raises(NotFound):
            async with uploads.complete(upload, caller):
                pytest.fail("it is another's")
    with pytest.raises(NotFound):
        await uploads.drop(upload, Caller(Scope.DEPLOY, "c" * 16, "third"))
    assert await uploads.take(upload, 0, 0, b"a", OWNER) == 1
    await uploads.drop(upload, CI)
    assert staged(uploads) == set()
    assert repr(uploads).endswith(": 0>")


@pytest.mark.parametrize("upload", ["", "..", "../x", "m", "0" * 32])
async def test_an_id_is_looked_up_and_never_a_path(uploads: Uploads, upload: str) -> None:
    await begun(uploads)
    with pytest.raises(NotFound):
        await uploads.drop(upload, OWNER)
    assert len(staged(uploads)) == 1


# Limits.


async def test_uploads_at_once_are_limited_and_come_free_again(
    uploads: Uploads, clock: FakeClock
) -> None:
    many = [await begun(uploads) for _ in range(MAX_UPLOADS_PER_KEY)]
    with pytest.raises(Saturated, match=r"4 uploads of this caller .* end one first"):
        await begun(uploads)
    for _ in range(MAX_UPLOADS - MAX_UPLOADS_PER_KEY):
        await begun(uploads, caller=OTHER)
    with pytest.raises(Saturated, match="8 uploads to this node"):
        await begun(uploads, caller=OWNER)
    await uploads.drop(many[0], CI)
    await begun(uploads)
    clock.time_s += UPLOAD_IDLE_S
    await begun(uploads)
    assert len(staged(uploads)) == 1


@pytest.mark.parametrize(
    "files",
    [
        [],
        [(f"m/1/{number}", 1) for number in range(MAX_MODEL_FILES + 1)],
        [("m.onnx", MAX_MODEL_FILE_BYTES + 1)],
        [("m.onnx", -1)],
    ],
)
async def test_too_many_files_or_bytes_are_refused(
    uploads: Uploads, files: list[tuple[str, int]]
) -> None:
    with pytest.raises(TooLarge):
        await uploads.begin(files, CI)
    assert staged(uploads) == set()


async def test_the_disk_keeps_a_reserve_and_what_others_were_promised(
    tmp_path: Path, clock: FakeClock
) -> None:
    uploads = Uploads(tmp_path / "uploads", clock, lambda _: UPLOAD_RESERVE_BYTES + 1000)
    with pytest.raises(TooLarge, match=r"needs 1002 bytes .* and 1000 are free"):
        await begun(uploads, [("m.onnx", 501)])
    first = await begun(uploads, [("m.onnx", 400)])
    with pytest.raises(TooLarge, match="and 200 are free"):
        await begun(uploads, [("m.onnx", 101)])
    await begun(uploads, [("m.onnx", 100)])
    await uploads.drop(first, CI)
    await begun(uploads, [("m.onnx", 400)])
    poor = Uploads(tmp_path / "poor", clock, lambda _: 5)
    with pytest.raises(TooLarge, match="and 0 are free"):
        await begun(poor)


async def test_an_announcement_keeps_little_of_the_disk_and_what_arrived_keeps_its_room(
    tmp_path: Path, clock: FakeClock
) -> None:
    free = UPLOAD_RESERVE_BYTES + 10 * UPLOAD_ROOM_BYTES
    uploads = Uploads(tmp_path / "uploads", clock, lambda _: free)
    large = [("m.onnx", 5 * UPLOAD_ROOM_BYTES)]
    first = await begun(uploads, large)
    with pytest.raises(TooLarge, match=f"and {8 * UPLOAD_ROOM_BYTES} are free"):
        await begun(uploads, large)
    await begun(uploads, [("m.onnx", 4 * UPLOAD_ROOM_BYTES)], OTHER)
    await uploads.take(first, 0, 0, bytes(1000), CI)
    assert uploads._uploads[first].reserved_bytes == 1000 + 2 * UPLOAD_ROOM_BYTES


async def test_a_piece_that_would_eat_the_reserve_is_refused_and_goes_on_later(
    tmp_path: Path, clock: FakeClock
) -> None:
    free = UPLOAD_RESERVE_BYTES + 1000
    uploads = Uploads(tmp_path / "uploads", clock, lambda _: free)
    upload = await begun(uploads, [("m.onnx", 5)])
    free = UPLOAD_RESERVE_BYTES + 2
    with pytest.raises(TransferFailed, match="its disk has 2 bytes free for uploads; free some"):
        await uploads.take(upload, 0, 0, b"abc", CI)
    free = UPLOAD_RESERVE_BYTES + 3
    assert await uploads.take(upload, 0, 0, b"abc", CI) == 3


async def test_an_admin_sees_all_uploads_and_drops_any(uploads: Uploads) -> None:
    upload = await begun(uploads)
    await uploads.take(upload, 0, 0, b"ab", CI)
    assert uploads.all() == [
        {
            "id": upload,
            "piece_bytes": 8 * 1024 * 1024,
            "expires_at": "2023-11-14T23:30:00Z",
            "key_id": CI.key_id,
            "size_bytes": 8,
            "received_bytes": 2,
        }
    ]
    await uploads.drop(upload, OTHER)
    assert uploads.all() == []
    assert staged(uploads) == set()


async def test_the_uploads_of_a_revoked_key_go_at_once(tmp_path: Path, clock: FakeClock) -> None:
    revoked: set[str] = set()
    uploads = Uploads(tmp_path / "uploads", clock, None, lambda key: key not in revoked)
    gone, kept = await begun(uploads), await begun(uploads, caller=OTHER)
    own = await begun(uploads, caller=OWNER)
    revoked.add(CI.key_id)
    uploads.keys_changed()
    with pytest.raises(NotFound):
        uploads.view(gone, CI)
    await asyncio.gather(*uploads._working)
    assert staged(uploads) == {kept, own}


async def test_bad_names_leave_nothing_on_the_disk(uploads: Uploads, tmp_path: Path) -> None:
    for path in ("../../x", "/tmp/x", "m\\..\\x", "CON"):
        with pytest.raises(InvalidRequest):
            await begun(uploads, [(path, 1)])
    assert staged(uploads) == set()
    assert not uploads._folder.exists()


async def test_names_that_are_one_file_on_this_disk_are_found_out(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that folds more than we know of."""
    monkeypatch.setattr(uploads_module, "check_upload_paths", lambda _: "m")
    with pytest.raises(InvalidRequest, match="same file as another"):
        await begun(uploads, [("m/1/a", 1), ("m/1/a", 1)])
    assert staged(uploads) == set()


async def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "uploads").write_text("a file")
    with pytest.raises(ConfigError, match="uploads cannot be kept in"):
        await begun(Uploads(tmp_path / "uploads", clock))


async def test_a_full_disk_counts_nothing_of_the_piece(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begun(uploads)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(TransferFailed, match="its disk is full"):
            await uploads.take(upload, 0, 0, b"ab", CI)
    assert received(uploads, upload) == [0, 0, 0]
    assert await uploads.take(upload, 0, 0, b"ab", CI) == 2


# Time.


async def test_an_idle_upload_is_forgotten_and_each_piece_puts_it_off(
    uploads: Uploads, clock: FakeClock
) -> None:
    idle, busy = await begun(uploads), await begun(uploads)
    clock.time_s += UPLOAD_IDLE_S - 1
    await uploads.take(busy, 0, 0, b"a", CI)
    clock.time_s += 1
    await uploads.expire()
    assert staged(uploads) == {busy}
    with pytest.raises(NotFound, match="expired"):
        uploads.view(idle, CI)
    clock.time_s += UPLOAD_IDLE_S - 2
    await uploads.expire()
    assert staged(uploads) == {busy}


async def test_an_upload_that_is_being_deployed_is_not_idle(
    uploads: Uploads, clock: FakeClock
) -> None:
    upload = await begun(uploads, [("m.onnx", 0)])
    async with uploads.complete(upload, CI) as place:
        clock.time_s += 2 * UPLOAD_IDLE_S
        await uploads.expire()
        assert place.exists()


async def test_idle_uploads_are_looked_for_regularly(
    uploads: Uploads, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "UPLOAD_SWEEP_S", 0.001)
    await begun(uploads)
    clock.time_s += UPLOAD_IDLE_S
    looking = asyncio.ensure_future(uploads.expire_regularly())
    async with asyncio.timeout(5):
        while staged(uploads):  # noqa: ASYNC110 - a file system has no event to wait for
            await asyncio.sleep(0.001)
    looking.cancel()


async def test_what_a_former_process_left_is_swept(uploads: Uploads, clock: FakeClock) -> None:
    await begun(uploads)
    later = Uploads(uploads._folder, clock)
    later.sweep()
    assert staged(later) == set()


async def test_a_client_that_hangs_up_leaves_no_piece_half_counted(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begun(uploads)
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(function: Callable[..., Any], *given: Any) -> Any:
        started.set()
        await go_on.wait()
        return function(*given)

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "to_thread", slow)
        sending = asyncio.ensure_future(uploads.take(upload, 0, 0, b"abc", CI))
        await started.wait()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        again = asyncio.ensure_future(uploads.take(upload, 0, 0, b"abc", CI))
        await asyncio.sleep(0)
        go_on.set()
        assert await again == 3
    assert received(uploads, upload) == [3, 0, 0]
    assert not uploads._working


async def test_a_piece_that_comes_too_late_finds_nothing(uploads: Uploads) -> None:
    upload = await begun(uploads, [("m.onnx", 1)])
    async with uploads._uploads[upload].lock:
        late = asyncio.ensure_future(uploads.take(upload, 0, 0, b"a", CI))
        dropping = asyncio.ensure_future(uploads.complete(upload, CI).__aenter__())
        await asyncio.sleep(0)
        await uploads._forget(uploads._uploads[upload])
    for task in (late, dropping):
        with pytest.raises(NotFound):
            await task


async def test_a_beginning_whose_client_hangs_up_is_still_counted(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files may be there already, so somebody has to know of them and remove them in time."""
    made, go_on = asyncio.Event(), asyncio.Event()

    async def slow(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        result = function(*given, **named)
        if function is uploads_module._create:
            made.set()
            await go_on.wait()
        return result

    monkeypatch.setattr(asyncio, "to_thread", slow)
    beginning = asyncio.ensure_future(uploads.begin(FILES, CI))
    await made.wait()
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    go_on.set()
    await asyncio.gather(*uploads._working)
    assert uploads.count == len(staged(uploads)) == 1


async def test_two_that_begin_at_once_are_not_promised_the_same_room(
    tmp_path: Path, clock: FakeClock
) -> None:
    uploads = Uploads(tmp_path / "uploads", clock, lambda _: UPLOAD_RESERVE_BYTES + 1000)
    both = [uploads.begin([("m.onnx", 400)], CI) for _ in range(2)]
    made = await asyncio.gather(*both, return_exceptions=True)
    assert [type(each) for each in made] == [dict, TooLarge]


async def test_as_many_as_begin_at_once_there_are_never_too_many(uploads: Uploads) -> None:
    many = [
        uploads.begin([("m.onnx", 1)], (CI, OTHER)[number % 2]) for number in range(MAX_UPLOADS + 3)
    ]
    made = await asyncio.gather(*many, return_exceptions=True)
    assert sum(isinstance(each, Saturated) for each in made) == 3
    assert uploads.count == len(staged(uploads)) == MAX_UPLOADS

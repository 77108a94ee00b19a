"""What a hostile model tries against its node and its user, from inside; see also `test_isolation`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from meshnode.models.execution import Execution
from meshnode.models.workers import isolation
from tests.unit.models.workers.conftest import QUICK, load, request, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshnode.models.runtimes.base import Opening
    from meshnode.models.workers.host import WorkerProcess

pytestmark = pytest.mark.skipif(
    not {isolation.FILES, isolation.CALLS} <= set(isolation.enforced_here()),
    reason="this system has no Landlock or no seccomp",
)

RUNS_ANYTHING = """
import ctypes, errno, glob, json, mmap, os, pathlib, resource, shutil, signal, socket, stat, subprocess, sys, threading, time
import triton_python_backend_utils as pb_utils

libc = ctypes.CDLL(None, use_errno=True)

def attempt(what, *args):
    try:
        return repr(what(*args))
    except OSError as error:
        return errno.errorcode[error.errno]

def call(number, *args):
    value = libc.syscall(number, *args)
    return value if value >= 0 else errno.errorcode[ctypes.get_errno()]

class TritonPythonModel:
    def execute(self, requests):
        return [self.one(each, json.loads(each.parameters())) for each in requests]

    def one(self, request, told):
        found = {}
        try:
            exec(told["code"], {**globals(), **told, "found": found})
        except BaseException as error:
            found["raised"] = repr(error)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(request, "x").as_numpy())],
            parameters={"found": json.dumps(found)})
"""


class Model:
    """A model that runs what it is told."""

    def __init__(self, opening: Opening, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self.process: WorkerProcess = load(opening, replace(QUICK, **settings))
        self.reasons: list[str] = []

        async def watch() -> None:
            self.process.on_lost = self.reasons.append

        self._runner.run(watch())

    def does(self, code: str, **told: Any) -> dict[str, Any]:
        (part,) = self.run(self.process.execute([request(code=code, **told)]))
        assert not isinstance(part, Exception), part
        found: dict[str, Any] = json.loads(part.parameters["found"])
        return found

    def run(self, what: Any) -> Any:
        return self._runner.run(what)

    def until_lost(self, code: str, **told: Any) -> str:
        """Run code that is the end of the process; return why it was ended."""

        async def wait() -> str:
            lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

            def tell(reason: str) -> None:
                self.reasons.append(reason)
                if reason and not lost.done():
                    lost.set_result(reason)

            self.reasons.clear()
            self.process.on_lost = tell
            await self.process.execute([request(code=code, **told)])
            async with asyncio.timeout(20):
                return await lost

        return str(self.run(wait()))

    def close(self) -> None:
        self.run(self.process.close())
        self._runner.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("node") / "data"
    folder.mkdir(mode=0o700)
    (folder / "identity.key").write_bytes(b"k" * 32)
    (folder / "identity.key").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def model(data: Path) -> Iterator[Model]:
    execution = Execution(parameters=(("memory_limit", "300M"),))
    opening = written(data, RUNS_ANYTHING, execution)
    made = Model(opening, data_folder=data, work_folder=data / "workers")
    yield made
    made.close()


def test_no_limit_or_priority_of_another_process_can_be_set(model: Model) -> None:
    own = psutil.Process().rlimit(psutil.RLIMIT_NOFILE)
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        limits = psutil.Process(victim.pid).rlimit(psutil.RLIMIT_NOFILE)
        affinity = os.sched_getaffinity(victim.pid)
        found = model.does(
            """
found["cpu"] = attempt(resource.prlimit, victim, resource.RLIMIT_CPU, (1, 1))
found["files"] = attempt(resource.prlimit, victim, resource.RLIMIT_NOFILE, (10, 10))
found["priority"] = attempt(os.setpriority, os.PRIO_PROCESS, victim, 19)
found["policy"] = attempt(os.sched_setscheduler, victim, os.SCHED_IDLE, os.sched_param(0))
found["node"] = attempt(resource.prlimit, node, resource.RLIMIT_NOFILE, (soft, hard))  # as they are
os.sched_setaffinity(victim, [0])
found["group"] = attempt(os.setpriority, os.PRIO_PGRP, 0, 19)
found["own"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
os.nice(0)
""",
            node=os.getpid(),
            victim=victim.pid,
            soft=own[0],
            hard=own[1],
        )
        assert found.pop("own") > 0
        assert set(found.values()) == {"EPERM"}, found
        assert len(found) == 6
        assert psutil.Process(victim.pid).rlimit(psutil.RLIMIT_NOFILE) == limits
        assert os.sched_getaffinity(victim.pid) == affinity
    finally:
        victim.kill()
        victim.wait()


def test_modes_times_and_attributes_of_files_stay_as_they_are_and_nothing_raises(
    model: Model, data: Path
) -> None:
    key = data / "identity.key"
    weights = data / "m" / "1" / "model.py"
    before = [(each.stat().st_mode, each.stat().st_mtime) for each in (data, key, weights)]
    found = model.does(
        """
os.chmod(key, 0o644)
os.chmod(data, 0o755)
os.utime(key, (0, 0))
os.chown(key, 65534, 65534)
os.setxattr(key, "user.evil", b"1")
with open(weights) as file:  # readable is enough for a system to change its mode
    os.fchmod(file.fileno(), 0o777)
    os.utime(file.fileno(), (0, 0))
    found["flags"] = call(16 if os.uname().machine == "x86_64" else 29, file.fileno(), 0x40086602,
                          ctypes.byref(ctypes.c_int(0x40)))
pathlib.Path("mine").write_text("mine")
os.chmod("mine", 0o600)
shutil.copy2("mine", "copy")
found["copy"] = pathlib.Path("copy").read_text()
""",
        key=str(key), data=str(data), weights=str(weights),
    )  # fmt: skip
    assert found == {"flags": "EPERM", "copy": "mine"}
    assert [(each.stat().st_mode, each.stat().st_mtime) for each in (data, key, weights)] == before
    assert os.listxattr(key) == []


def test_the_users_own_secrets_and_other_nodes_keys_cannot_be_read(
    model: Model, tmp_path: Path
) -> None:
    other = tmp_path / "identity.key"
    other.write_text("another node's")
    home = Path.home()
    found = model.does(
        """
found["other"] = attempt(open, other)
found["names"] = attempt(os.listdir, os.path.dirname(other))
found["home"] = attempt(os.listdir, home)
found["shadow"] = attempt(open, "/etc/shadow")
found["disks"] = [each for each in map(attempt, [open] * 99, glob.glob("/dev/[sv]d*")) if "EACCES" != each]
found["hosts"] = "localhost" in open("/etc/hosts").read()
import encodings.idna, numpy.linalg, sqlite3
socket.getaddrinfo("localhost", 80)
""",
        other=str(other), home=str(home),
    )  # fmt: skip
    assert found["disks"] == []
    assert [found[each] for each in ("other", "names", "home", "shadow")] == ["EACCES"] * 4, found
    assert found["hosts"]
    assert "raised" not in found


def test_there_is_no_memory_beside_what_is_counted(model: Model) -> None:
    shm = set(Path("/dev/shm").iterdir())
    found = model.does("""
found["memfd"] = attempt(os.memfd_create, "hidden")
found["segment"] = call(29 if os.uname().machine == "x86_64" else 194, 0, 1 << 20, 0o1600)
found["semaphores"] = call(64 if os.uname().machine == "x86_64" else 190, 0, 1, 0o1600)
found["namespace"] = call(272 if os.uname().machine == "x86_64" else 97, 0x10000000)
def write():
    with open("/dev/shm/left", "wb") as file:
        file.write(bytes(1 << 20))
found["shm"] = attempt(write)
""")
    assert found.pop("shm") in ("None", "EACCES")
    assert found == {
        "memfd": "ENOSYS", "segment": "ENOSYS", "semaphores": "ENOSYS", "namespace": "EPERM",
    }  # fmt: skip
    assert set(Path("/dev/shm").iterdir()) == shm


def test_files_in_shared_memory_count_as_memory(model: Model) -> None:
    if model.does('found["shm"] = attempt(open, "/dev/shm/mine", "w")')["shm"] == "EACCES":
        pytest.skip("processes have no shared memory of their own here")
    assert model.does("""
import multiprocessing
with multiprocessing.get_context("fork").Lock():
    found["semaphore"] = 1
""") == {"semaphore": 1}
    reason = model.until_lost("""
with open("/dev/shm/large", "wb") as file:
    for _ in range(500):
        file.write(bytes(1 << 20))
time.sleep(20)
""")
    assert "above its limit of 300 MiB" in reason


ESCAPE = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(shutil.which("sleep"), ["sleep", SECONDS], {})
    os._exit(0)
os.wait()
"""


def test_who_leaves_its_group_its_session_and_its_variables_is_counted_and_ends_with_the_model(
    opening: Callable[..., Opening],
) -> None:
    model = Model(opening(RUNS_ANYTHING))
    try:
        model.does(ESCAPE.replace("SECONDS", '"7611"'))
        assert model.process.process_id is not None
        life = model.process._life
        assert life is not None
        _wait_for(lambda: _sleeping("7611") != [])
        assert life.child.reading(0.0).processes == 2
        model.until_lost(ESCAPE.replace("SECONDS", '"7612"') + "\nos._exit(3)")
        _wait_for(lambda: _sleeping("7611", "7612") == [])
        assert "exit code 3" in model.reasons[0]
        _wait_for(lambda: model.process._life is not None, model)
        model.does(ESCAPE.replace("SECONDS", '"7613"'))
        _wait_for(lambda: _sleeping("7613") != [])
    finally:
        model.close()
    _wait_for(lambda: _sleeping("7613") == [])


NODE = """
import asyncio, pathlib, sys
from meshnode.models.runtimes.base import Opening
from meshnode.models.execution import Spelling
from meshnode.models.runtimes.processes import load_worker
from meshnode.models.workers.settings import WorkerSettings
from meshnode.models.manifest import TensorSpec
from meshnode.types import DataType, InferRequest, Tensor

async def main():
    inputs = (TensorSpec("x", DataType.FP32, (-1, -1)),)
    outputs = (TensorSpec("y", DataType.FP32, (-1, -1)),)
    opening = Opening(folder=pathlib.Path(sys.argv[1]), entry="model.py", inputs=inputs, outputs=outputs,
                      max_batch_size=8)
    model = load_worker("python", Spelling.TRITON, opening, WorkerSettings(allow_code=True))
    x = Tensor("x", DataType.FP32, (1, 4), bytes(16))
    await model.execute([InferRequest("m", (x,), parameters={"code": sys.argv[2]})])
    print(model.process_id, flush=True)
    await model.execute([InferRequest("m", (x,), parameters={"code": "ctypes.PyDLL(None).sleep(60)"})])

asyncio.run(main())
"""


def test_a_model_that_holds_the_interpreter_and_what_escaped_it_end_with_a_killed_node(
    opening: Callable[..., Opening],
) -> None:
    folder = opening(RUNS_ANYTHING).folder
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, str(folder), ESCAPE.replace("SECONDS", '"7621"')],
        stdout=subprocess.PIPE,
    )
    assert node.stdout is not None
    try:
        process = psutil.Process(int(node.stdout.readline()))
        _wait_for(lambda: _sleeping("7621") != [])
        time.sleep(0.3)  # it is in native code now
        node.kill()
        node.wait()
        _wait_for(lambda: not process.is_running() and _sleeping("7621") == [])
    finally:
        node.kill()
        node.wait()
        node.stdout.close()


def leave_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stopped process live, so that what else finds it out is seen."""
    monkeypatch.setattr("meshnode.models.workers.supervision.WORKER_STOPPED_LOOKS", 10**6)


def test_a_model_that_asks_and_does_not_read_the_answers_is_ended(
    opening: Callable[..., Opening], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.models.workers.life.MAX_WORKER_UNREAD_BYTES", 256 * 1024)
    leave_stopped(monkeypatch)
    model = Model(opening(RUNS_ANYTHING))
    try:
        reason = model.until_lost("""
from meshnode.models.workers import protocol
sockets = [n for n in map(int, os.listdir("/proc/self/fd"))
           if attempt(os.fstat, n).startswith("os.stat") and stat.S_ISSOCK(os.fstat(n).st_mode)]
ask = protocol.encode(protocol.NeedRoom(1, 10**6, 5)) * 500
libc.prctl(15, b"flood", 0, 0, 0)
if os.fork() == 0:  # nobody reads the side socket: its reader is stopped
    os.kill(os.getppid(), signal.SIGSTOP)
    while True:
        os.write(sockets[-1], ask)
time.sleep(60)
""")
        assert "more than it read" in reason
    finally:
        model.close()


def test_only_what_was_asked_for_is_a_sign_of_life(
    opening: Callable[..., Opening], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_stopped(monkeypatch)
    model = Model(opening(RUNS_ANYTHING), silence_s=0.6)
    try:
        reason = model.until_lost("""
from meshnode.models.workers import protocol
sockets = [n for n in map(int, os.listdir("/proc/self/fd"))
           if attempt(os.fstat, n).startswith("os.stat") and stat.S_ISSOCK(os.fstat(n).st_mode)]
said = protocol.encode(protocol.Freed((-1,)))
if os.fork() == 0:
    os.kill(os.getppid(), signal.SIGSTOP)
    while True:
        os.write(sockets[0], said)
        time.sleep(0.05)
time.sleep(60)
""")
        assert "no sign of life" in reason
    finally:
        model.close()


def test_a_hang_in_native_code_is_told_in_the_nodes_words(opening: Callable[..., Opening]) -> None:
    model = Model(opening(RUNS_ANYTHING), silence_s=0.5, watch_s=0.4)
    try:
        reason = model.until_lost("ctypes.PyDLL(None).sleep(60)")
        assert "no sign of life" in reason
    finally:
        model.close()


def _sleeping(*seconds: str) -> list[int]:
    found = []
    for each in psutil.process_iter(["cmdline", "status"]):
        command = each.info["cmdline"] or []
        if command[:1] == ["sleep"] and command[1:] and command[1] in seconds:
            found.append(each.pid)
    return found


def _wait_for(said: Callable[[], bool], model: Model | None = None) -> None:
    deadline = time.monotonic() + 15
    while not said():
        assert time.monotonic() < deadline
        if model is not None:
            model.run(asyncio.sleep(0.02))
        time.sleep(0.02)

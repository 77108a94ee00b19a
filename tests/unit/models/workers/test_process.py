"""Real worker processes with models that behave, and with models that do not."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from meshnode.errors import (
    InferenceFailed,
    InvalidRequest,
    ModelError,
    NotServing,
    ProtocolError,
    TooLarge,
)
from meshnode.models.execution import Execution
from meshnode.models.runtimes.base import ProcessModel
from meshnode.models.runtimes.python import PythonRuntime
from meshnode.models.workers import disk, host, launch
from tests.unit.models.workers.conftest import QUICK, load, request, values, written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from meshnode.models.runtimes.base import Opening
    from meshnode.models.workers.host import WorkerProcess
    from meshnode.models.workers.supervision import Reading
    from meshnode.types import InferRequest

TOOLBOX = """
import os, sys, time, json
import numpy as np
import triton_python_backend_utils as pb_utils

print("toolbox is read")
kept = []

class TritonPythonModel:
    def execute(self, requests):
        return [self.one(each) for each in requests]

    def say(self, data):
        import socket, stat
        for descriptor in range(3, 4096):  # they have the numbers that they have in the node
            try:
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    os.write(descriptor, data)
            except OSError:
                pass

    def one(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        told = json.loads(request.parameters())
        do = told.get("do", "double")
        if do == "keep":
            kept.append(x)
        if do == "raise":
            raise ValueError("no such luck")
        if do == "mute":
            class Mute(Exception):
                def __str__(self):
                    raise RuntimeError("nothing to say")
            raise Mute
        if do == "surrogate":
            raise ValueError("\\udcff")
        if do == "odd name":
            return pb_utils.InferenceResponse([], parameters={"odd": "\\udcff"})
        if do == "nothing":
            return pb_utils.InferenceResponse([])
        if do == "huge":
            return pb_utils.InferenceResponse([pb_utils.Tensor("y", np.repeat(x, 5_000_000, axis=1))])
        if do == "error":
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("refused by the model"))
        if do == "bad":
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError("x is odd", pb_utils.TritonError.INVALID_ARG))
        if do == "exit":
            sys.exit(3)
        if do == "die":
            sys.stderr.write("about to die\\n")
            os._exit(7)
        if do == "segfault":
            import ctypes
            ctypes.string_at(0)
        if do == "sleep":
            time.sleep(float(told.get("seconds", 30)))
        if do == "wait":
            while not request.is_cancelled():
                time.sleep(0.01)
        if do == "print":
            print("x" * 100_000)
            for number in range(20_000):
                print("line", number)
        if do == "fork":
            if os.fork() == 0:
                os.setsid()
                time.sleep(60)
                os._exit(0)
        if do == "write":
            for name in ("one", "two"):
                with open(os.path.join(os.environ["MESHNODE_CACHE_FOLDER"], name), "wb") as file:
                    file.write(os.urandom(int(told["mib"]) << 20))
            time.sleep(30)
        if do == "garbage":
            self.say(b"\\xff" * 100)
            time.sleep(30)  # the node ends it for what it said; an answer would overtake that
        if do == "forge":
            from meshnode.models.workers import protocol
            from meshnode.types import DataType
            for batch in range(1, 99):
                lie = protocol.WireTensor("y", DataType.FP32, (1, 4), told["offset"], 16)
                self.say(protocol.encode(protocol.Outcomes(
                    batch, (protocol.WireAnswer((lie,)),), told["room"], (0, 4096, -5))))
        if do == "leak":
            kept.append(np.ones(30_000_000))
        if do == "name":
            return pb_utils.InferenceResponse([pb_utils.Tensor("z", x)])
        if do == "type":
            return pb_utils.InferenceResponse([pb_utils.Tensor("y", x.astype(np.int64))])
        if do == "complex":
            return pb_utils.InferenceResponse([pb_utils.Tensor("y", x.astype(complex))])
        if do == "parameter":
            return pb_utils.InferenceResponse([], parameters={"odd": [1]})
        if do == "long":
            raise ValueError("x" * 10_000_000)
        if do == "longer":
            return pb_utils.InferenceResponse([], parameters={"odd": "x" * 10_000_000})
        if do == "many bits":
            return pb_utils.InferenceResponse([], parameters={"odd": 1 << 70})
        if do == "shape":
            return pb_utils.InferenceResponse([pb_utils.Tensor("y", x.ravel())])
        if do == "grow":
            return pb_utils.InferenceResponse([pb_utils.Tensor("y", np.repeat(x, 1000, axis=1))])
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("y", x * 2)], parameters={"told": len(told)} if told else None)
"""


@pytest.fixture
async def toolbox(opening: Callable[..., Opening]) -> AsyncIterator[WorkerProcess]:
    model = await asyncio.to_thread(load, opening(TOOLBOX))
    yield model
    await model.close()


class Told:
    """What `on_lost` said."""

    def __init__(self, model: WorkerProcess) -> None:
        self.reasons: list[str] = []
        self._changed = asyncio.Event()
        model.on_lost = self._tell

    def _tell(self, reason: str) -> None:
        self.reasons.append(reason)
        self._changed.set()

    async def until(self, reasons: int) -> list[str]:
        async with asyncio.timeout(20):
            while len(self.reasons) < reasons:
                self._changed.clear()
                await self._changed.wait()
        return self.reasons


async def test_a_batch_is_answered_in_order_and_each_failure_is_its_own_requests(
    toolbox: WorkerProcess,
) -> None:
    assert isinstance(toolbox, ProcessModel)
    assert (toolbox.joins_rows, toolbox.concurrency, toolbox.device) == (False, 1, "cpu")
    first, refused, bad, second = await toolbox.execute(
        [request(1), request(1, do="error"), request(1, do="bad"), request(3)]
    )
    assert values(first).tolist() == [[0, 2, 4, 6]]
    assert values(second).shape == (3, 4)
    assert isinstance(refused, InferenceFailed)
    assert str(refused) == "refused by the model"
    assert isinstance(bad, InvalidRequest)


async def test_large_tensors_go_through_shared_memory_and_all_of_it_comes_back(
    toolbox: WorkerProcess,
) -> None:
    await toolbox.execute([request()])
    life = toolbox._life
    assert life is not None
    for columns in (4, 5_000, 150_000, 150_000, 70_000, 4):
        (outcome,) = await toolbox.execute([request(2, columns)])
        expected = np.arange(2 * columns, dtype=np.float32).reshape(2, columns) * 2
        np.testing.assert_array_equal(values(outcome), expected)
        del outcome
    (large,) = await toolbox.execute([request(1, 100_000)])
    kept = values(large)
    del large
    await asyncio.sleep(0)  # the loop lets go of the future that it woke this test with
    gc.collect()
    life._take_back()
    assert life._arena.lent_bytes >= 400_000  # somebody still holds the last answer
    assert kept[0, -1] == 2 * 99_999
    del kept
    gc.collect()
    life._take_back()
    assert life._arena.lent_bytes == 0


async def test_an_input_that_a_model_keeps_is_never_overwritten(toolbox: WorkerProcess) -> None:
    await toolbox.execute([request(1, 50_000, do="keep")])
    life = toolbox._life
    assert life is not None
    assert len(life._lent) == 1
    for _ in range(3):
        await toolbox.execute([request(1, 50_000)])
    assert len(life._lent) == 1


async def test_an_answer_larger_than_any_before_gets_its_room(toolbox: WorkerProcess) -> None:
    (outcome,) = await toolbox.execute([request(1, 100, do="grow")])
    assert values(outcome).shape == (1, 100_000)


async def test_more_than_the_shared_memory_holds_is_refused_before_anything_runs(
    toolbox: WorkerProcess,
) -> None:
    with pytest.raises(TooLarge, match="share"):
        await toolbox.execute([request(1, 20_000_000)])
    (outcome,) = await toolbox.execute([request()])
    assert values(outcome).tolist() == [[0, 2, 4, 6]]


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("raise", "ValueError: no such luck"),
        ("exit", "SystemExit: 3"),
        ("name", "answered 'z'; its outputs are y"),
        ("type", r"answered 'y' as INT64 \[1, 4\]; its configuration says FP32"),
        ("shape", r"FP32 \[4\]"),
        ("complex", "complex128, which cannot be sent"),
        ("parameter", "the response parameter 'odd' as list"),
        ("many bits", "'odd' has more than 64 bits"),
        ("mute", r"Mute: \(its text cannot be made: that raises RuntimeError\)"),
        ("surrogate", r"ValueError: \\udcff"),
        ("odd name", "UnicodeEncodeError"),
        ("nothing", "without any output; its outputs are y"),
        ("long", "ValueError: xxx"),
        ("longer", "too many tensors or parameters"),
    ],
)
def test_what_a_model_does_wrong_fails_that_request_with_its_own_words(
    do: str, said: str, shared: Shared
) -> None:
    outcome = shared.run(request(do=do))
    assert isinstance(outcome, InferenceFailed)
    with pytest.raises(InferenceFailed, match=said):
        raise outcome
    after = shared.run(request())
    assert values(after).tolist() == [[0, 2, 4, 6]]


class Shared:
    """One process for several tests."""

    def __init__(self, opening: Opening) -> None:
        self._runner = asyncio.Runner()
        self.model = load(opening)

    def run(self, asked: InferRequest) -> object:
        (outcome,) = self._runner.run(self.model.execute([asked]))
        return outcome

    def close(self) -> None:
        self._runner.run(self.model.close())
        self._runner.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    made = Shared(written(tmp_path_factory.mktemp("shared"), TOOLBOX))
    yield made
    made.close()


async def test_an_answer_that_can_never_be_sent_is_too_large_and_not_busy(
    toolbox: WorkerProcess,
) -> None:
    (outcome,) = await toolbox.execute([request(do="huge")])
    assert isinstance(outcome, TooLarge)
    assert "exceed the 67108864 bytes that its process shares" in str(outcome)
    assert values((await toolbox.execute([request()]))[0]).tolist() == [[0, 2, 4, 6]]


async def test_a_model_without_stdout_and_stderr_answers_on(
    opening: Callable[..., Opening],
) -> None:
    source = TOOLBOX.replace('if do == "raise":', 'if do == "raise":\n            os.close(2)')
    model = await asyncio.to_thread(load, opening(source))
    try:
        (outcome,) = await model.execute([request(do="raise")])
        assert str(outcome) == "ValueError: no such luck"
        assert values((await model.execute([request()]))[0]).tolist() == [[0, 2, 4, 6]]
        assert model.restarts == 0
    finally:
        await model.close()


async def test_the_reason_of_an_end_quotes_a_short_piece_of_what_was_printed(
    opening: Callable[..., Opening],
) -> None:
    source = TOOLBOX.replace("about to die", "z" * 500)
    model = await asyncio.to_thread(load, opening(source))
    try:
        (outcome,) = await model.execute([request(do="die")])
        assert str(outcome).endswith(f"exit code 7; it last printed: {'z' * 79}…")
    finally:
        await model.close()


async def test_a_model_comes_back_even_if_its_process_cannot_be_ended_as_usual(
    toolbox: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(toolbox)
    await toolbox.execute([request()])
    life = toolbox._life
    assert life is not None
    end = life.child.end

    def odd(grace_s: float) -> str:
        end(grace_s)
        raise RuntimeError("the folder is odd")

    monkeypatch.setattr(life.child, "end", odd)
    (outcome,) = await toolbox.execute([request(do="die")])
    assert "could not be ended as usual" in str(outcome)
    assert (await told.until(2))[1] == ""


async def test_a_process_that_cannot_be_watched_is_ended_and_comes_back(
    toolbox: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(toolbox)
    await toolbox.execute([request()])
    life = toolbox._life
    assert life is not None

    def cannot(*_given: object, **_named: object) -> Reading:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(life.child, "reading", cannot)
    reasons = await told.until(2)
    assert "could not look at its process" in reasons[0]
    assert toolbox.last_end == reasons[0]
    assert values((await toolbox.execute([request()]))[0]).tolist() == [[0, 2, 4, 6]]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ProtocolError("it sent nonsense"), "cannot be started: it sent nonsense"),
        (RuntimeError("can't start new thread"), "RuntimeError: can't start new thread"),
    ],
)
async def test_a_restart_that_fails_in_any_way_is_told_and_tried_again(
    error: Exception, said: str, toolbox: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [error]
    real = launch.launch

    def launched(*args: object, **named: object) -> object:
        if failures:
            raise failures.pop()
        return real(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(host, "launch", launched)
    told = Told(toolbox)
    await toolbox.execute([request(do="die")])
    reasons = await told.until(3)
    assert said in reasons[1]
    assert reasons[2] == ""
    assert values((await toolbox.execute([request()]))[0]).tolist() == [[0, 2, 4, 6]]


@pytest.mark.parametrize(
    ("do", "said"),
    [("die", "exit code 7; it last printed: about to die"), ("segfault", "killed by SIGSEGV")],
)
async def test_a_model_that_crashes_fails_what_it_ran_and_comes_back(
    do: str, said: str, toolbox: WorkerProcess
) -> None:
    told = Told(toolbox)
    (outcome,) = await toolbox.execute([request(do=do)])
    assert isinstance(outcome, InferenceFailed)
    assert said in str(outcome)
    with pytest.raises(NotServing, match="has no process"):
        await toolbox.execute([request()])
    reasons = await told.until(2)
    assert said in reasons[0]
    assert reasons[1] == ""
    (after,) = await toolbox.execute([request()])
    assert values(after).tolist() == [[0, 2, 4, 6]]
    assert toolbox.restarts == 1


async def test_a_process_that_is_killed_while_idle_is_noticed(toolbox: WorkerProcess) -> None:
    told = Told(toolbox)
    await toolbox.execute([request()])
    assert toolbox.process_id is not None
    os.kill(toolbox.process_id, signal.SIGKILL)
    reasons = await told.until(2)
    assert "SIGKILL" in reasons[0]


async def test_a_cancelled_request_that_listens_frees_its_slot_without_a_restart(
    toolbox: WorkerProcess,
) -> None:
    running = asyncio.create_task(toolbox.execute([request(do="wait")]))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    (after,) = await toolbox.execute([request()])
    assert values(after).tolist() == [[0, 2, 4, 6]]
    assert toolbox.restarts == 0


async def test_a_cancelled_request_that_does_not_listen_ends_its_process_after_the_grace(
    toolbox: WorkerProcess,
) -> None:
    told = Told(toolbox)
    running = asyncio.create_task(toolbox.execute([request(do="sleep")]))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert 0.2 < time.monotonic() - began < 5
    reasons = await told.until(2)
    assert "after nobody waited for it" in reasons[0]


async def test_a_request_past_its_deadline_ends_its_process_though_nobody_cancels(
    toolbox: WorkerProcess,
) -> None:
    (outcome,) = await toolbox.execute([request(do="sleep", timeout_s=0.1)])
    assert isinstance(outcome, InferenceFailed)


async def test_a_model_that_leaks_is_ended_at_its_limit(opening: Callable[..., Opening]) -> None:
    limited = Execution(parameters=(("memory_limit", "200M"),))
    model = await asyncio.to_thread(load, opening(TOOLBOX, limited))
    told = Told(model)
    try:
        with suppress(NotServing):  # it may be ended between two requests
            for _ in range(20):
                await model.execute([request(do="leak")])
                await asyncio.sleep(0.06)
        reasons = await told.until(1)
        assert "above its limit of 200 MiB" in reasons[0]
        await told.until(2)
        assert isinstance((await model.execute([request()]))[0], tuple)
    finally:
        await model.close()


@pytest.fixture
async def writer(
    opening: Callable[..., Opening], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[WorkerProcess]:
    """A model that may write 3 MiB."""
    monkeypatch.setattr(disk, "WORKER_DISK_WATCH_S", 0.05)
    limited = Execution(parameters=(("disk_limit", "3M"),))
    made = replace(opening(TOOLBOX, limited), cache_folder=tmp_path / "cache")
    model = await asyncio.to_thread(load, made)
    yield model
    await model.close()


async def test_a_model_that_fills_the_disk_is_ended_and_begins_with_an_empty_cache(
    writer: WorkerProcess, tmp_path: Path
) -> None:
    told = Told(writer)
    (outcome,) = await writer.execute([request(do="write", mib=2)])
    assert isinstance(outcome, InferenceFailed)
    reasons = await told.until(2)
    assert "4 MiB of the disk, above its limit of 3 MiB (parameter disk_limit)" in reasons[0]
    assert reasons[1] == ""
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Unix")
async def test_no_file_of_a_model_is_larger_than_all_that_it_may_write(
    writer: WorkerProcess,
) -> None:
    (outcome,) = await writer.execute([request(do="write", mib=5)])
    assert "File too large" in str(outcome)


async def test_processes_that_a_model_forks_end_with_it(toolbox: WorkerProcess) -> None:
    (outcome,) = await toolbox.execute([request(do="fork")])
    assert not isinstance(outcome, Exception)
    assert toolbox.process_id is not None
    forked = psutil.Process(toolbox.process_id).children(recursive=True)
    assert len(forked) == 1
    await toolbox.close()
    _, alive = psutil.wait_procs(forked, timeout=5)
    assert alive == []


async def test_megabytes_of_output_become_a_few_lines_of_the_log_and_harm_nobody(
    toolbox: WorkerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="meshnode.models.workers.output"):
        (outcome,) = await toolbox.execute([request(do="print")])
        assert not isinstance(outcome, Exception)
        await asyncio.sleep(0.1)
    lines = [record for record in caplog.records if record.name.endswith("output")]
    assert 0 < len(lines) < 1000
    assert all(len(record.getMessage()) <= 2000 for record in lines)
    assert {vars(record)["model"] for record in lines} == {"m"}


async def test_a_process_that_is_stopped_is_ended_at_the_second_look_that_finds_it_so(
    opening: Callable[..., Opening],
) -> None:
    """Long before its silence says anything: what it streams must go on elsewhere."""
    model = await asyncio.to_thread(load, opening(TOOLBOX), replace(QUICK, silence_s=60.0))
    told = Told(model)
    try:
        await model.execute([request()])
        assert model.process_id is not None
        os.kill(model.process_id, signal.SIGSTOP)
        reasons = await told.until(1)
        assert "was stopped by a signal" in reasons[0]
    finally:
        await model.close()


async def test_a_process_that_talks_nonsense_is_ended(toolbox: WorkerProcess) -> None:
    told = Told(toolbox)
    (outcome,) = await toolbox.execute([request(do="garbage")])
    assert isinstance(outcome, InferenceFailed)
    reasons = await told.until(2)
    assert "a message of 4294967295 bytes; it was ended" in reasons[0]
    assert isinstance((await toolbox.execute([request()]))[0], tuple)


def test_a_process_cannot_point_its_node_at_memory_that_was_not_lent_to_it(
    shared: Shared,
) -> None:
    for offset, room in ((0, -1), (0, 0), (1 << 40, 0), (-7, 4096)):
        outcome = shared.run(request(do="forge", offset=offset, room=room))
        assert isinstance(outcome, InferenceFailed)


async def test_two_models_do_not_notice_each_others_crashes(
    toolbox: WorkerProcess, shared: Shared
) -> None:
    await toolbox.execute([request(do="die")])
    assert shared.model.restarts == 0


async def test_nothing_is_left_after_a_close(
    opening: Callable[..., Opening], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    model = await asyncio.to_thread(load, opening(TOOLBOX), replace(QUICK, work_folder=work))
    await model.execute([request(1, 100_000)])
    assert model.process_id is not None
    process = psutil.Process(model.process_id)
    assert len(list(work.iterdir())) == 1
    await model.close()
    assert not process.is_running()
    assert list(work.iterdir()) == []
    with pytest.raises(NotServing):
        await model.execute([request()])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def broken(:", "SyntaxError"),
        ("import os; os._exit(3)", "exit code 3"),
        ("class Other: pass", "has no class TritonPythonModel"),
        ("class TritonPythonModel: pass", "has no function execute"),
    ],
)
def test_a_model_that_cannot_be_opened_says_why(
    source: str, said: str, opening: Callable[..., Opening]
) -> None:
    with pytest.raises(ModelError, match=said):
        load(opening(source))


def test_a_model_that_is_never_ready_is_given_up(opening: Callable[..., Opening]) -> None:
    slow = opening("import time; time.sleep(60)")
    with pytest.raises(ModelError, match=r"not ready within 1 s"):
        load(slow, replace(QUICK, start_timeout_s=0.6))


def test_code_runs_only_where_the_owner_allowed_it(
    opening: Callable[..., Opening], tmp_path: Path
) -> None:
    made = opening("import os; os._exit(3)")
    with pytest.raises(ModelError, match="--allow-code"):
        load(made, replace(QUICK, allow_code=False))
    with pytest.raises(ModelError, match="--allow-code"):
        load(made, replace(QUICK, allow_code=False, own_folders=(tmp_path / "other",)))
    with pytest.raises(ModelError, match="exit code 3"):  # it ran
        load(made, replace(QUICK, allow_code=False, own_folders=(tmp_path,)))


def test_a_node_that_allows_no_code_can_still_publish_what_its_configuration_tells_whole(
    opening: Callable[..., Opening],
) -> None:
    made = opening("import os; os._exit(3)")
    runtime = PythonRuntime()  # by default code is not allowed
    described = runtime.describe(made)
    assert (described.inputs, described.outputs) == (made.inputs, made.outputs)
    with pytest.raises(ModelError, match="--allow-code"):
        runtime.describe(replace(made, outputs=()))
    with pytest.raises(ModelError, match="--allow-code"):
        runtime.load(made)


async def test_a_model_whose_restarts_fail_is_tried_again_and_says_why(
    opening: Callable[..., Opening],
) -> None:
    made = opening(TOOLBOX)
    model = await asyncio.to_thread(load, made)
    told = Told(model)
    try:
        source = (made.folder / "model.py").read_text()
        (made.folder / "model.py").write_text("raise RuntimeError('gone bad')")
        await model.execute([request(do="die")])
        reasons = await told.until(3)
        assert "RuntimeError: gone bad" in reasons[1]
        assert "RuntimeError: gone bad" in reasons[2]
        with pytest.raises(NotServing, match="gone bad"):
            await model.execute([request()])
        (made.folder / "model.py").write_text(source)
        async with asyncio.timeout(10):
            while told.reasons[-1]:
                await told.until(len(told.reasons) + 1)
        assert values((await model.execute([request()]))[0]).tolist() == [[0, 2, 4, 6]]
    finally:
        await model.close()


async def test_a_model_can_be_closed_while_it_is_being_started_again(
    opening: Callable[..., Opening],
) -> None:
    model = await asyncio.to_thread(load, opening(TOOLBOX))
    told = Told(model)
    await model.execute([request(do="die")])
    await told.until(1)
    await asyncio.sleep(0.1)
    await model.close()
    assert repr(model) == "<WorkerProcess m/1 closed>"


NODE = """
import asyncio, pathlib, sys
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes.base import Opening
from meshnode.models.execution import Spelling
from meshnode.models.runtimes.processes import load_worker
from meshnode.models.workers.settings import WorkerSettings
from meshnode.types import DataType, InferRequest, Tensor

async def main():
    specs = tuple((TensorSpec(name, DataType.FP32, (-1, -1)),) for name in "xy")
    opening = Opening(folder=pathlib.Path(sys.argv[1]), entry="model.py", inputs=specs[0], outputs=specs[1],
                      max_batch_size=8)
    model = load_worker("python", Spelling.TRITON, opening, WorkerSettings(allow_code=True))
    x = Tensor("x", DataType.FP32, (1, 50_000), bytes(200_000))
    await model.execute([InferRequest("m", (x,), parameters={"do": "fork"})])
    print(model.process_id, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Unix")
def test_a_process_and_what_it_forked_do_not_outlive_their_node(
    opening: Callable[..., Opening],
) -> None:
    source = TOOLBOX.replace("os.setsid()", "pass")
    shared_before = _shared_memory()
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, str(opening(source).folder)], stdout=subprocess.PIPE
    )
    try:
        assert node.stdout is not None
        worker = psutil.Process(int(node.stdout.readline()))
        family = [worker, *worker.children(recursive=True)]
        assert len(family) == 2
        node.kill()
        node.wait()
        _, alive = psutil.wait_procs(family, timeout=5)
        assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
        assert _shared_memory() == shared_before
    finally:
        node.kill()
        node.wait()
        if node.stdout is not None:
            node.stdout.close()


def _shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return (
        {each.name for each in folder.iterdir() if "meshnode" in each.name}
        if folder.is_dir()
        else set()
    )


async def test_where_sockets_cannot_be_inherited_the_process_dials_its_node(
    opening: Callable[..., Opening], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "INHERITS", False)
    model = await asyncio.to_thread(load, opening(TOOLBOX))
    try:
        for columns in (4, 50_000):
            assert values((await model.execute([request(1, columns)]))[0]).shape == (1, columns)
    finally:
        await model.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Unix")
def test_a_node_removes_what_an_earlier_run_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / "meshnode-worker-abc"
    folder.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    stray = subprocess.Popen(
        [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"],
        env={"MESHNODE_WORKER": folder.name},
        stdout=subprocess.PIPE,
    )
    assert stray.stdout is not None
    stray.stdout.readline()
    launch.sweep(tmp_path)
    assert stray.wait(5) == -signal.SIGKILL
    stray.stdout.close()
    assert list(tmp_path.iterdir()) == [other]

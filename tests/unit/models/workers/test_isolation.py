"""What a model's process cannot reach, tried from inside by a model that wants to."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.models.workers import isolation, system_calls
from meshnode.models.workers.readable import all_but, readable_by_code
from tests.unit.models.workers.conftest import QUICK, load, request, written

linux_only = pytest.mark.skipif(
    isolation.FILES not in isolation.enforced_here(), reason="this system has no Landlock"
)

BURGLAR = """
import ctypes, json, os, pathlib, signal, socket, subprocess, sys, tempfile
import numpy as np
import triton_python_backend_utils as pb_utils

def attempt(what, *args):
    try:
        return repr(what(*args))
    except OSError as error:
        return type(error).__name__

def connect(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)

def elsewhere(source, key):
    return subprocess.run([sys.executable, "-c", source, key], capture_output=True, text=True,
                          check=True).stdout.strip()

class TritonPythonModel:
    def execute(self, requests):
        return [self.one(each, json.loads(each.parameters())) for each in requests]

    def one(self, request, told):
        key, outside, control, daemon = told["key"], told["outside"], told["control"], told["daemon"]
        mine = pathlib.Path(tempfile.gettempdir(), "mine")
        mine.write_text("mine")
        found = {
            "read key": attempt(open, key),
            "read key by link": attempt(os.symlink, key, "link") and attempt(open, "link"),
            "hard link": attempt(os.link, key, "hard"),
            "write outside": attempt(open, outside, "w"),
            "remove outside": attempt(os.remove, told["victim"]),
            "write the model": attempt(open, told["model"], "a"),
            "control socket": attempt(connect, control),
            "memory of the daemon": attempt(open, f"/proc/{daemon}/mem", "rb"),
            "signal": attempt(os.kill, daemon, 0),
            "child reads key": elsewhere(
                "import sys\\ntry: print(open(sys.argv[1]).read())\\n"
                "except OSError as e: print(type(e).__name__)", key),
            "mine": mine.read_text(),
            "cwd": os.getcwd(),
            "home": os.environ["HOME"],
            "secret": os.environ.get("SECRET_TOKEN", "none"),
            "pair": attempt(lambda: [each.close() for each in socket.socketpair()]),
            "core": __import__("resource").getrlimit(4)[0],
            "bounds": open("/proc/self/status").read().split("CapBnd:")[1].split()[0],
        }
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("y", x)], parameters={"found": json.dumps(found)})
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    root = tmp_path_factory.mktemp("node")
    data = root / "data"
    data.mkdir()
    key = data / "identity.key"
    key.write_text("the key")
    victim = root / "victim"
    victim.write_text("")
    opening = written(data, BURGLAR)  # the model lies in the data folder, as one that was fetched
    control = socket.socket(socket.AF_UNIX)
    control.bind(str(data / "control.sock"))
    control.listen()
    os.environ["SECRET_TOKEN"] = "secret"
    settings = replace(QUICK, data_folder=data, work_folder=data / "workers")
    try:
        model = load(opening, settings)
    finally:
        del os.environ["SECRET_TOKEN"]

    async def ask() -> object:
        try:
            (part,) = await model.execute(
                [
                    request(
                        key=str(key), outside=str(root / "new"), control=str(data / "control.sock"),
                        victim=str(victim), model=str(opening.folder / "model.py"), daemon=os.getpid(),
                    )
                ]
            )  # fmt: skip
            return part
        finally:
            await model.close()

    part = asyncio.run(ask())
    control.close()
    assert not isinstance(part, Exception), part
    found = json.loads(part.parameters["found"])  # type: ignore[attr-defined]
    return {**found, "enforced": model.enforced, "work": str((data / "workers").resolve())}


@linux_only
@pytest.mark.parametrize(
    "deed",
    [
        "read key", "read key by link", "child reads key", "write outside", "remove outside",
        "write the model", "control socket",
    ],
)  # fmt: skip
def test_it_is_refused(deed: str, found: dict[str, object]) -> None:
    assert found[deed] == "PermissionError"


@linux_only
@pytest.mark.parametrize("deed", ["hard link", "memory of the daemon", "signal"])
def test_it_is_refused_in_the_systems_own_words(deed: str, found: dict[str, object]) -> None:
    assert found[deed] in ("PermissionError", "OSError")


@linux_only
def test_what_is_enforced_is_what_was_promised(found: dict[str, object]) -> None:
    assert set(found["enforced"]) == set(isolation.enforced_here())  # type: ignore[call-overload]
    assert isolation.not_enforced(isolation.enforced_here()) == ()
    if os.geteuid() == 0:
        assert found["bounds"] == "0" * 16


def test_it_has_a_place_of_its_own(found: dict[str, object]) -> None:
    assert found["mine"] == "mine"
    assert str(found["cwd"]).startswith(str(found["work"]))
    assert found["home"] == found["cwd"]
    assert found["pair"] == "[None, None]"


def test_it_does_not_see_the_daemons_variables_and_leaves_no_core_dump(
    found: dict[str, object],
) -> None:
    assert found["secret"] == "none"
    assert found["core"] in (0, 1)


def test_what_a_system_does_not_enforce_is_said_in_a_sentence() -> None:
    said = isolation.not_enforced(())
    assert len(said) == 3
    assert "nothing ensures that it cannot open the control socket" in said[2]
    assert "nothing ensures that it reads only what models need" in said[0]


def test_everything_but_a_folder_leaves_that_folder_and_links_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(data)
    allowed = set(all_but(data))
    assert tmp_path.resolve() / "other" in allowed
    assert not {data.resolve(), tmp_path.resolve() / "link", tmp_path.resolve()} & allowed


@pytest.mark.skipif(sys.platform == "win32", reason="Unix")
def test_of_a_home_only_what_the_owner_names_can_be_read_and_never_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = (tmp_path / "home").resolve()
    data = home / "data"
    hub = home / "hub"
    for each in (data, hub / "hub", home / "weights", home / "m" / "1"):
        each.mkdir(parents=True)
    (hub / "token").write_text("secret")
    (home / "m" / "link").symlink_to(home / "weights")
    (home / "m" / "key").symlink_to(data)
    (home / "m" / "home").symlink_to(home)
    monkeypatch.setattr("meshnode.models.workers.readable._home", lambda: home)
    variables = {"HF_HOME": str(hub), "TORCH_HOME": str(home), "LD_LIBRARY_PATH": "relative"}
    allowed = set(readable_by_code(home / "m" / "1", 1, data, variables))
    assert {each for each in allowed if each.is_relative_to(home)} == {
        home / "m", home / "m" / "1", home / "weights", hub / "hub",
    }  # fmt: skip
    assert not {Path("/"), Path("/etc"), Path("/dev"), Path("/home"), Path("/tmp")} & allowed
    monkeypatch.setattr("sys.prefix", str(home / "python"))
    (home / "python" / "nodes").mkdir(parents=True)
    (home / "python" / "lib").mkdir()
    allowed = set(readable_by_code(home / "m" / "1", 1, home / "python" / "nodes", {}))
    assert home / "python" / "lib" in allowed
    assert not {home / "python", home / "python" / "nodes"} & allowed


@pytest.mark.parametrize("machine", list(system_calls.ARCHITECTURES))
@pytest.mark.parametrize("refuses_truncate", [False, True])
def test_a_filter_has_jumps_that_stay_inside(machine: str, refuses_truncate: bool) -> None:
    program = system_calls.program(machine, refuses_truncate=refuses_truncate)
    assert len(program) % 8 == 0
    lines = [struct.unpack_from("HBBI", program, at) for at in range(0, len(program), 8)]
    assert len(lines) < 4096  # BPF_MAXINSNS
    for index, (code, yes, no, _) in enumerate(lines):
        if code not in (0x20, 0x06):
            assert index + 1 + max(yes, no) < len(lines)
    assert lines[-1] == (0x06, 0, 0, 0x7FFF0000)

from __future__ import annotations

import sys
import time
import venv
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from meshnode.errors import MeshError, ModelError, PeerError, UsageError
from meshnode.models.convert.isolation import Limits, run_job
from meshnode.models.workers.isolation import FILES, enforced_here

if TYPE_CHECKING:
    from pathlib import Path


def pickled(path: Path, code: str) -> dict[str, Any]:
    """A scikit-learn conversion whose file runs code when it is loaded."""
    import pickle

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (code,)

    (path / "model.joblib").write_bytes(pickle.dumps(Payload()))
    return {
        "step": "from_sklearn",
        "model": str(path / "model.joblib"),
        "target": "onnx",
        "quantize": "none",
        "out": str(path / "model.onnx"),
        "expected": str(path / "expected.npz"),
    }


def run(tmp_path: Path, code: str, limits: Limits | None = None) -> MeshError:
    job = pickled(tmp_path, code)
    with pytest.raises(MeshError) as caught:
        run_job("convert", job, tmp_path, limits=limits or Limits(), progress=lambda _: None)
    return caught.value


def test_what_a_models_code_prints_is_not_taken_for_the_childs_answer(tmp_path: Path) -> None:
    code = """print('{"inputs": [], "outputs": [], "notes": []}', flush=True)"""
    error = run(tmp_path, code)
    assert isinstance(error, ModelError)
    assert "holds a NoneType, not a fitted scikit-learn model" in str(error)


def test_a_crash_says_how_it_ended_and_what_was_printed_last(tmp_path: Path) -> None:
    error = run(tmp_path, "import os, sys; print('last words', file=sys.stderr); os.abort()")
    assert isinstance(error, PeerError)
    assert "SIGABRT" in str(error) or "code" in str(error)
    assert "last words" in str(error)


def test_a_hang_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))\n"
        "time.sleep(600)"
    )
    began_s = time.monotonic()
    # Enough for a starved child to have begun: one that is ended before it starts anything shows nothing.
    error = run(tmp_path, code, Limits(time_s=6.0))
    assert "not done after 6 s" in str(error)
    assert time.monotonic() - began_s < 20
    grandchild = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(grandchild) or (
        psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE
    )


def test_memory_is_limited(tmp_path: Path) -> None:
    code = "held = bytearray(600 << 20); held[::4096] = b'x' * len(held[::4096])\nimport time; time.sleep(60)"
    error = run(tmp_path, code, Limits(time_s=60, memory_bytes=400 << 20))
    assert isinstance(error, PeerError)
    assert "of 400 MiB allowed" in str(error)


def test_a_child_sees_no_secrets_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_API_KEY", "hidden-value")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-value")
    seen = tmp_path / "seen"
    run(tmp_path, f"import os; open({str(seen)!r}, 'w').write(repr(dict(os.environ)))")
    assert "hidden-value" not in seen.read_text()
    assert str(tmp_path) in seen.read_text()  # its home


@pytest.mark.skipif(FILES not in enforced_here(), reason="this system has no Landlock")
def test_a_child_neither_reads_the_data_folder_nor_writes_outside_its_own(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "node.key").write_text("hidden-value")
    work = tmp_path / "work"
    work.mkdir()
    code = (
        "found = []\n"
        "for path, mode in (({key!r}, 'r'), ({outside!r}, 'w'), ('inside', 'w')):\n"
        "    try: open(path, mode); found.append('opened')\n"
        "    except OSError as error: found.append(error.strerror)\n"
        "raise RuntimeError(found)"
    ).format(key=str(tmp_path / "data" / "node.key"), outside=str(tmp_path / "outside"))
    job = pickled(tmp_path, code)
    limits = Limits(protected=tmp_path / "data")
    with pytest.raises(ModelError, match=r"\['Permission denied', 'Permission denied', 'opened'\]"):
        run_job("convert", job, work, limits=limits, progress=lambda _: None)


def test_an_interpreter_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be started"):
        run_job(
            "convert", {}, tmp_path, limits=Limits(), progress=lambda _: None, python="/no/python"
        )


def test_a_library_that_is_missing_in_the_interpreter_is_named(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    with pytest.raises(UsageError, match=r"numpy cannot be imported by .*bare"):
        run_job(
            "convert",
            pickled(tmp_path, "pass"),
            tmp_path,
            limits=Limits(),
            progress=lambda _: None,
            python=str(python),
        )

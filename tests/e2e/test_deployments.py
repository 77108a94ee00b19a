"""Deployments as files, by the command line on real daemons: applied, changed, restored, paused, deleted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import onnx
import pytest

from tests.e2e.conftest import DIGIT_REQUEST, DIGITS, Mesh, SteadyLoad, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Daemon

pytestmark = pytest.mark.e2e

INFER = "/v2/models/digits/infer"


def meshnode(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command at a daemon."""
    command = [sys.executable, "-m", "meshnode", *arguments, "--data-dir", str(daemon.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def done(daemon: Daemon, *arguments: str, code: int = 0) -> str:
    """Return what a command prints that ends as it should."""
    ended = meshnode(daemon, *arguments)
    assert ended.returncode == code, f"{arguments}: {ended.stdout}\n{ended.stderr}"
    return ended.stdout


def status(daemon: Daemon) -> str:
    (found,) = json.loads(done(daemon, "deployments", "--json"))
    return str(found["status"])


def test_a_deployment_from_its_file_to_its_end(mesh: Mesh, tmp_path: Path) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    folder = tmp_path / "files"
    folder.mkdir()
    shutil.copy(DIGITS, folder / "digits.onnx")
    file = folder / "digits.toml"
    file.write_text('name = "digits"\nmodel = "digits.onnx"\nreplicas = 1\n', encoding="utf-8")

    done(alpha, "diff", str(file), code=1)
    assert "revision" in done(alpha, "apply", str(file))
    assert done(alpha, "apply", str(file)) == "digits: nothing changes\n"
    assert done(beta, "diff", str(file)) == "digits: nothing changes\n"
    assert alpha.request("POST", INFER, DIGIT_REQUEST)[0] == 200
    assert status(beta) == "ready"
    first = json.loads(done(beta, "history", "digits", "--json"))[0]["id"]

    with SteadyLoad(beta.http_port, threads=2) as load:
        file.write_text(
            'name = "digits"\nmodel = "digits.onnx"\nreplicas = 2\npath = "/numbers"\n',
            encoding="utf-8",
        )
        done(beta, "apply", str(file))
        wait_until(lambda: alpha.request("POST", "/numbers", {})[0] != 404, 10, "it has a path")
        changed = onnx.load(folder / "digits.onnx")
        changed.doc_string = "trained again"
        onnx.save(changed, folder / "digits.onnx")
        assert "version 2" in done(beta, "apply", str(file))
        told = done(alpha, "diff", "digits", code=1)
        assert "version 1" in told
        assert "version 2" in told
        done(alpha, "rollback", "digits", "--to", first)
        wait_until(
            lambda: alpha.request("POST", "/numbers", {})[0] == 404,
            10,
            "its path is gone",
        )
    assert load.samples
    assert {sample.status for sample in load.samples} == {200}

    definition = done(alpha, "get", "digits", "--toml")
    copy = folder / "copy.toml"
    copy.write_text(definition, encoding="utf-8")
    assert done(alpha, "apply", str(copy)) == "digits: nothing changes\n"

    done(alpha, "pause", "digits")
    wait_until(
        lambda: beta.request("POST", INFER, DIGIT_REQUEST)[0] != 200, 15, "it serves nothing"
    )
    assert status(alpha) == "paused"
    done(beta, "resume", "digits")
    assert beta.request("POST", INFER, DIGIT_REQUEST)[0] == 200

    done(beta, "delete", "digits")
    wait_until(lambda: alpha.request("POST", INFER, DIGIT_REQUEST)[0] == 404, 15, "nobody knows it")
    assert json.loads(done(alpha, "deployments", "--json")) == []
    done(alpha, "rollback", "digits")
    assert alpha.request("POST", INFER, DIGIT_REQUEST)[0] == 200
    summaries = [each["summary"] for each in json.loads(done(beta, "history", "digits", "--json"))]
    assert summaries[1:4] == ["deleted", "resumed", "paused"]
    assert len(summaries) == 8


def test_two_admins_at_once_one_changes_it_and_the_other_is_told(
    mesh: Mesh, tmp_path: Path
) -> None:
    (alpha,) = mesh.grow("alpha")
    folder = tmp_path / "files"
    folder.mkdir()
    shutil.copy(DIGITS, folder / "digits.onnx")
    text = 'name = "digits"\nmodel = "digits.onnx"\n'
    (folder / "first.toml").write_text(text, encoding="utf-8")
    done(alpha, "apply", str(folder / "first.toml"))
    base = json.loads(done(alpha, "get", "digits", "--json"))["revision"]
    for standby in (1, 2):
        guarded = f'{text}standby = {standby}\nrevision = "{base}"\n'
        (folder / f"{standby}.toml").write_text(guarded, encoding="utf-8")
    with ThreadPoolExecutor() as threads:
        ends = [
            *threads.map(
                lambda at: meshnode(alpha, "apply", str(folder / f"{at}.toml"), "--no-wait"), (1, 2)
            )
        ]
    assert sorted(each.returncode for each in ends) == [0, 2]
    (refused,) = [each.stderr for each in ends if each.returncode]
    assert f"was changed since revision {base}: " in refused
    assert "by alpha" in refused
    assert "standby 0 →" in refused
    assert len(json.loads(done(alpha, "history", "digits", "--json"))) == 2

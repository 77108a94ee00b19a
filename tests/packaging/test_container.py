"""The Dockerfile: there is no engine here, so it is read, and what it does is done without one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from typing import TYPE_CHECKING

import pytest
from typer.main import get_command

import meshnode
from meshnode.cli.main import app
from tests.packaging import dockerfile
from tests.packaging.conftest import ROOT, listed, run

if TYPE_CHECKING:
    from pathlib import Path

IGNORE = (ROOT / ".dockerignore").read_text()
ALL = dockerfile.read((ROOT / "Dockerfile").read_text())
BUILD, FINAL = dockerfile.stages(ALL)
TARGET = "/opt/meshnode/venv"


def only(stage: list[dockerfile.Instruction], word: str) -> dockerfile.Instruction:
    (found,) = [each for each in stage if each.word == word]
    return found


def environment() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", only(FINAL, "ENV").text))


def copied() -> list[str]:
    return [source for each in BUILD if each.word == "COPY" for source in each.words[:-1]]


def context() -> list[str]:
    return [name for name in listed() if dockerfile.is_sent(name, IGNORE)]


def test_the_file_uses_instructions_that_exist() -> None:
    known = {
        "ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL",
        "HEALTHCHECK", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    assert {each.word for each in ALL} == known
    assert ALL[0].word == "ARG"


def test_what_is_copied_is_there_and_in_the_context() -> None:
    assert set(copied()) <= {name.partition("/")[0] for name in context()}
    for source in copied():
        assert (ROOT / source).exists(), source


def test_every_folder_of_the_package_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    assert {*folders, *files, "meshnode", "pyproject.toml", "constraints.txt"} == set(copied())


@pytest.mark.parametrize(
    "path",
    [
        ".env", ".git/config", ".venv/bin/python", "identity.key", "invite", "config.toml", "data/state",
        "examples/.env", "meshnode/cli/.env", "models/server.key", "examples/tls.pem", "tests/conftest.py",
        "models/__pycache__/x.pyc", "meshnode.egg-info/PKG-INFO", "bench-results/models.json",
        "examples/baked/.baked/index.json", "routing/.git/HEAD",
    ],
)  # fmt: skip
def test_nothing_of_the_builders_own_is_in_the_context(path: str) -> None:
    assert not dockerfile.is_sent(path, IGNORE)


def test_the_image_runs_as_a_user_that_is_known_not_to_be_root() -> None:
    user, group = only(FINAL, "USER").text.split(":")
    assert int(user) > 0
    assert int(group) > 0
    made = only(FINAL, "RUN").text
    assert f"--uid {user} --gid {group}" in made
    assert f"install -d -o {user} -g {group} -m 0700 {only(FINAL, 'VOLUME').text}" in made
    after = FINAL[[each.word for each in FINAL].index("USER") :]
    assert not any(each.word == "RUN" for each in after)


def test_the_volume_is_the_data_folder() -> None:
    place = only(FINAL, "VOLUME").text
    assert environment()["MESHNODE_DATA_DIR"] == place
    assert only(FINAL, "WORKDIR").text == place


def test_nothing_of_cuda_is_installed_unless_it_is_asked_for() -> None:
    arguments = dict(each.text.split("=", 1) for each in BUILD if each.word == "ARG")
    assert (arguments["EXTRAS"], arguments["ONNXRUNTIME"]) == ('""', '""')
    assert arguments["TORCH_INDEX"].endswith("/cpu")


@pytest.mark.parametrize(
    ("extras", "runtime", "installed"),
    [
        ("", "", ["/src"]),
        ("grpc,s3", "", ["/src[grpc,s3]"]),
        ("torch,grpc", "", ["--extra-index-url INDEX /src[torch,grpc]"]),
        ("", "onnxruntime-gpu", ["/src", "onnxruntime-gpu"]),
    ],
)
def test_the_extras_of_the_build_argument_are_installed(
    extras: str, runtime: str, installed: list[str], tmp_path: Path
) -> None:
    """The commands of RUN in a shell, with programs that only note how they were called."""
    script = only(BUILD, "RUN").text.replace(TARGET, str(tmp_path))
    (tmp_path / "bin").mkdir()
    for program in ("bin/pip", "bin/python", "python"):
        place = tmp_path / program
        place.write_text(f'#!/bin/sh\necho "{program} $*" >> {tmp_path}/calls\n')
        place.chmod(0o755)
    given = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "EXTRAS": extras, "ONNXRUNTIME": runtime, "TORCH_INDEX": "INDEX",
    }  # fmt: skip
    subprocess.run(["/bin/sh", "-euc", script], check=True, env=given)
    calls = (tmp_path / "calls").read_text().splitlines()
    first, *more = [call for call in calls if call.startswith("bin/pip install")]
    pip = "bin/pip install --no-cache-dir"
    assert first == f"{pip} --constraint constraints.txt {installed[0]}"
    assert more == [f"{pip} {each}" for each in installed[1:]]
    assert ("bin/pip uninstall --yes onnxruntime" in calls) == bool(runtime)
    assert (calls[0], calls[-1]) == (
        f"python -m venv {tmp_path}",
        f"bin/python -m compileall -q {tmp_path}",
    )


def test_every_extra_that_the_comments_name_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = re.findall(r"EXTRAS=([\w,]+) ", (ROOT / "Dockerfile").read_text())
    assert {each for group in named for each in group.split(",")} <= set(extras)


def test_the_version_in_the_comments_is_this_one() -> None:
    tags = re.findall(r"meshnode:(\d[\d.]*)", (ROOT / "Dockerfile").read_text())
    assert set(tags) == {meshnode.__version__}


def test_the_command_is_one_of_meshnode() -> None:
    program, *arguments = only(FINAL, "ENTRYPOINT").words + only(FINAL, "CMD").words
    assert program == "meshnode"
    group = get_command(app)
    assert arguments[0] in group.commands  # type: ignore[attr-defined]


class Container:
    """What an engine would do with the image: its variables and commands, on a folder for a volume."""

    def __init__(self, site: Path, volume: Path) -> None:
        self.volume = volume
        self.environment = {
            **os.environ,
            **{name: value for name, value in environment().items() if name != "PATH"},
            "PYTHONPATH": str(site),
            "MESHNODE_DATA_DIR": str(volume),
            "MESHNODE_HTTP": "127.0.0.1:0",
            "MESHNODE_LISTEN": "127.0.0.1:0",
            "MESHNODE_MDNS": "false",
        }
        command = [*only(FINAL, "ENTRYPOINT").words, *only(FINAL, "CMD").words]
        self.process = subprocess.Popen(
            [sys.executable, "-Pm", *command], env=self.environment, cwd=volume,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def check(self, *command: str) -> int:
        assert command[0] == "python"
        done = subprocess.run(
            [sys.executable, *command[1:]], env=self.environment, cwd=self.volume, check=False,
            capture_output=True, timeout=10,
        )  # fmt: skip
        return done.returncode

    def wait(self, *command: str) -> None:
        for _ in range(100):
            if self.check(*command) == 0:
                return
            assert self.process.poll() is None
            time.sleep(0.1)
        pytest.fail("the container does not become healthy")

    def stop(self) -> int:
        self.process.send_signal(getattr(signal, only(FINAL, "STOPSIGNAL").text))
        return self.process.wait(45)


def health_check() -> list[str]:
    text = only(FINAL, "HEALTHCHECK").text
    return dockerfile.Instruction("CMD", text.partition(" CMD ")[2]).words


@pytest.mark.slow
@pytest.mark.e2e
def test_a_node_of_the_context_runs_is_healthy_and_comes_back_as_itself(tmp_path: Path) -> None:
    """Installed from the files of the context alone; PyPI's packages are those that are here."""
    source = tmp_path / "src"
    for name in context():
        place = source / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            place.symlink_to((ROOT / name).readlink())
        else:
            shutil.copyfile(ROOT / name, place)
    site, volume = tmp_path / "site", tmp_path / "volume"
    volume.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--target", str(site), str(source))
    identities = []
    for _ in range(2):
        container = Container(site, volume)
        try:
            container.wait(*health_check())
            container.wait("python", "-m", "meshnode.client.probe", "readyz")
            identities.append((volume / "identity.key").read_bytes())
        finally:
            code = container.stop()
        assert code == 0
        assert container.check(*health_check()) == 1
    assert identities[0] == identities[1]

"""Starting at boot: the files, and what is done with them through a stand-in systemctl."""

from __future__ import annotations

import json
import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from meshnode.cli import service_files, supervisors
from meshnode.client.mesh import MeshClient
from meshnode.datafolder import DataFolder, MeshFile
from meshnode.limits import DRAIN_LIMIT_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    Run = Callable[..., Result]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd runs on Linux only")
COMMAND = ["/usr/bin/env", "-m", "meshnode", "join", "--data-dir"]


def lines(unit: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)


def test_the_unit_says_when_it_is_ready_and_has_time_to_stop() -> None:
    found = lines(service_files.systemd_unit([*COMMAND, "/data"], "/data", user=None))
    assert found["Type"] == "notify"
    assert found["Restart"] == "on-failure"
    assert float(found["TimeoutStopSec"]) > DRAIN_LIMIT_S
    assert found["StandardOutput"] == "null"
    assert found["WantedBy"] == "default.target"
    assert found["NoNewPrivileges"] == "yes"
    assert "User" not in found
    assert "ProtectSystem" not in found


def test_a_unit_of_the_machine_runs_as_the_folders_owner_and_writes_there_only() -> None:
    found = lines(service_files.systemd_unit([*COMMAND, "/srv/a b"], "/srv/a b", user="ann"))
    assert found["User"] == "ann"
    assert found["ProtectSystem"] == "full"
    assert found["ReadWritePaths"] == '"/srv/a b"'
    assert found["WantedBy"] == "multi-user.target"
    assert "User" not in lines(service_files.systemd_unit(COMMAND, "/srv", user="root"))


def test_paths_with_any_character_are_quoted() -> None:
    path = '/srv/my data/50%/$HOME/"x"/back\\slash\n'
    unit = service_files.systemd_unit(["/opt/p $ython", path], path, user="ann")
    quoted = '/srv/my data/50%%/{}HOME/\\"x\\"/back\\\\slash\\x0a'
    assert lines(unit)["ExecStart"] == f'"/opt/p $ython" "{quoted.format("$$")}"'
    assert lines(unit)["ReadWritePaths"] == f'"{quoted.format("$")}"'


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
@pytest.mark.parametrize("user", [None, "root"])
def test_systemd_itself_finds_no_fault_with_the_unit(tmp_path: Path, user: str | None) -> None:
    folder = tmp_path / "a b%c$d"
    folder.mkdir()
    program = folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    command = [str(program), "join", "--data-dir", str(folder)]
    file = tmp_path / "meshnode.service"
    file.write_text(service_files.systemd_unit(command, str(folder), user=user))
    scope = ["--user"] if user is None else []
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *scope, str(file)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_launchd_gets_a_property_list() -> None:
    job = plistlib.loads(service_files.launchd_plist([*COMMAND, "/a b & c"]).encode())
    assert job["ProgramArguments"][-1] == "/a b & c"
    assert job["RunAtLoad"] is True
    assert job["ExitTimeOut"] > DRAIN_LIMIT_S


def test_windows_gets_a_task() -> None:
    text = service_files.windows_task(
        ["C:\\py\\python.exe", "join", 'a "b" \\', "plain"], "HOME\\a&b"
    )
    root = ET.fromstring(text.partition("\n")[2])
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    action = root.find(f"{space}Actions/{space}Exec")
    assert action is not None
    assert action.findtext(f"{space}Command") == "C:\\py\\python.exe"
    assert action.findtext(f"{space}Arguments") == 'join "a \\"b\\" \\\\" plain'


def test_the_files_of_other_platforms_are_printed_on_this_one(
    meshnode: Run, tmp_path: Path
) -> None:
    def printed(kind: str) -> str:
        done = meshnode(
            "service", "install", "--print", "--kind", kind, "--data-dir", str(tmp_path)
        )
        assert done.exit_code == 0
        return done.stdout

    job = plistlib.loads(printed("launchd").encode())
    assert job["ProgramArguments"][1:] == [
        "-m", "meshnode", "join", "--rejoin", "--data-dir", str(tmp_path),
    ]  # fmt: skip
    root = ET.fromstring(printed("windows").partition("\n")[2])
    assert root.tag.endswith("Task")
    assert "[Service]\nType=notify" in printed("systemd")


def test_a_kind_is_only_to_be_printed_and_one_that_exists(meshnode: Run) -> None:
    assert "goes with --print" in meshnode("service", "install", "--kind", "launchd").stderr
    done = meshnode("service", "install", "--print", "--kind", "upstart")
    assert done.exit_code == 2
    assert "there are systemd, launchd, windows" in done.stderr


class Systemctl:
    """A stand-in on PATH that notes its calls, and answers with what `answer` names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls"
        script = folder / "systemctl"
        script.write_text(
            f'#!/bin/sh\necho "$@" >> {self.log}\n'
            f'case "$*" in *ActiveState*) cat {folder}/state 2>/dev/null;; esac\n'
            f'test -f {folder}/fails && case "$*" in *"$(cat {folder}/fails)"*) '
            "echo 'Job for meshnode.service failed.' >&2; exit 1;; esac\nexit 0\n"
        )
        script.chmod(0o755)

    def calls(self) -> list[str]:
        found = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found

    def fail(self, what: str) -> None:
        (self.folder / "fails").write_text(what)

    def state(self, *, pid: int) -> None:
        (self.folder / "state").write_text(
            f"ActiveState=active\nUnitFileState=enabled\nMainPID={pid}\n"
        )


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(supervisors, "SYSTEM_UNITS", tmp_path / "etc")
    return Systemctl(tmp_path)


@pytest.fixture
def member(data_dir: Path) -> DataFolder:
    """A folder that belongs to a mesh, with nobody running on it."""
    folder = DataFolder(data_dir)
    folder.save_mesh(MeshFile("mesh", b"chain"))
    folder.close()
    return folder


def test_install_writes_the_unit_and_starts_it_and_uninstall_takes_it_back(
    meshnode: Run, systemctl: Systemctl, member: DataFolder, tmp_path: Path
) -> None:
    unit = tmp_path / "config" / "systemd" / "user" / "meshnode.service"
    result = meshnode("service", "install", "--user")
    assert (result.exit_code, result.stderr) == (0, "")
    assert str(unit) in result.stdout
    assert "enable-linger" in result.stdout
    assert str(member.path) in unit.read_text()
    assert systemctl.calls()[2:] == [
        "--user daemon-reload",
        "--user enable meshnode.service",
        "--user restart meshnode.service",
    ]
    assert meshnode("service", "uninstall", "--user").exit_code == 0
    assert systemctl.calls()[1:] == [
        "--user disable --now meshnode.service",
        "--user daemon-reload",
    ]
    assert not unit.exists()
    again = meshnode("service", "uninstall", "--user")
    assert (again.exit_code, again.stdout[:24]) == (0, "No service is installed:")
    assert systemctl.calls() == []


def test_a_service_of_the_machine_lies_with_the_administrators_units(
    meshnode: Run, systemctl: Systemctl, member: DataFolder, tmp_path: Path
) -> None:
    assert meshnode("service", "install", "--system").exit_code == 0
    unit = (tmp_path / "etc" / "meshnode.service").read_text()
    assert "WantedBy=multi-user.target" in unit
    assert all("--user" not in call for call in systemctl.calls())


def test_a_second_install_changes_nothing_while_the_service_runs(
    meshnode: Run, systemctl: Systemctl, member: DataFolder
) -> None:
    meshnode("service", "install", "--user")
    systemctl.calls()
    systemctl.state(pid=os.getpid())
    running = DataFolder(member.path)
    again = meshnode("service", "install", "--user")
    running.close()
    assert again.exit_code == 0
    assert "installed and running already" in again.stdout
    assert not [call for call in systemctl.calls() if "restart" in call]


def test_a_daemon_that_was_started_by_hand_is_not_pushed_aside(
    meshnode: Run, systemctl: Systemctl, member: DataFolder, tmp_path: Path
) -> None:
    running = DataFolder(member.path)
    result = meshnode("service", "install", "--user")
    running.close()
    assert result.exit_code == 2
    assert f"pid {os.getpid()}" in result.stderr
    assert "meshnode stop" in result.stderr
    assert not (tmp_path / "config").exists()


def test_a_folder_of_no_mesh_is_refused_with_what_to_do_first(
    meshnode: Run, systemctl: Systemctl
) -> None:
    result = meshnode("service", "install")
    assert result.exit_code == 2
    assert "belongs to no mesh yet; join or found one first" in result.stderr


def test_print_shows_the_file_and_touches_nothing(
    meshnode: Run, systemctl: Systemctl, tmp_path: Path
) -> None:
    result = meshnode("service", "install", "--user", "--print")
    assert result.stdout.startswith("# Written by")
    assert "ExecStart=" in result.stdout
    assert systemctl.calls() == []
    assert not (tmp_path / "config").exists()


def test_without_systemd_it_says_how_to_start_the_node_instead(
    meshnode: Run, systemctl: Systemctl, member: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl.fail("show --property=Version")
    result = meshnode("service", "install", "--user")
    assert result.exit_code == 2
    assert "systemd does not run for this user (Job for meshnode" in result.stderr
    assert "meshnode join --detach" in result.stderr
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "there is no systemd on this machine" in meshnode("service", "install").stderr


def test_a_failure_of_systemctl_is_shown_with_where_to_look(
    meshnode: Run, systemctl: Systemctl, member: DataFolder
) -> None:
    systemctl.fail("restart")
    result = meshnode("service", "install", "--user")
    assert result.exit_code == 1
    assert "restart meshnode.service` failed: Job for meshnode.service failed." in result.stderr
    assert "journalctl --user -u meshnode.service -e" in result.stderr


def test_status_tells_what_is_installed(
    meshnode: Run, systemctl: Systemctl, member: DataFolder
) -> None:
    before = json.loads(meshnode("service", "status", "--user", "--json").stdout)
    assert (before["installed"], before["active"]) == (False, "not installed")
    meshnode("service", "install", "--user")
    systemctl.state(pid=4711)
    after = json.loads(meshnode("service", "status", "--user", "--json").stdout)
    after.pop("file")
    assert after.pop("data_dir") == str(member.path)
    assert after == {"installed": True, "enabled": True, "active": "active", "pid": 4711}
    assert "4711" in meshnode("service", "status", "--user").stdout


def test_the_service_of_another_folder_is_not_replaced_and_a_name_makes_room_for_both(
    meshnode: Run, systemctl: Systemctl, member: DataFolder, tmp_path: Path
) -> None:
    assert meshnode("service", "install", "--user").exit_code == 0
    unit = tmp_path / "config" / "systemd" / "user" / "meshnode.service"
    before = unit.read_text()
    second = tmp_path / 'a "second" $one 50%'
    shutil.copytree(member.path, second)
    here = ("--user", "--data-dir", str(second))
    refused = meshnode("service", "install", *here)
    assert refused.exit_code == 2
    assert f"is the service of the node on {member.path}" in refused.stderr
    assert "--name NAME" in refused.stderr
    assert unit.read_text() == before
    systemctl.calls()
    assert meshnode("service", "install", *here, "--name", "second").exit_code == 0
    assert "--user restart meshnode-second.service" in systemctl.calls()
    assert unit.read_text() == before
    status = meshnode("service", "status", *here, "--name", "second", "--json").stdout
    assert json.loads(status)["data_dir"] == str(second)
    assert meshnode("service", "uninstall", *here).exit_code == 2, "that is the other one's"
    assert meshnode("service", "uninstall", *here, "--name", "second").exit_code == 0
    assert [path.name for path in unit.parent.iterdir()] == ["meshnode.service"]
    assert "--name" in meshnode("service", "install", *here, "--name", "a/b").stderr


def test_the_env_file_that_counts_goes_into_the_unit_by_its_absolute_path(
    meshnode: Run,
    systemctl: Systemctl,
    member: DataFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert "--env-file" not in meshnode("service", "install", "--user", "--print").stdout
    (work / ".env").write_text("OTHER=1\n")
    assert "--env-file" not in meshnode("service", "install", "--user", "--print").stdout
    (work / ".env").write_text("MESHNODE_REGION=eu\n")
    shown = meshnode("service", "install", "--user", "--print").stdout
    assert f'"--env-file" "{work / ".env"}"' in lines(shown)["ExecStart"]
    assert f"It reads {work / '.env'}" in meshnode("service", "install", "--user").stdout


def started_with(unit: str) -> list[str]:
    """Return the options of the service after the data folder."""
    words = shlex.split(lines(unit)["ExecStart"])
    return words[words.index("--data-dir") + 2 :]


def test_a_named_config_file_goes_into_the_unit_by_its_absolute_path(
    meshnode: Run,
    systemctl: Systemctl,
    member: DataFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work, unit = tmp_path / "work", tmp_path / "config" / "systemd" / "user" / "meshnode.service"
    work.mkdir()
    monkeypatch.chdir(work)
    mine, other, env = work / "my.toml", work / "other.toml", work / "my.env"
    for path in (mine, other):
        path.write_text('region = "eu"\n')
    env.write_text("MESHNODE_ZONE=z\n")
    install = ("service", "install", "--user")

    assert "--config" not in meshnode(*install, "--print").stdout
    shown = meshnode(*install, "--print", "--config", "my.toml", "--env-file", "my.env").stdout
    assert started_with(shown) == ["--config", str(mine), "--env-file", str(env)]
    monkeypatch.setenv("MESHNODE_CONFIG", "other.toml")
    assert started_with(meshnode(*install, "--print").stdout) == ["--config", str(other)]
    done = meshnode(*install)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"It reads {other} at each start: keep that file." in done.stdout
    monkeypatch.delenv("MESHNODE_CONFIG")
    assert meshnode(*install).exit_code == 0
    assert started_with(unit.read_text()) == ["--config", str(other)], "it keeps what it had"
    (member.path / "config.toml").touch()
    assert meshnode(*install, "--config", str(member.path / "config.toml")).exit_code == 0
    assert started_with(unit.read_text()) == [], "that one is read in any case"


def test_what_stays_in_the_installers_shell_is_named(
    meshnode: Run,
    systemctl: Systemctl,
    member: DataFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (member.path / "config.toml").write_text('zone = "z"\n')
    for name, value in {"REGION": "eu", "NICE": "3", "ZONE": "z", "API_KEY": "secret"}.items():
        monkeypatch.setenv(f"MESHNODE_{name}", value)
    warned = meshnode("service", "install", "--user").stderr
    assert warned.startswith("warning: MESHNODE_REGION, MESHNODE_NICE of this shell will not reach")
    assert f"into {member.path / 'config.toml'}" in warned
    assert "`meshnode config show`" in warned
    assert "ZONE" not in warned, "the service has the same value"
    (tmp_path / "models").mkdir()
    (tmp_path / ".env").write_text("MESHNODE_TLS_CERT=c.pem\nMESHNODE_MODELS=models\n")
    refused = meshnode("service", "install", "--user")
    assert refused.exit_code == 2, "from the root folder there is no such folder"


def test_settings_that_the_service_could_not_start_with_are_refused(
    meshnode: Run, systemctl: Systemctl, member: DataFolder, tmp_path: Path
) -> None:
    (member.path / "config.toml").write_text('http = "8.8.8.8:80"\n')
    refused = meshnode("service", "install", "--user")
    assert refused.exit_code == 2
    assert "8.8.8.8 is no address of this machine" in refused.stderr
    assert not (tmp_path / "config").exists()


def test_beside_a_running_daemon_the_command_with_its_files_is_named(
    meshnode: Run,
    systemctl: Systemctl,
    member: DataFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toml, env = tmp_path / "my.toml", tmp_path / "my.env"
    toml.touch()
    env.write_text("export MESHNODE_ZONE=z\n")
    read = [str(env), str(toml), str(member.path / "options"), str(member.path / "config.toml")]
    monkeypatch.setattr(MeshClient, "get", lambda *_, **__: {"config_files": read})
    running = DataFolder(member.path)
    refused = meshnode("service", "install", "--user")
    noted = meshnode("config", "show")
    running.close()
    assert refused.exit_code == 2
    assert refused.stderr.strip().endswith(f"--env-file {env} --config {toml}")
    assert f"The daemon that runs now was started with {env}, {toml}" in noted.stderr
    assert meshnode("config", "show").stderr == ""


def test_the_unit_can_only_rejoin_and_is_passed_over_where_there_is_no_mesh() -> None:
    unit = service_files.systemd_unit([*COMMAND, "/a b%"], "/a b%", user=None)
    assert lines(unit)["ConditionPathExists"] == "/a b%%/mesh"
    assert lines(unit)["WorkingDirectory"] == "/"
    odd = service_files.systemd_unit([*COMMAND, "/a\n"], "/a\n", user=None)
    assert "ConditionPathExists" not in odd, "no line can hold that path"


def test_the_service_starts_with_rejoin(meshnode: Run, systemctl: Systemctl) -> None:
    shown = meshnode("service", "install", "--user", "--print").stdout
    assert '"join" "--rejoin" "--data-dir"' in lines(shown)["ExecStart"]


def test_leaving_takes_the_service_away_and_keeping_does_not(
    meshnode: Run, systemctl: Systemctl, member: DataFolder, tmp_path: Path
) -> None:
    units = tmp_path / "config" / "systemd" / "user"
    second = tmp_path / "second"
    shutil.copytree(member.path, second)
    assert meshnode("service", "install", "--user").exit_code == 0
    elsewhere = ("--data-dir", str(second), "--name", "second")
    assert meshnode("service", "install", "--user", *elsewhere).exit_code == 0
    systemctl.calls()
    assert meshnode("leave", "--keep").exit_code == 0
    assert len(list(units.iterdir())) == 2
    left = meshnode("leave", "--json")
    assert json.loads(left.stdout)["services_removed"] == [str(units / "meshnode.service")]
    assert "--user disable --now meshnode.service" in systemctl.calls()
    assert [path.name for path in units.iterdir()] == ["meshnode-second.service"]
    said = meshnode("leave", "--data-dir", str(second)).stdout
    assert f"is removed: {units / 'meshnode-second.service'}" in said


def test_a_service_that_cannot_be_removed_is_named_when_its_node_leaves(
    meshnode: Run, systemctl: Systemctl, member: DataFolder, tmp_path: Path
) -> None:
    assert meshnode("service", "install", "--system").exit_code == 0
    systemctl.fail("disable")
    left = meshnode("leave")
    assert left.exit_code == 0
    assert "The mesh is forgotten" in left.stdout
    assert f"the service {tmp_path / 'etc' / 'meshnode.service'} could not be" in left.stderr
    assert "meshnode service uninstall" in left.stderr


@pytest.mark.parametrize("folder", ["/data", '/a "b" & <c>/50%/$HOME/\\x', "/ä\n"])
def test_the_folder_of_what_is_installed_is_read_back(folder: str) -> None:
    command = ["/usr/bin/python3", "-m", "meshnode", "join", "--data-dir", folder]
    assert service_files.folder_of(service_files.systemd_unit(command, folder, user="x")) == folder
    assert service_files.folder_of(service_files.launchd_plist(command)) == folder
    assert service_files.folder_of("[Service]\nExecStart=/bin/true\n") is None


@pytest.mark.parametrize("folder", ["C:\\data", "C:\\my data\\a&b"])
def test_the_folder_of_a_windows_task_is_read_back(folder: str) -> None:
    text = service_files.windows_task(["python.exe", "join", "--data-dir", folder], "HOME\\a")
    assert service_files.folder_of(text) == folder

"""examples/deploy-over-ssh: the script against real nodes, with an `ssh` that runs commands in a folder per host."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from meshnode.client.mesh import MeshClient
from tests.packaging.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER = ROOT / "examples" / "deploy-over-ssh"
SCRIPT = FOLDER / "deploy.py"
HOSTS = ("edge1", "edge2")

# It takes a host and a script, as ssh does, and each host has a home folder and addresses of its own.
SSH = """#!/bin/sh
export HOME="{root}/$1" MESHNODE_DATA_DIR="{root}/$1/data" MESHNODE_NAME="$1" PATH="{root}/bin:$PATH"
export MESHNODE_LISTEN=127.0.0.1:0 MESHNODE_HTTP=127.0.0.1:0 MESHNODE_MDNS=false
printf '%s\\n' "$*" >> "{root}/calls"
cd "$HOME" && exec sh -c "$2"
"""

# `python3 -m venv DIR`: an environment whose pip takes any file for a wheel, and whose meshnode is this checkout's.
PYTHON3 = """#!/bin/sh
mkdir -p "$3/bin"
cat > "$3/bin/pip" <<'END'
#!/bin/sh
cp "$3" "$(dirname "$0")/wheel"
END
cat > "$3/bin/meshnode" <<'END'
#!/bin/sh
if [ "$1" = join ] && grep -q broken "$(dirname "$0")/wheel"; then
    echo "error: this release is broken" >&2
    exit 1
fi
if [ "$1 $2" = "service install" ]; then  # there is no systemd here
    touch "$HOME/service"
    exec {python} -m meshnode join --detach
fi
exec {python} -m meshnode "$@"
END
chmod +x "$3/bin/pip" "$3/bin/meshnode"
"""


class Site:
    """The hosts, what is to be deployed, and the script."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir(parents=True)
        self.program("ssh", SSH.format(root=root))
        self.program("bin/python3", PYTHON3.format(python=sys.executable))
        for host in HOSTS:
            (root / host).mkdir()
        (root / "hosts.txt").write_text("edge1 --region eu  # the first\n\nedge2 --region us\n")
        self.deployments = root / "deployments"
        self.deployments.mkdir()
        shutil.copy(ROOT / "examples" / "digits" / "digits.onnx", self.deployments)
        self.write("digits", "replicas = 2")

    def program(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)
        (self.root / name).chmod(0o755)

    def write(self, name: str, more: str) -> Path:
        file = self.deployments / f"{name}.toml"
        file.write_text(f'name = "{name}"\nmodel = "digits.onnx"\n{more}\n')
        return file

    def deploy(self, release: str, *files: Path | str, timeout_s: int = 60) -> tuple[int, str]:
        wheel = self.root / f"meshnode-{release}.whl"
        wheel.write_text(release)
        done = subprocess.run(
            [
                sys.executable, str(SCRIPT), "--hosts", str(self.root / "hosts.txt"), "--wheel", str(wheel),
                "--ssh", str(self.root / "ssh"), "--timeout", str(timeout_s), *map(str, files),
            ],
            capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def get(self, host: str, path: str) -> Any:
        with MeshClient.local(self.root / host / "data") as client:
            return client.get(path)

    def definition(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get("edge1", f"/mesh/v1/deployments/{name}")
        return found

    def pids(self) -> list[int]:
        return [int(self.get(host, "/mesh/v1/status")["pid"]) for host in HOSTS]

    def releases(self) -> list[str]:
        return [(self.root / host / "meshnode" / "current").readlink().name for host in HOSTS]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two hosts on which the script has brought up a mesh with a deployment."""
    made = Site(tmp_path_factory.mktemp("ssh"))
    try:
        code, said = made.deploy("one", made.deployments / "digits.toml")
        assert code == 0, said
        yield made
    finally:
        for host in HOSTS:
            stop = ["stop", "--now", "--data-dir", str(made.root / host / "data")]
            subprocess.run(
                [sys.executable, "-m", "meshnode", *stop], check=False, capture_output=True
            )


pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def test_hosts_without_anything_become_a_mesh_that_serves(site: Site) -> None:
    nodes = site.get("edge2", "/mesh/v1/nodes")
    assert {(each["name"], each["region"], each["state"]) for each in nodes} == {
        ("edge1", "eu", "alive"), ("edge2", "us", "alive"),
    }  # fmt: skip
    assert site.definition("digits")["ready"] == 2
    assert "mesh1" not in (site.root / "calls").read_text()  # no invite in a command line


@pytest.mark.soak
def test_a_second_run_changes_nothing(site: Site) -> None:
    before = site.pids(), site.definition("digits")["revision"]
    code, said = site.deploy("one", site.deployments / "digits.toml")
    assert (code, "edge2: has release" in said) == (0, True)
    assert (site.pids(), site.definition("digits")["revision"]) == before


@pytest.mark.soak
def test_a_release_that_does_not_start_goes_back_and_reaches_no_further_host(site: Site) -> None:
    pids, releases = site.pids(), site.releases()
    code, said = site.deploy("broken")
    assert code == 1
    assert "this release is broken" in said
    assert site.releases() == releases
    assert site.pids()[1] == pids[1]
    assert site.pids()[0] != pids[0]


def test_deployments_that_do_not_become_ready_are_taken_back(site: Site) -> None:
    changed = site.write("digits", "replicas = 1")
    nowhere = site.write("nowhere", '[where]\nregions = ["mars"]')
    code, said = site.deploy("one", changed, nowhere, timeout_s=3)
    assert code == 1, said
    assert site.definition("digits")["definition"]["replicas"] == 2
    assert [each["name"] for each in site.get("edge1", "/mesh/v1/deployments")] == ["digits"]


@pytest.mark.soak
def test_a_new_release_reaches_one_host_after_the_other(site: Site) -> None:
    former = site.releases()[0]
    code, said = site.deploy("two", "--service")
    assert code == 0, said
    assert all((site.root / host / "service").exists() for host in HOSTS)
    first, second = site.releases()
    assert first == second != former
    assert said.index(f"edge1: {former} -> {first}") < said.index(f"edge2: {former} -> {first}")
    assert site.definition("digits")["status"] == "ready"


def test_the_workflow_calls_the_script_with_options_that_it_has() -> None:
    workflow = yaml.safe_load((FOLDER / "workflow.yml").read_text())
    assert workflow[True]["push"]["branches"] == ["main"]  # YAML 1.1 reads `on` as true
    (job,) = workflow["jobs"].values()
    command = job["steps"][-1]["run"].split()
    assert command[:2] == ["python", "deploy/deploy.py"]
    help_text = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert {word for word in command if word.startswith("--")} <= set(help_text.split())
    assert all("uses" in step or step["run"] for step in job["steps"])
    assert json.loads(json.dumps(workflow["permissions"])) == {"contents": "read"}


def test_the_files_of_the_example_name_this_version() -> None:
    import meshnode

    assert f"MESHNODE_VERSION: {meshnode.__version__}" in (FOLDER / "workflow.yml").read_text()
    assert f"meshnode-{meshnode.__version__}-" in (FOLDER / "README.md").read_text()

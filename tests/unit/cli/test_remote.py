"""Commands against a gateway instead of the daemon of this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from meshnode.cli.arguments import client_of
from meshnode.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

    Run = Callable[..., Result]

ANSWERS = [
    ("nodes",),
    ("models",),
    ("status",),
    ("undeploy", "digits"),
    ("infer", "digits"),
]


@pytest.fixture
def elsewhere(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDaemon:
    """A gateway, and no daemon on this machine."""
    monkeypatch.setenv("MESHNODE_DATA_DIR", str(tmp_path / "none"))
    return daemon


@pytest.mark.parametrize("command", ANSWERS)
def test_a_gateway_answers_where_no_daemon_runs(
    elsewhere: FakeDaemon, meshnode: Run, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_DATA_DIR", "/nowhere")
    result = meshnode(*command, "--json", "--gateway", elsewhere.url)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) is not None
    assert "Authorization" not in elsewhere.headers


def test_the_next_gateway_is_asked_where_one_fails(elsewhere: FakeDaemon, meshnode: Run) -> None:
    dead = "http://127.0.0.1:1"
    assert meshnode("nodes", "--gateway", dead, "--gateway", elsewhere.url).exit_code == 0
    assert meshnode("nodes", "--gateway", f"{dead},{elsewhere.url}").exit_code == 0
    result = meshnode("nodes", "--gateway", dead)
    assert result.exit_code == 1
    assert "http://127.0.0.1:1: connection refused" in result.stderr


def test_the_variable_names_gateways_unless_a_folder_is_named(
    daemon: FakeDaemon, meshnode: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_GATEWAY", "http://127.0.0.1:1")
    assert meshnode("nodes").exit_code == 1
    assert meshnode("nodes", "--data-dir", str(daemon.data_dir)).exit_code == 0
    assert meshnode("nodes", "--gateway", daemon.url).exit_code == 0


def test_the_key_comes_from_its_file_or_variable(
    elsewhere: FakeDaemon, meshnode: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("mesh_file\n")
    meshnode("nodes", "--gateway", elsewhere.url, "--key-file", str(tmp_path / "key"))
    assert elsewhere.headers["Authorization"] == "Bearer mesh_file"
    monkeypatch.setenv("MESHNODE_API_KEY", "mesh_variable")
    meshnode("nodes", "--gateway", elsewhere.url)
    assert elsewhere.headers["Authorization"] == "Bearer mesh_variable"
    result = meshnode("nodes", "--gateway", elsewhere.url)
    assert "warning" not in result.stderr  # loopback


def test_a_key_that_others_could_read_is_warned_of(
    meshnode: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESHNODE_API_KEY", "mesh_secret")
    with client_of(None, ["http://192.0.2.1:8470", "https://a"]):
        told = capsys.readouterr().err
    assert told.startswith(
        "warning: the API key goes to http://192.0.2.1:8470 unencrypted; use https"
    )
    assert told.count("\n") == 1
    assert "mesh_secret" not in told


def test_certificates_to_trust_come_from_an_option_a_variable_or_dotenv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("option.pem", "variable.pem", "dotenv.pem"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("MESHNODE_CA_FILE=dotenv.pem\n")

    def trusted(option: str | None = None) -> str | None:
        with client_of(None, ["https://a"], None, option) as client:
            return client._target.ca_file

    assert trusted() == "dotenv.pem"
    monkeypatch.setenv("MESHNODE_CA_FILE", "variable.pem")
    assert trusted() == "variable.pem"
    assert trusted("option.pem") == "option.pem"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ca-file", "/x"], "--ca-file is for a gateway"),
        (["--gateway", "https://a", "--ca-file", "/none.pem"], "'/none.pem' does not exist"),
        (["--gateway", "http://a", "--data-dir", "/x"], "give one of them"),
        (["--gateway", "http://user:secret@a"], "must not contain a user"),
        (["--gateway", "a:8470"], "is not the URL of a gateway"),
        (["--key-file", "/x"], "--key-file is for a gateway"),
    ],
)
def test_what_cannot_be_meant_is_refused(meshnode: Run, arguments: list[str], said: str) -> None:
    result = meshnode("nodes", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "secret" not in result.stderr


def test_a_folder_that_is_named_is_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no meshnode daemon is running"):
        client_of(str(tmp_path)).get("/mesh/v1/nodes")


class TestAnEnvFileThatNobodyNamed:
    """`.env` of the working folder: it may be anybody's, and leads no key astray."""

    @pytest.fixture
    def dotenv(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "own.key").write_text("mesh_mine\n")
        (tmp_path / "ca.pem").touch()

        def write(text: str) -> Path:
            path = tmp_path / ".env"
            path.write_text(text)
            return path

        return write

    @pytest.mark.parametrize(
        ("text", "environ", "options"),
        [
            ("MESHNODE_GATEWAY=https://x", {"MESHNODE_API_KEY": "mesh_mine"}, {}),
            ("MESHNODE_URL=https://x", {"MESHNODE_API_KEY": "mesh_mine"}, {}),
            ("MESHNODE_GATEWAY=https://x", {"MESHNODE_API_KEY_FILE": "own.key"}, {}),
            ("MESHNODE_GATEWAY=https://x\nMESHNODE_API_KEY_FILE=own.key", {}, {}),
            ("MESHNODE_GATEWAY=https://x", {}, {"key_file": "own.key"}),
            ("MESHNODE_GATEWAY=https://x\nMESHNODE_API_KEY=k", {}, {"key_file": "own.key"}),
            ("MESHNODE_CA_FILE=ca.pem", {"MESHNODE_API_KEY": "m"}, {"gateway": ["https://a"]}),
            (
                "MESHNODE_CA_FILE=ca.pem",
                {"MESHNODE_GATEWAY": "https://a", "MESHNODE_API_KEY": "m"},
                {},
            ),
        ],
    )
    def test_it_sends_no_key_from_elsewhere_where_it_leads(
        self,
        dotenv: Callable[[str], Path],
        monkeypatch: pytest.MonkeyPatch,
        text: str,
        environ: dict[str, str],
        options: dict[str, str],
    ) -> None:
        path = dotenv(text)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError) as caught:
            client_of(None, **options)
        assert str(caught.value).startswith(f"{path} says ")
        assert "--gateway" in str(caught.value) or "--ca-file" in str(caught.value)
        assert f"MESHNODE_ENV_FILE={path}" in str(caught.value)

    def test_the_command_says_so_and_asks_nobody(
        self,
        elsewhere: FakeDaemon,
        meshnode: Run,
        dotenv: Callable[[str], Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path = dotenv(f"MESHNODE_GATEWAY={elsewhere.url}\n")
        assert meshnode("models").exit_code == 0, "without any key it may"
        elsewhere.requests.clear()
        monkeypatch.setenv("MESHNODE_API_KEY", "mesh_mine")
        refused = meshnode("models")
        assert (refused.exit_code, elsewhere.requests) == (2, [])
        assert "mesh_mine" not in refused.stderr
        assert meshnode("models", "--gateway", elsewhere.url).exit_code == 0
        monkeypatch.setenv("MESHNODE_ENV_FILE", str(path))
        assert meshnode("models").exit_code == 0
        assert elsewhere.headers["Authorization"] == "Bearer mesh_mine"

    def test_a_gateway_and_its_key_in_one_file_count_together(
        self, dotenv: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dotenv("MESHNODE_GATEWAY=https://x\nMESHNODE_API_KEY=its_own\nMESHNODE_CA_FILE=ca.pem\n")
        for mine in ("", "mesh_mine"):
            monkeypatch.setenv("MESHNODE_API_KEY", mine)
            with client_of(None) as client:
                target = client._target
            assert (target.endpoints[0].url, target.api_key) == ("https://x", "its_own")
            assert target.ca_file == "ca.pem"

    def test_an_exported_gateway_takes_the_exported_key(
        self, dotenv: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dotenv("MESHNODE_GATEWAY=https://x\nMESHNODE_API_KEY=its_own\n")
        monkeypatch.setenv("MESHNODE_GATEWAY", "https://a")
        monkeypatch.setenv("MESHNODE_API_KEY", "mesh_mine")
        with client_of(None) as client:
            assert client._target.endpoints[0].url == "https://a"
            assert client._target.api_key == "mesh_mine"

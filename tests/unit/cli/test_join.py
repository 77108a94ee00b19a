import socket
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import Result

from meshnode.options import (
    DEFAULT_GRPC,
    DEFAULT_LISTEN,
    Chosen,
    JoinOptions,
    check_invite_text,
    name_from_host,
)
from meshnode.types import Address

Run = Callable[..., Result]


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[JoinOptions]:
    """Stand in for the daemon; holds what it was started with."""
    options: list[JoinOptions] = []
    fake = ModuleType("meshnode.daemon")

    def run(given: JoinOptions) -> int:
        options.append(given)
        return 7

    monkeypatch.setattr(fake, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, "meshnode.daemon", fake)
    monkeypatch.setattr("socket.gethostname", lambda: "My Laptop.local")
    return options


def test_a_plain_join_has_the_documented_defaults(
    meshnode: Run, joined: list[JoinOptions], data_dir: Path
) -> None:
    result = meshnode("join")
    assert result.exit_code == 7  # the daemon's own
    assert joined == [
        JoinOptions(
            invite=None,
            name="My-Laptop",
            region="default",
            zone="",
            labels=(),
            listen=DEFAULT_LISTEN,
            http=Address("127.0.0.1", 8470),
            data_dir=str(data_dir),
            models=None,
            new=False,
            mdns=True,
            grpc=DEFAULT_GRPC,
        )
    ]


def test_every_option_reaches_the_daemon(
    meshnode: Run, joined: list[JoinOptions], tmp_path: Path
) -> None:
    args = ["--name", "n1", "--region", "eu-west", "--zone", "z", "--label", "gpu=a100"]
    args += ["--label", "empty=", "--listen", "[::]:0", "--http", "[::1]:0"]
    args += ["--data-dir", str(tmp_path / "d"), "--models", str(tmp_path), "--no-mdns"]
    meshnode("join", "mesh1abc_-9", *args)
    assert [replace(options, chosen=Chosen()) for options in joined] == [
        JoinOptions(
            invite="mesh1abc_-9",
            name="n1",
            region="eu-west",
            region_chosen=True,
            zone="z",
            labels=(("gpu", "a100"), ("empty", "")),
            listen=Address("::", 0),
            http=Address("::1", 0),
            data_dir=str(tmp_path / "d"),
            models=str(tmp_path),
            new=False,
            mdns=False,
            grpc=DEFAULT_GRPC,
        )
    ]


def test_new_no_gateway_and_the_alias_of_models(
    meshnode: Run, joined: list[JoinOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    meshnode("join", "--new", "--no-gateway", "--model-repository", ".")
    (options,) = joined
    assert options == replace(options, new=True, http=None, models=str(tmp_path))


def test_whom_to_ask_reaches_the_daemon_and_is_not_kept(
    meshnode: Run, joined: list[JoinOptions]
) -> None:
    meshnode("join", "--ask", "alpha")
    meshnode("join")
    assert [options.ask for options in joined] == ["alpha", None]
    assert "alpha" not in joined[0].chosen.to_json().decode()
    assert not joined[0].on_terminal  # a test has none


@pytest.mark.parametrize("other", ["--new", "--rejoin", "mesh1abc"])
def test_whom_to_ask_goes_with_no_other_way_to_a_mesh(
    meshnode: Run, joined: list[JoinOptions], other: str
) -> None:
    result = meshnode("join", "--ask", "alpha", other)
    assert result.exit_code == 2
    assert "--ask asks a member" in result.stderr
    assert joined == []


EVERYTHING = (
    *("--name", "n1", "--region", "eu", "--zone", "z", "--label", "a=1", "--label", "b=2"),
    *("--listen", "[::1]:0", "--http", "localhost", "--models", "."),
)


def test_what_was_chosen_is_taken_again_by_a_plain_join(
    meshnode: Run, joined: list[JoinOptions], data_dir: Path
) -> None:
    meshnode("join", *EVERYTHING)
    data_dir.mkdir(parents=True, exist_ok=True)
    (data_dir / "options").write_bytes(joined[0].chosen.to_json())  # as the daemon does
    meshnode("join")
    assert replace(joined[1], config_files=()) == joined[0]
    assert joined[1].config_files == (str(data_dir / "options"),)
    assert joined[1].listen.port == 0


@pytest.mark.parametrize(
    ("args", "changes"),
    [
        (["--name", "n2"], {"name": "n2"}),
        (["--region", "default"], {"region": "default"}),
        (["--zone", ""], {"zone": ""}),
        (["--label", "c=3"], {"labels": (("c", "3"),)}),
        (["--label", ""], {"labels": ()}),
        (["--listen", "0.0.0.0"], {"listen": Address("0.0.0.0", 8471)}),
        (["--no-gateway"], {"http": None}),
        (["--http", "127.0.0.1:0"], {"http": Address("127.0.0.1", 0)}),
        (["--grpc", "127.0.0.1:0"], {"grpc": Address("127.0.0.1", 0)}),
        (["--no-grpc"], {"grpc": None}),
        (["--models", ""], {"models": None}),
    ],
)
def test_what_is_given_replaces_what_is_kept_and_nothing_else(
    meshnode: Run,
    joined: list[JoinOptions],
    data_dir: Path,
    args: list[str],
    changes: dict[str, object],
) -> None:
    meshnode("join", *EVERYTHING)
    data_dir.mkdir(parents=True, exist_ok=True)
    (data_dir / "options").write_bytes(joined[0].chosen.to_json())
    meshnode("join", *args)
    before, after = (
        {field.name: getattr(options, field.name) for field in fields(options)}
        for options in joined
    )
    for name in ("chosen", "config_files"):
        del before[name], after[name]
    assert after == before | changes


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"name": 7}', b'{"region": "a b"}', b'{"http": "h:p"}', b"\xff"]
)
def test_damaged_options_are_told_in_a_sentence_and_start_nothing(
    meshnode: Run, joined: list[JoinOptions], data_dir: Path, content: bytes
) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    (data_dir / "options").write_bytes(content)
    result = meshnode("join")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {data_dir / 'options'} is damaged (")
    assert "remove it and give the options" in result.stderr
    assert joined == []


@pytest.mark.parametrize("text", ["localhost", "localhost:8470", "127.1.2.3:8470", "[::1]:8470"])
def test_the_port_of_the_gateway_may_be_left_out(
    meshnode: Run, joined: list[JoinOptions], text: str
) -> None:
    meshnode("join", "--http", text)
    assert joined[0].http is not None
    assert joined[0].http.port == 8470


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["--no-mdns", "--mdns-interface", "::1"], ("--no-mdns", "--mdns-interface")),
        (["--tls-cert", "c.pem"], ("--tls-cert", "tls_key")),
        (["--no-gateway", "--allow-host", "a"], ("--allow-host", "--no-gateway")),
        (["--no-gateway", "--require-key"], ("--require-key", "--no-gateway")),
        (["--no-gateway", "--grpc", "localhost"], ("--grpc", "--no-gateway")),
        (["--no-gateway", "--shared-memory"], ("--shared-memory", "--no-gateway")),
        (["--membership", "probe_timeout_s=1"], ("probe_timeout_s", "probe_interval_s")),
    ],
)
def test_options_that_contradict_each_other_are_refused_with_both_names(
    meshnode: Run, joined: list[JoinOptions], args: list[str], names: tuple[str, ...]
) -> None:
    result = meshnode("join", *args)
    assert result.exit_code == 2
    assert all(name in result.stderr for name in names)
    assert joined == []


def test_what_is_wrong_with_the_command_line_is_told_before_what_is_wrong_elsewhere(
    meshnode: Run, joined: list[JoinOptions], data_dir: Path
) -> None:
    (data_dir / "options").write_bytes(b"damaged")
    (data_dir / "config.toml").write_text("wrong = 1\n")
    result = meshnode("join", "--nice", "x")
    assert result.stderr.startswith(
        "error: --nice 'x' is not a whole number of 0 to 19 (and 2 more"
    )
    assert joined == []


def test_settings_of_the_config_file_are_taken_by_a_plain_join(
    meshnode: Run, joined: list[JoinOptions], data_dir: Path
) -> None:
    (data_dir / "config.toml").write_text('region = "eu"\nmax_cpus = 2\n')
    meshnode("join")
    meshnode("join", "--region", "us")
    assert [(options.region, options.max_cpus) for options in joined] == [("eu", 2), ("us", 2)]
    assert joined[1].chosen == Chosen(region="us")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "'nonsense' is not an invite"),
        (["mesh1"], "is not an invite"),
        (["mesh1ab c"], "is not an invite"),
        (["mesh1" + "x" * 20_000], "is not an invite"),
        (["mesh1abc", "--new"], "an invite joins an existing mesh"),
        (["--name", "a b"], "--name 'a b' is not a name"),
        (["--name", ""], "--name '' is not a name"),
        (["--name", "x" * 64], "is not a name: use 1 to 63 letters"),
        (["--region", "eu/west"], "--region 'eu/west' is not a name"),
        (["--zone", "ä"], "--zone 'ä' is not a name"),
        (["--label", "gpu"], "--label 'gpu' is not KEY=VALUE"),
        (["--label", "=x"], "is not KEY=VALUE"),
        (["--label", "a=b c"], "is not KEY=VALUE"),
        (["--label", "a=1", "--label", "a=2"], "--label 'a' is given twice"),
        ([f"--label=k{i}=v" for i in range(33)], "at most 32"),
        (["--listen", "8471"], "--listen: '8471' has no valid host"),
        (["--listen", ":8471"], "--listen: ':8471' has no host"),
        (["--listen", "a b:1"], "no valid host"),
        (["--listen", "h:99999"], "port of 0 to 65535"),
        (["--listen", "h:"], "no valid port"),
        (["--listen", "[::1"], "write [IPV6]:PORT"),
        (["--listen", "[]:1"], "no valid host"),
        (["--http", "localhost:http"], "--http: 'localhost:http' has no valid port"),
        (["--http", "localhost:1", "--no-gateway"], "--no-gateway leaves it out"),
        (["--grpc", "localhost:1", "--no-grpc"], "--no-grpc leaves it out"),
        (["--models", "/does/not/exist"], "--models '/does/not/exist' is not a folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    meshnode: Run, joined: list[JoinOptions], args: list[str], message: str
) -> None:
    result = meshnode("join", *args)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert joined == []


def test_a_refused_invite_is_not_shown_whole(meshnode: Run, joined: list[JoinOptions]) -> None:
    """It may be a genuine one with a typing error, and terminals are recorded."""
    result = meshnode("join", "mesh1" + "s" * 100 + "!")
    assert "s" * 30 not in result.stderr


def test_an_invite_of_the_right_form_is_returned() -> None:
    assert check_invite_text("mesh1abc") == "mesh1abc"


@pytest.mark.parametrize(
    ("host_name", "name"),
    [
        ("laptop", "laptop"),
        ("mac.local", "mac"),
        ("Jürgens Mac", "J-rgens-Mac"),
        ("x" * 80, "x" * 63),
        ("", "node"),
        ("ü.local", "node"),
        ("-a-", "a"),
    ],
)
def test_a_nodes_name_comes_from_the_host_name(host_name: str, name: str) -> None:
    assert name_from_host(host_name) == name


def test_rejoin_is_for_members_only(
    meshnode: Run, joined: list[JoinOptions], data_dir: Path
) -> None:
    refused = meshnode("join", "--rejoin")
    assert (refused.exit_code, joined) == (2, [])
    assert f"{data_dir} belongs to no mesh" in refused.stderr
    for more in (["mesh1abc"], ["--new"]):
        assert "--rejoin is for a device" in meshnode("join", "--rejoin", *more).stderr
    (data_dir / "mesh").touch()
    assert meshnode("join", "--rejoin").exit_code == 7
    assert joined[-1].rejoin


def test_a_member_that_is_left_while_it_starts_founds_no_mesh(
    meshnode: Run, joined: list[JoinOptions], data_dir: Path
) -> None:
    meshnode("join")
    (data_dir / "mesh").touch()
    meshnode("join")
    meshnode("join", "mesh1abc")
    assert [options.rejoin for options in joined] == [False, True, False]


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        (
            'http = "8.8.8.8:80"',
            "8.8.8.8 is no address of this machine; name one that is with http",
        ),
        ('listen = "192.0.2.77"', "cannot listen at 192.0.2.77:8471"),
        ('tls_cert = "/none.pem"\ntls_key = "/none.key"', "tls_cert /none.pem does not exist"),
        ('advertise = ["127.0.0.1:9"]', "advertise 127.0.0.1:9: on another device"),
        ('advertise = ["255.255.255.255:9"]', "advertise 255.255.255.255:9 leads nowhere"),
        ('mdns_interfaces = ["192.0.2.77"]', "mdns_interfaces 192.0.2.77 is no address of this"),
    ],
)
def test_what_does_not_fit_this_machine_is_refused_by_join_and_found_by_check(
    meshnode: Run, joined: list[JoinOptions], data_dir: Path, toml: str, said: str
) -> None:
    file = data_dir / "config.toml"
    file.write_text(toml + "\n")
    sentences = set()
    for command in (["join"], ["config", "check"], ["config", "check", str(file)]):
        result = meshnode(*command)
        assert result.exit_code == 2
        sentences.add(result.stderr)
    (sentence,) = sentences
    assert sentence.startswith(f"error: {file}: ")
    assert said in sentence
    assert joined == []


def test_a_port_in_use_and_what_is_left_out_are_no_faults_of_the_settings(
    meshnode: Run, joined: list[JoinOptions], data_dir: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (data_dir / "config.toml").write_text(
            f'http = "127.0.0.1:{port}"\nlisten = "127.0.0.1:{port}"\nadvertise = ["127.0.0.1"]\n'
        )
        assert meshnode("config", "check").exit_code == 0


def test_what_was_kept_is_no_damaged_file_when_the_machine_has_changed(
    meshnode: Run, joined: list[JoinOptions], data_dir: Path
) -> None:
    (data_dir / "options").write_bytes(Chosen(http="192.0.2.77:80").to_json())
    said = meshnode("join").stderr
    assert said.startswith("error: cannot listen at 192.0.2.77:80")
    assert "damaged" not in said

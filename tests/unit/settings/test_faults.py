"""What is wrong is told: where, which setting, what is expected, and the nearest known name."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshnode.errors import ConfigError
from meshnode.limits import MAX_SETTINGS_FILE_BYTES
from meshnode.options import Chosen
from meshnode.settings.environment import effective
from meshnode.settings.fields import FIELDS
from meshnode.settings.layers import ENVIRONMENT, Layer, Machine, all_fields, resolve
from meshnode.settings.load import check_file
from meshnode.settings.readers import (
    from_command_line,
    from_env_file,
    from_environment,
    from_kept,
    from_toml,
)
from meshnode.settings.tuning import with_overrides

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.settings.conftest import Place


def test_an_unknown_key_is_refused_everywhere_with_the_nearest_known_one(place: Place) -> None:
    place.environ["MESHNODE_REGOIN"] = "eu"
    env_file = place.env_file("# mine\n\nOTHER=1\nMESHNODE_MAX_MEMROY=8G\n")
    toml = place.toml('regoin = "eu"\nmax-cpus = 4\n[membership]\nprobe_interval = 1\n')
    assert place.faults() == [
        "unknown variable 'MESHNODE_REGOIN' in the environment; did you mean 'MESHNODE_REGION'?",
        (
            f"{env_file}, line 4: unknown variable 'MESHNODE_MAX_MEMROY'; did you mean "
            "'MESHNODE_MAX_MEMORY'?"
        ),
        f"{toml}: unknown key 'regoin'; did you mean 'region'?",
        f"{toml}: unknown key 'max-cpus'; did you mean 'max_cpus'?",
        f"{toml}: unknown key 'membership.probe_interval'; did you mean 'probe_interval_s'?",
    ]


def test_only_the_first_fault_is_raised_and_it_says_that_there_are_more(place: Place) -> None:
    place.toml('regoin = "eu"\nnice = 20\n')
    with pytest.raises(ConfigError, match=r"'regoin'.* \(and 1 more: `meshnode config check`"):
        place.options()


def test_none_is_none_however_often_it_is_said(place: Place) -> None:
    options = place.options({"allow_hosts": ["none", "NONE"]})
    assert options.allow_hosts == ()
    place.keep(options.chosen)
    assert place.options().allow_hosts == ()


SERVICE_LINKS = {
    "MESHNODE_PORT": "tcp://10.0.0.1:8470",
    "MESHNODE_PORT_8470_TCP": "tcp://10.0.0.1:8470",
    "MESHNODE_PORT_8470_TCP_ADDR": "10.0.0.1",
    "MESHNODE_PORT_8470_TCP_PROTO": "tcp",
    "MESHNODE_PORT_8470_TCP_PORT": "8470",
    "MESHNODE_SERVICE_HOST": "10.0.0.1",
    "MESHNODE_SERVICE_PORT": "8470",
    "MESHNODE_SERVICE_PORT_HTTP": "8470",
    "MESHNODE_HTTP_SERVICE_HOST": "fd00::1",
    "MESHNODE_HTTP_PORT": "udp://[fd00::1]:80",
    "MESHNODE_HTTP_PORT_80_TCP": "tcp://10.0.0.1:80",
}


@pytest.mark.parametrize("name", SERVICE_LINKS)
def test_variables_that_kubernetes_makes_for_a_service_are_passed_over_in_a_pod_only(
    place: Place, name: str
) -> None:
    place.environ[name] = SERVICE_LINKS[name]
    assert len(place.faults()) == 1
    place.environ["KUBERNETES_SERVICE_HOST"] = "10.0.0.9"
    assert place.faults() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MESHNODE_PORT", "9999"),
        ("MESHNODE_SERVICE_LABEL", "x"),
        ("MESHNODE_SERVICE_HOST", "my host"),
        ("MESHNODE_HTTP_PORT", "8470"),
    ],
)
def test_a_variable_that_only_looks_like_one_of_kubernetes_is_refused_in_a_pod_too(
    place: Place, name: str, value: str
) -> None:
    place.environ |= {"KUBERNETES_SERVICE_HOST": "10.0.0.9", name: value}
    assert place.faults()[0].startswith(f"unknown variable {name!r}")


def test_the_nearest_name_is_found_whatever_its_capitals(place: Place) -> None:
    place.environ["MESHNODE_regoin"] = "eu"
    place.toml('Region = "eu"\nMAX-MEMORY = "1G"\n')
    assert [fault.rpartition("; ")[2] for fault in place.faults()] == [
        "did you mean 'MESHNODE_REGION'?",
        "did you mean 'region'?",
        "did you mean 'max_memory'?",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[home]\nname = "a"', "unknown table [home]; there is no table but [membership]; write"),
        ('[[nodes]]\nname = "a"', "unknown table [nodes]; there is no table but [membership]"),
        ("[menbership]\nmtu = 1", "unknown table [menbership]; did you mean 'membership'?; write"),
    ],
)
def test_a_table_that_does_not_exist_is_told_where_settings_belong(
    place: Place, text: str, said: str
) -> None:
    toml = place.toml(text)
    (fault,) = place.faults()
    assert fault.startswith(f"{toml}: {said}")
    assert "settings at the top of the file" in fault


def test_variables_of_clients_are_no_settings_and_no_mistakes(place: Place) -> None:
    for name in ("GATEWAY", "API_KEY", "API_KEY_FILE", "DATA_DIR"):
        place.environ[f"MESHNODE_{name}"] = "x"
    place.env_file("MESHNODE_API_KEY=x\n")
    assert place.faults() == []


WRONG = [
    ("name", "7", "name 7 (a number) is not a name"),
    ("region", '"a b"', "region 'a b' is not a name"),
    ("labels", '["gpu"]', "labels 'gpu' is not KEY=VALUE"),
    ("labels", "{ a = 1 }", "labels.a 1 (a number) is not a text"),
    ("labels", '{ a = "b c" }', "labels 'a=b c' is not KEY=VALUE"),
    ("listen", "8471", "listen 8471 (a number) is not HOST:PORT"),
    ("listen", '":1"', "listen: ':1' has no host"),
    ("advertise", '["0.0.0.0:1"]', "advertise 0.0.0.0:1 cannot be dialled"),
    ("advertise", "[1]", "advertise 1 (a number) is not a list, each HOST:PORT"),
    ("mdns", "1", "mdns 1 (a number) is not true or false"),
    ("mdns", '"maybe"', "mdns 'maybe' is not true or false (or yes"),
    ("mdns_interfaces", '["eth0"]', "mdns_interfaces 'eth0' is not an IP address"),
    ("profile", '"man"', "profile 'man' is not lan or wan"),
    ("http", "true", "http True (a boolean) is not HOST:PORT"),
    ("allow_hosts", '["a:80"]', "allow_hosts 'a:80' is not a host's name"),
    ("cors_origins", '["app.example.org"]', "'app.example.org' is not an origin"),
    ("cors_origins", '["https://a.example/"]', "no slash at its end"),
    ("cors_origins", '["ftp://a.example"]', "is not an origin"),
    ("cors_origins", str([f"http://h{i}" for i in range(65)]), "at most 64 are allowed"),
    ("access_log", "7", "access_log 7 (a number) is not a path, or - for stdout"),
    ("allow_hosts", '{ a = "b" }', "allow_hosts (a table) is not a list"),
    ("max_memory", '"8X"', "max_memory '8X' is not a size such as 8G"),
    ("max_memory", "8", "max_memory 8 is out of range: at least 64M"),
    ("max_memory", '"101%"', "is not a size"),
    ("max_memory", "0x" + "f" * 9000, "max_memory … is out of range"),
    ("max_cpus", "0", "max_cpus 0 (a number) is not a whole number of 1 to 4096"),
    ("max_cpus", "1.5", "is not a whole number"),
    ("max_cpus", "true", "max_cpus True (a boolean) is not a whole number"),
    ("nice", "-1", "is not a whole number of 0 to 19"),
    ("nice", '"1_0"', "nice '1_0' is not a whole number of 0 to 19"),
    ("max_temperature", "nan", "is not a number of 30 to 110 degrees Celsius"),
    ("max_temperature", "0x" + "f" * 9000, "is not a number of 30 to 110"),
    ("log_level", '"loud"', "log_level 'loud' is not debug, info, warning or error"),
    ("tls_cert", '"a\\u0000b"', "is not a path"),
    ("tls_cert", '"~no-such-user-here/c"', "'~no-such-user-here/c' is not a path"),
    ("allow_hosts", str([f"h{i}" for i in range(65)]), "has 65 values; at most 64 are allowed"),
    ("labels", str([f"k{i}=1" for i in range(33)]), "33 are given; a node has at most 32"),
    ("tls_cert", repr("x" * 5000), "has 5000 characters; at most 4096 are read"),
    ("tls_cert", "2026-01-02", "2026-01-02 (a date or time) is not a path"),
    ("models", '"ftp://host/x"', "cannot be read: models come from a folder, or from http://"),
    ("models_poll", "-1", "is not a number of 0 to 86400 seconds"),
    ("models", '"nowhere"', "is not a folder; it must hold one folder per model"),
    ("data_dir", '"/x"', "data_dir cannot be set here"),
    ("membership", "3", "membership is a table: write [membership]"),
    ("membership", "{ probe_interval_s = 0 }", "is not a number of 0.001 to"),
    ("membership", "{ gossip_fanout = 2.5 }", "is not a whole number of 1 to 1024"),
    ("membership", "{ max_payload_bytes = 100 }", "is not a whole number of 256 to 1400 bytes"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_a_wrong_value_is_told_with_its_file_and_what_is_expected(
    place: Place, key: str, value: str, message: str
) -> None:
    path = place.toml(f"{key} = {value}\n")
    (fault,) = place.faults()
    assert fault.startswith(f"{path}: {key}")
    assert message in fault


def test_a_text_that_no_file_can_hold_is_refused(place: Place) -> None:
    """An argument of a shell may have bytes that are not UTF-8."""
    (fault,) = place.faults({"tls_cert": "a\udcff", "tls_key": "k"})
    assert fault == r"--tls-cert 'a\udcff' is not a path"


def test_a_wrong_value_is_named_as_its_source_spells_it(place: Place) -> None:
    place.environ["MESHNODE_NICE"] = "x"
    env_file = place.env_file("MESHNODE_MAX_CPUS='\nMESHNODE_REGION=a b\n")
    kept = place.keep(Chosen(log_level="loud"))
    messages = place.faults({"max_memory": "much", "mdns_interfaces": ["x"]})
    assert [message.split(" is ")[0] for message in messages] == [
        "--max-memory 'much'",
        "--mdns-interface 'x'",
        "MESHNODE_NICE 'x'",
        f"{env_file}, line 1: this line",
        f"{env_file}, line 2: MESHNODE_REGION 'a b'",
        str(kept),
    ]
    assert "is damaged (log_level 'loud' is not debug" in messages[-1]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('A=1\n\n# x\nMESHNODE_ZONE="open\n', 4, "a quotation mark is not closed"),
        ("MESHNODE_ZONE\n", 1, "MESHNODE_ZONE has no value"),
        ("\nMESHNODE_ZONE='a' b\n", 2, "is not NAME=VALUE"),
    ],
)
def test_a_syntax_error_of_the_env_file_names_its_line(
    place: Place, text: str, line: int, message: str
) -> None:
    path = place.env_file(text)
    (fault,) = place.faults()
    assert fault.startswith(f"{path}, line {line}: ")
    assert message in fault


def test_the_env_file_of_another_program_is_not_judged(place: Place) -> None:
    place.env_file("this is 'not ours\n")
    assert place.faults() == []
    assert effective({}, place.work) == {}


def test_a_toml_syntax_error_names_its_line(place: Place) -> None:
    path = place.toml('region = "eu"\nzone = \n')
    (fault,) = place.faults()
    assert fault.startswith(f"{path}: this is not TOML: ")
    assert "line 2" in fault


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = " + "9" * 10_000, "[a]\n[a]\n", "a." * 5000 + "a = 1"]
)
def test_hostile_toml_is_a_fault_and_no_crash(place: Place, text: str) -> None:
    place.toml(text)
    assert len(place.faults()) == 1


def test_a_file_that_was_named_must_exist_and_the_usual_ones_need_not(place: Place) -> None:
    assert place.faults() == []
    loaded = place.load(config="nowhere.toml", env_file="nowhere.env")
    assert [str(fault) for fault in loaded.settings.faults] == [
        f"{place.work / 'nowhere.env'} does not exist; create it, or name another file",
        f"{place.work / 'nowhere.toml'} does not exist; create it, or name another file",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#" * (MAX_SETTINGS_FILE_BYTES + 1), "is no file of settings: it has more than"),
        (b"a = 1\nb = '\xff'\n", ", line 2: this is not UTF-8 text"),
    ],
)
def test_what_cannot_be_a_file_of_settings_is_said(
    place: Place, content: bytes, message: str
) -> None:
    (place.data / "config.toml").write_bytes(content)
    (place.work / ".env").write_bytes(content)
    assert all(message in fault for fault in place.faults())
    assert len(place.faults()) == 2


def test_a_folder_is_no_file_of_settings(place: Place) -> None:
    (place.data / "config.toml").mkdir()
    (fault,) = place.faults()
    assert "cannot be read" in fault


def test_a_mark_of_windows_editors_is_passed_over(place: Place) -> None:
    (place.data / "config.toml").write_bytes(b'\xef\xbb\xbfregion = "eu"\r\n')
    (place.work / ".env").write_bytes(b"\xef\xbb\xbfMESHNODE_ZONE=z\r\n")
    options = place.options()
    assert (options.region, options.zone) == ("eu", "z")


def test_contradictions_are_told_with_both_sources(place: Place) -> None:
    toml = place.toml(
        'tls_cert = "c"\nmdns_interfaces = ["::1"]\nallow_hosts = ["a"]\n'
        "[membership]\nprobe_timeout_s = 2\n"
    )
    place.environ["MESHNODE_MDNS"] = "off"
    assert place.faults({"http": "off"}) == [
        (
            f"tls_cert in {toml} needs tls_key as well, and tls_key by default is none; give both or "
            "neither"
        ),
        (
            f"tls_cert in {toml} is about the gateway, and --no-gateway (command line) leaves it out; "
            "take one of them back"
        ),
        (
            f"allow_hosts in {toml} is about the gateway, and --no-gateway (command line) leaves it "
            "out; take one of them back"
        ),
        (
            f"mdns_interfaces in {toml} says where to announce and MESHNODE_MDNS in the environment "
            "leaves it out; take one of them back"
        ),
        (
            f"probe_interval_s (1.0, of profile lan: default) must be at least 2 x probe_timeout_s "
            f"(2.0, config.toml ({toml})): helpers are asked in the other half of the interval"
        ),
    ]


def test_of_two_contradicting_options_both_are_named(place: Place) -> None:
    (fault,) = place.faults({"mdns": False, "mdns_interfaces": ["::1"]})
    assert fault == (
        "--mdns-interface on the command line says where to announce and --no-mdns on the command "
        "line leaves it out; take one of them back"
    )


def test_what_was_kept_contradicts_with_its_origin(place: Place) -> None:
    place.keep(Chosen(mdns=False))
    (fault,) = place.faults({"mdns_interfaces": ["::1"]})
    assert "and mdns, kept from an earlier `meshnode join`, leaves it out" in fault


@pytest.mark.parametrize(
    ("text", "message"),
    [("probe_interval_s", "is not NAME=VALUE"), ("probe_intervals=1", "did you mean 'probe_i")],
)
def test_a_wrong_membership_option_is_told(place: Place, text: str, message: str) -> None:
    faults = place.load(None, [text]).settings.faults
    assert message in str(faults[0])


def test_overrides_that_no_membership_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="membership has no such fields: x"):
        with_overrides("lan", {"x": 1})


def test_kept_values_of_a_later_version_are_ignored() -> None:
    layer = from_kept(Chosen(membership={"later": "1", "dial_limit": "9"}), "/options")
    assert layer.values == {"membership.dial_limit": "9"}


def test_one_file_is_checked_without_any_other_source(place: Place, tmp_path: Path) -> None:
    place.environ["MESHNODE_X"] = "1"
    path = tmp_path / "other.toml"
    path.write_text("nice = 99\n")
    assert [str(it) for it in check_file(path).faults] == [
        f"{path}: nice 99 (a number) is not a whole number of 0 to 19"
    ]


def test_variables_of_the_environment_win_over_the_env_file_and_empty_ones_do_not(
    place: Place,
) -> None:
    place.env_file("MESHNODE_API_KEY=file\nMESHNODE_GATEWAY=file\nPATH=file\n")
    found = effective({"MESHNODE_API_KEY": "own", "MESHNODE_GATEWAY": "", "HOME": "h"}, place.work)
    assert found == {"MESHNODE_API_KEY": "own", "MESHNODE_GATEWAY": "file", "HOME": "h"}


def test_gateways_are_found_under_their_other_name(place: Place) -> None:
    assert effective({"MESHNODE_URL": "http://a"}, place.work)["MESHNODE_GATEWAY"] == "http://a"
    place.env_file("MESHNODE_URL=http://b")
    assert effective({}, place.work)["MESHNODE_GATEWAY"] == "http://b"
    both = effective({"MESHNODE_GATEWAY": "http://own"}, place.work)
    assert both["MESHNODE_GATEWAY"] == "http://own"


def test_a_broken_env_file_stops_a_client_with_its_line(place: Place) -> None:
    path = place.env_file("MESHNODE_API_KEY='open\n")
    with pytest.raises(ConfigError, match=f"{path}, line 1: "):
        effective({}, place.work)


MACHINE = Machine("host", lambda text, folder: posixpath.join(folder, text), lambda: 2**34)
TEXTS = st.text(max_size=60) | st.sampled_from(
    ["", "none", "50%", "8G", "1e9", "[::1", "a=b", "-1"]
)
TOML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(values=st.dictionaries(st.sampled_from(sorted(all_fields())), TOML | TEXTS, max_size=8))
def test_whatever_a_source_holds_resolving_it_raises_nothing(values: dict[str, object]) -> None:
    found = resolve([Layer(ENVIRONMENT, values, "/work")], MACHINE)
    if not found.faults:
        options = found.options(data_dir="/d", invite=None, new=False)
        assert options.name
    else:
        with pytest.raises(ConfigError):
            found.options(data_dir="/d", invite=None, new=False)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text() | st.text("MESHNODE_=\"'\\\n region#[]{}.,:1"))
def test_whatever_a_file_holds_reading_it_raises_nothing(text: str) -> None:
    layers = [from_toml(text, "/c.toml", "/"), from_env_file(text, "/.env", "/")]
    resolve(layers, MACHINE)


@given(
    values=st.dictionaries(st.sampled_from(sorted(FIELDS)), TEXTS | st.lists(TEXTS, max_size=3)),
    membership=st.none() | st.lists(TEXTS, max_size=3),
)
def test_what_was_chosen_is_read_back_as_the_same(
    values: dict[str, object], membership: list[str] | None
) -> None:
    found = resolve([from_command_line(values, membership, "/work")], MACHINE)
    if found.faults:
        return
    chosen = Chosen.from_json(found.chosen.to_json())
    again = resolve([from_kept(chosen, "/options")], MACHINE, chosen)
    assert again.faults == ()
    wanted = {key: each.value for key, each in found.by_key.items()}
    assert {key: each.value for key, each in again.by_key.items()} == wanted


@given(environ=st.dictionaries(st.text(max_size=20).map("MESHNODE_".__add__), TEXTS, max_size=5))
def test_whatever_the_environment_holds_reading_it_raises_nothing(environ: dict[str, str]) -> None:
    resolve([from_environment(environ, "/work")], MACHINE)

"""Every setting can be chosen in every place, and the highest place counts."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.membership.config import LAN, WAN, MembershipConfig
from meshnode.options import Chosen, JoinOptions
from meshnode.settings.fields import FIELDS, attribute_of
from meshnode.settings.tuning import membership_config, with_overrides
from meshnode.types import Address

if TYPE_CHECKING:
    from tests.unit.settings.conftest import Place

REAL: dict[str, tuple[object, str, str, Any]] = {
    # key: on the command line, in a variable, in TOML, in JoinOptions
    "name": ("n1", "n1", '"n1"', "n1"),
    "region": ("eu", "eu", '"eu"', "eu"),
    "zone": ("z", "z", '"z"', "z"),
    "labels": (["a=1", "b="], "a=1, b=", '{ a = "1", b = "" }', (("a", "1"), ("b", ""))),
    "models": ("m", "m", '"m"', "m"),
    "models_poll": ("7.5", "7.5", "7.5", 7.5),
    "listen": ("[::1]", "[::1]:8471", '"[::1]:8471"', Address("::1", 8471)),
    "advertise": (
        ["h:1", "192.0.2.1"],
        "h:1,192.0.2.1",
        '["h:1", "192.0.2.1"]',
        (Address("h", 1), Address("192.0.2.1", 0)),
    ),
    "mdns": (False, "no", "false", False),
    "mdns_interfaces": (["10.0.0.1", "::1"], "10.0.0.1,::1", '["10.0.0.1", "::1"]', ("10.0.0.1", "::1")),
    "profile": ("wan", "WAN", '"wan"', "wan"),
    "http": ("0.0.0.0:80", "0.0.0.0:80", '"0.0.0.0:80"', Address("0.0.0.0", 80)),
    "grpc": ("0.0.0.0:81", "0.0.0.0:81", '"0.0.0.0:81"', Address("0.0.0.0", 81)),
    "shared_memory": (True, "on", "true", True),
    "triton_ports": (True, "on", "true", True),
    "allow_hosts": (["A.example"], "a.example", '["a.example"]', ("a.example",)),
    "require_key": (True, "on", "true", True),
    "cors_origins": (
        ["https://A.example", "*"],
        "https://a.example,*",
        '["https://a.example", "*"]',
        ("https://a.example", "*"),
    ),
    "allow_outbound": (["10.0.0.0/8", "::1"], "10.0.0.0/8,::1", '["10.0.0.0/8", "::1"]', ("10.0.0.0/8", "::1/128")),
    "access_log": ("a.log", "a.log", '"a.log"', "a.log"),
    "relay": (False, "off", "false", False),
    "decision_log": ("d.log", "d.log", '"d.log"', "d.log"),
    "tls_cert": ("c.pem", "c.pem", '"c.pem"', "c.pem"),
    "tls_key": ("k.pem", "k.pem", '"k.pem"', "k.pem"),
    "max_memory": ("8G", "8GiB", "8589934592", 8 * 2**30),
    "response_cache": ("256M", "256M", "268435456", 256 * 2**20),
    "max_disk": ("50%", "50%", '"50%"', 0.5),
    "max_cpus": ("4", "4", "4", 4),
    "nice": ("10", "10", "10", 10),
    "only_on_mains": (True, "on", "true", True),
    "max_temperature": ("75.5", "75.5", "75.5", 75.5),
    "cost": ("2.5", "2.5", "2.5", 2.5),
    "allow_code": (True, "on", "true", True),
    "log_level": ("debug", "debug", '"debug"', "debug"),
    "log_format": ("json", "json", '"json"', "json"),
}  # fmt: skip

PATHS = {"models", "access_log", "decision_log", "tls_cert", "tls_key"}
PARTNER = {"tls_cert": "tls_key", "tls_key": "tls_cert"}  # neither works alone


def test_every_setting_has_a_real_value_here() -> None:
    assert set(REAL) == set(FIELDS)


@pytest.fixture(params=sorted(REAL))
def key(request: pytest.FixtureRequest, place: Place) -> str:
    for folder in (place.work, place.data):
        (folder / "m").mkdir()
    return str(request.param)


def check(place: Place, key: str, options: JoinOptions, folder: Any = None) -> None:
    wanted = REAL[key][3]
    if key in PATHS:
        wanted = str((folder or place.work) / wanted)
    assert getattr(options, attribute_of(FIELDS[key])) == wanted
    assert options.region_chosen == (key == "region")
    others = {it.name for it in fields(JoinOptions)}
    others -= {"chosen", "region_chosen", attribute_of(FIELDS[key])}
    plain = place_without_choices(place)
    for other in others - {PARTNER.get(key)}:
        assert getattr(options, other) == getattr(plain, other), other


def place_without_choices(place: Place) -> JoinOptions:
    for path in (place.work / ".env", place.data / "config.toml", place.data / "options"):
        path.unlink(missing_ok=True)
    place.environ.clear()
    return place.options()


def keys_of(key: str) -> list[str]:
    return [key, PARTNER[key]] if key in PARTNER else [key]


def test_the_command_line_reaches_the_options_and_is_kept(place: Place, key: str) -> None:
    options = place.options({each: REAL[each][0] for each in keys_of(key)})
    place.keep(options.chosen)
    again = place.options()
    assert again == options
    assert again.chosen != Chosen()
    check(place, key, again)


def test_a_variable_reaches_the_options_and_is_not_kept(place: Place, key: str) -> None:
    place.environ |= {FIELDS[each].variable: REAL[each][1] for each in keys_of(key)}
    options = place.options()
    assert options.chosen == Chosen()
    check(place, key, options)


def test_a_variable_of_the_env_file_reaches_the_options(place: Place, key: str) -> None:
    place.env_file("".join(f'{FIELDS[it].variable}="{REAL[it][1]}"\n' for it in keys_of(key)))
    options = place.options()
    assert options.chosen == Chosen()
    check(place, key, options)


def test_the_toml_file_reaches_the_options_with_paths_from_its_folder(
    place: Place, key: str
) -> None:
    place.toml("".join(f"{each} = {REAL[each][2]}\n" for each in keys_of(key)))
    options = place.options()
    assert options.chosen == Chosen()
    check(place, key, options, place.data)


BESIDE = {"probe_interval_s": 9.0, "probe_timeout_s": 0.1, "late_timer_s": 0.1}
"""Values of membership with which every other value of the WAN preset is possible."""


@pytest.mark.parametrize("source", ["command line", "kept", "environment", ".env", "config.toml"])
@pytest.mark.parametrize("name", [it.name for it in fields(MembershipConfig)])
def test_every_value_of_membership_can_be_chosen_in_every_place(
    place: Place, name: str, source: str
) -> None:
    value = getattr(WAN, name)
    beside = {key: each for key, each in BESIDE.items() if key != name}
    lines = [f"{key} = {each}" for key, each in beside.items()]
    lines += [f"{name} = {value}"] if source == "config.toml" else []
    place.toml("\n".join(["profile = 'wan'", "[membership]", *lines]))
    variable = f"MESHNODE_MEMBERSHIP_{name.upper()}"
    typed = [f"{name}={value}"] if source in ("command line", "kept") else None
    if source == "environment":
        place.environ[variable] = str(value)
    elif source == ".env":
        place.env_file(f"{variable}={value}\n")
    options = place.options(None, typed)
    if source == "kept":
        place.keep(options.chosen)
        options = place.options()
    assert options.membership == beside | {name: value}
    assert type(options.membership[name]) is type(value)
    assert membership_config(options) == with_overrides("wan", beside | {name: value})


PRECEDENCE = ("command line", "environment", ".env", "config.toml", "kept")
KINDS: dict[str, list[tuple[str, Any]]] = {
    # one setting of each kind: text that is valid in each place, and its value
    "region": [(f"r{i}", f"r{i}") for i in range(5)],
    "labels": [(f"k={i}", (("k", str(i)),)) for i in range(5)],
    "listen": [(f"h:{i}", Address("h", i)) for i in range(5)],
    "advertise": [(f"h:{i + 1}", (Address("h", i + 1),)) for i in range(5)],
    "allow_hosts": [(f"h{i}", (f"h{i}",)) for i in range(5)],
    "mdns_interfaces": [(f"10.0.0.{i}", (f"10.0.0.{i}",)) for i in range(5)],
    "max_memory": [(f"{i + 1}G", (i + 1) * 2**30) for i in range(5)],
    "max_cpus": [(str(i + 1), i + 1) for i in range(5)],
    "max_temperature": [(f"5{i}.5", 50.5 + i) for i in range(5)],
    "log_level": [("info", "info"), ("error", "error"), ("debug", "debug")] * 2,
    "only_on_mains": [("true", True), ("false", False)] * 3,
}


def put(place: Place, source: str, key: str, text: str) -> dict[str, object]:
    """Choose a value in one place; return what the command line must say."""
    variable = FIELDS[key].variable
    match source:
        case "command line":
            return {key: text if key not in ("labels", "advertise") else [text]}
        case "environment":
            place.environ[variable] = text
        case ".env":
            place.env_file(f"{variable}='{text}'\n")
        case "config.toml":
            place.toml(f'{key} = "{text}"\n')
        case _:
            is_list = FIELDS[key].default == ()
            kept: Any = (text,) if is_list else text == "true" if key == "only_on_mains" else text
            place.keep(Chosen(**{key: kept}))
    return {}


@pytest.mark.parametrize("lower", range(1, 5))
@pytest.mark.parametrize("key", sorted(KINDS))
def test_of_two_places_the_higher_one_counts(place: Place, key: str, lower: int) -> None:
    for higher in range(lower):
        values = put(place, PRECEDENCE[lower], key, KINDS[key][lower][0])
        values |= put(place, PRECEDENCE[higher], key, KINDS[key][higher][0])
        loaded = place.load(values)
        setting = loaded.settings.by_key[key]
        assert loaded.settings.faults == ()
        assert setting.value == KINDS[key][higher][1]
        assert [value for _, value in setting.overridden] == [KINDS[key][lower][1]]
        place_without_choices(place)


def test_the_source_of_each_value_is_named_as_a_person_would(place: Place) -> None:
    place.environ["MESHNODE_REGION"] = "eu"
    env_file = place.env_file("MESHNODE_ZONE=z\n")
    toml = place.toml("nice = 3\n")
    place.keep(Chosen(name="n"))
    settings = place.load({"log_level": "debug"}).settings.by_key
    named = {key: settings[key].source.named(settings[key].field) for key in FIELDS}
    assert named["log_level"] == "command line"
    assert named["region"] == "environment MESHNODE_REGION"
    assert named["zone"] == f".env ({env_file})"
    assert named["nice"] == f"config.toml ({toml})"
    assert named["name"] == "kept from an earlier join"
    assert named["http"] == "default"


def test_editing_the_config_file_is_enough_where_nothing_else_was_chosen(place: Place) -> None:
    place.toml('region = "a"\n')
    assert place.options().region == "a"
    place.toml('region = "b"\n')
    assert place.options().region == "b"


def test_an_empty_variable_counts_as_missing(place: Place) -> None:
    place.environ["MESHNODE_REGION"] = ""
    place.toml('region = "a"\n')
    assert place.options().region == "a"


@pytest.mark.parametrize(
    ("key", "given", "toml", "none"),
    [
        ("labels", [""], '"a=1"', ()),
        ("models", "", '"m"', None),
        ("max_memory", "", '"8G"', None),
        ("max_cpus", "none", "2", None),
        ("advertise", ["none"], '["h:1"]', ()),
        ("http", "off", '"h:1"', None),
        ("zone", "", '"z"', ""),
    ],
)
def test_a_lower_place_can_be_taken_back(
    place: Place, key: str, given: object, toml: str, none: object
) -> None:
    (place.data / "m").mkdir()
    place.toml(f"{key} = {toml}\n")
    options = place.options({key: given})
    assert getattr(options, attribute_of(FIELDS[key])) == none
    place.keep(options.chosen)
    (place.data / "config.toml").unlink()
    assert place.options() == options


def test_what_membership_options_chose_is_replaced_as_a_whole(place: Place) -> None:
    place.keep(place.options(None, ["gossip_fanout=5", "dial_limit=8"]).chosen)
    assert place.options().membership == {"gossip_fanout": 5, "dial_limit": 8}
    assert place.options(None, ["dial_limit=9"]).chosen.membership == {"dial_limit": "9"}
    assert place.options(None, [""]).chosen.membership == {}


def test_a_share_of_the_memory_is_kept_as_a_share(place: Place) -> None:
    options = place.options({"max_memory": "50%"})
    assert options.chosen.max_memory == "50%"
    assert options.max_memory_bytes is not None
    assert options.max_memory_bytes > 0


def test_the_profile_chooses_the_preset(place: Place) -> None:
    assert membership_config(place.options()) == LAN
    assert membership_config(place.options({"profile": "wan"})) == WAN


def test_files_can_be_named_on_the_command_line_in_variables_and_in_the_env_file(
    place: Place,
) -> None:
    (place.work / "a.toml").write_text('region = "a"\n')
    (place.work / "b.toml").write_text('region = "b"\n')
    (place.work / "c.env").write_text("MESHNODE_CONFIG=b.toml\nMESHNODE_ZONE=z\n")
    place.toml('region = "not read"\n')

    def region(config: str | None = None, env_file: str | None = None) -> Any:
        return place.load(config=config, env_file=env_file).settings.by_key["region"].value

    assert region(config="a.toml") == "a"
    assert region(env_file="c.env") == "b"
    place.environ["MESHNODE_ENV_FILE"] = "c.env"
    assert region() == "b"
    place.environ["MESHNODE_CONFIG"] = "a.toml"
    assert region() == "a"
    assert region(config="b.toml") == "b"


def test_the_data_folder_comes_from_the_env_file_as_well(place: Place) -> None:
    from meshnode.client.paths import data_dir
    from meshnode.settings.load import Given, load

    place.toml('region = "there"\n')
    place.env_file(f"MESHNODE_DATA_DIR={place.data}\n")
    loaded = load(Given({}), place.environ, place.work, data_dir)
    assert loaded.data_dir == place.data
    assert loaded.settings.by_key["region"].value == "there"
    place.environ["MESHNODE_DATA_DIR"] = str(place.work)
    assert load(Given({}), place.environ, place.work, data_dir).data_dir == place.work


def test_a_url_of_models_is_taken_as_it_is(place: Place) -> None:
    url = "s3://bucket/models"
    assert place.options({"models": url}).models == url

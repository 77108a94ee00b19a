"""Whether settings fit this machine: its addresses, and the files that they name.

A start refuses what is found here, before it does anything; `meshnode config check` tells it. What may
change from one moment to the next, such as a port that is in use, is not among it: that a start finds out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.errors import ConfigError
from meshnode.net.listening import check_advertised, check_host_is_here, usable
from meshnode.settings.layers import Fault, Kind, Setting, Settings
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Callable


def on_this_machine(settings: Settings) -> Settings:
    """Return the settings with what does not fit this machine among their faults.

    Settings that are wrong by themselves are not looked at again. Blocks while names are looked up.
    """
    wrong = {fault.key for fault in settings.faults}
    known = {key: each for key, each in settings.by_key.items() if key not in wrong}
    found = [
        _fault(error, [known[key] for key in keys])
        for keys, check in _CHECKS.items()
        if known.keys() >= set(keys) and (error := _error(check, known)) is not None
    ]
    return replace(settings, faults=(*settings.faults, *found)) if found else settings


def _listen(settings: dict[str, Setting]) -> None:
    check_host_is_here("--listen", usable(settings["listen"].value))


def _http(settings: dict[str, Setting]) -> None:
    if settings["http"].value is not None:
        check_host_is_here("--http", settings["http"].value)


def _advertise(settings: dict[str, Setting]) -> None:
    check_advertised(settings["advertise"].value, usable(settings["listen"].value))


def _interfaces(settings: dict[str, Setting]) -> None:
    for host in settings["mdns_interfaces"].value if settings["mdns"].value else ():
        try:
            check_host_is_here("--mdns-interface", Address(host, 0))
        except ConfigError:
            raise ConfigError(
                f"--mdns-interface {host} is no address of this machine; give the IP address that it has "
                "in the network where nodes shall be found"
            ) from None


def _tls(settings: dict[str, Setting]) -> None:
    certificate, key = settings["tls_cert"].value, settings["tls_key"].value
    if settings["http"].value is None or certificate is None or key is None:
        return
    from meshnode.gateway.tls_files import load_pair  # only where it is asked for

    load_pair(Path(certificate), Path(key))


_CHECKS: dict[tuple[str, ...], Callable[[dict[str, Setting]], None]] = {
    ("listen",): _listen,
    ("http",): _http,
    ("advertise", "listen"): _advertise,
    ("mdns_interfaces", "mdns"): _interfaces,
    ("tls_cert", "tls_key", "http"): _tls,
}
"""What is checked, by the settings that it needs; what is wrong is the first one's fault."""


def _error(check: Callable[[dict[str, Setting]], None], settings: dict[str, Setting]) -> str | None:
    try:
        check(settings)
    except ConfigError as error:
        return str(error)
    return None


def _fault(message: str, about: list[Setting]) -> Fault:
    """Tell of settings as they are spelled where they are from, with the file."""
    for each in about:
        message = message.replace(
            each.field.option[0].partition("/")[0], each.source.spelled(each.field)
        )
    named = next((each for each in about if each.source.spelled(each.field) in message), about[0])
    if named.source.kind in (Kind.KEPT, Kind.DEFAULT):
        return Fault(message, None, named.field.key)  # that file is as it should be
    return Fault(message, named.source, named.field.key)

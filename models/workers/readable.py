"""Which files a model's process may read: a list of what it needs, since Landlock knows only what is allowed."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_MODEL_LINKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SYSTEM: Final = (
    "/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/opt", "/proc", "/sys", "/nix/store",
    "/gnu/store", "/snap", "/var/lib/ca-certificates", "/var/cache/fontconfig", "/run/systemd/resolve",
    "/run/resolvconf", "/run/NetworkManager/resolv.conf", "/run/opengl-driver", "/run/current-system",
)  # fmt: skip
"""Programs, libraries and what the system tells of itself; names of servers, certificates, drivers."""

_SECRET_SETTINGS: Final = frozenset(
    {
        "ssh", "sudoers.d", "NetworkManager", "wireguard", "openvpn", "ppp", "kubernetes", "rancher", "ipsec.d",
        "wpa_supplicant", "netplan", "letsencrypt", "docker", "credstore", "credstore.encrypted",
    }
)  # fmt: skip
"""Folders of /etc that everybody may enter, but whose files a node that runs as root could read."""

_FOLDER_VARIABLES: Final = (
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_MODULES_CACHE",
    "TRANSFORMERS_CACHE", "TORCH_HOME", "TORCH_EXTENSIONS_DIR", "KERAS_HOME", "CUDA_HOME", "CUDA_PATH",
    "CUDA_CACHE_PATH", "NVIDIA_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "VIRTUAL_ENV",
    "POPART_CACHE_DIR", "LD_LIBRARY_PATH",
)  # fmt: skip
"""Variables with which the node's owner names folders of libraries and weights."""

_HUB_VARIABLE: Final = "HF_HOME"
_HUB_SECRETS: Final = frozenset({"token", "stored_tokens"})


def readable_by_code(
    model: Path, version: int, protected: Path | None, variables: Mapping[str, str]
) -> Iterator[Path]:
    """Yield what a model's process may read besides its own folders; Linux.

    Args:
        model: Its folder. What links in it lead to, which its owner made, is included.
        version: Its version; a folder of that name lies in the model's, whose files it may import.
        protected: The node's data folder; left out of all but the model.
        variables: The process's own.
    """
    for name in _SYSTEM:
        yield from _without(protected, Path(name))
    yield from _settings()
    for path in (*_interpreter(), *_named(variables)):
        if not _covers_home(path):
            yield from _without(protected, path)
    whole = model.parent if model.name == str(version) else model
    for path in (whole, *_links(whole)):
        if not _covers_home(path):
            yield from _without(protected, path)
    yield model


def all_but(protected: Path, below: Path = Path("/")) -> Iterator[Path]:
    """Yield paths that together are everything in a folder but another one that lies in it.

    These are the neighbours of the inner folder and of all folders above it. Links are left out: what they
    lead to is there by its own path, unless it is the protected folder.
    """
    inner = protected.resolve()
    for outer in inner.parents:
        if not outer.is_relative_to(below):
            return
        try:
            with os.scandir(outer) as entries:
                for entry in entries:
                    if Path(entry.path) != inner and not entry.is_symlink():
                        yield Path(entry.path)
        except OSError:
            pass
        inner = outer


def _without(protected: Path | None, folder: Path) -> Iterator[Path]:
    folder = folder.resolve()
    inner = protected.resolve() if protected else None
    if inner is not None and folder.is_relative_to(inner):
        return
    if inner is not None and inner.is_relative_to(folder):
        yield from all_but(inner, folder)
    else:
        yield folder


def _settings() -> Iterator[Path]:
    """Yield of /etc what everybody may read: root's process could read passwords and keys as well."""
    try:
        with os.scandir("/etc") as entries:
            for entry in entries:
                mode = entry.stat().st_mode if _leads_somewhere(entry) else 0
                if mode & stat.S_IROTH and entry.name not in _SECRET_SETTINGS:
                    yield Path(entry.path)
    except OSError:
        return


def _leads_somewhere(entry: os.DirEntry[str]) -> bool:
    return Path(entry.path).exists()


def _interpreter() -> Iterator[Path]:
    import meshnode

    for each in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *sys.path):
        if each:
            yield Path(each)
    yield Path(str(meshnode.__file__)).resolve().parent.parent
    for name, module in [*sys.modules.items()]:
        if name.startswith("__editable___"):  # where setuptools finds packages that are worked on
            yield from map(Path, getattr(module, "MAPPING", {}).values())


def _named(variables: Mapping[str, str]) -> Iterator[Path]:
    for name in _FOLDER_VARIABLES:
        for each in variables.get(name, "").split(os.pathsep):
            if Path(each).is_absolute():
                yield Path(each)
    hub = Path(variables.get(_HUB_VARIABLE) or ".")
    if hub.is_absolute() and hub.is_dir():
        yield from (each for each in hub.iterdir() if each.name not in _HUB_SECRETS)


def _links(model: Path) -> Iterator[Path]:
    found = 0
    for folder, folders, files in os.walk(model):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                yield path.resolve()
                found += 1
                if found == MAX_MODEL_LINKS:
                    return


def _covers_home(path: Path) -> bool:
    """Whether it is the user's home folder or holds it: nobody means that who names a folder of libraries."""
    home = _home()
    return home is not None and home.is_relative_to(path.resolve())


def _home() -> Path | None:
    """Return the user's home folder, not the process's own, which its variable names."""
    import pwd

    try:
        found = Path(pwd.getpwuid(os.getuid()).pw_dir).resolve()
    except KeyError:
        return None
    return None if found == Path("/") else found

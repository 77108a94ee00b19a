"""Folders of models that are made of what a client of the repository sends: a configuration, or files as well."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import InvalidRequest
from meshnode.limits import MAX_MODEL_CONFIG_BYTES
from meshnode.models.repository.config_messages import messages
from meshnode.models.repository.scanning import CONFIG_FILE
from meshnode.models.repository.spellings import ARCHIVE_MANIFEST, ARCHIVE_SUFFIX
from meshnode.models.repository.upload_paths import check_upload_paths

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from meshnode.models.manifest import Manifest

_WHOLE_NUMBER: Final = re.compile(r"([1-9][0-9]{0,8})(?:\.0+)*")


class _ArchivedModel(msgspec.Struct, rename="camel"):
    model_version: str = ""


class _ArchiveManifest(msgspec.Struct):
    model: _ArchivedModel


_BESIDE: Final = ("warmup/", "initial_state/")
"""Files of a version that lie in the model's own folder, beside those of its versions."""


def archive_version(path: Path) -> int | None:
    """Return the number in the manifest of a TorchServe archive, such as 5 for `5.0`; None if it has no whole one.

    It blocks. What is no archive has none; whether it is one that can run is found out elsewhere.
    """
    if not path.name.endswith(ARCHIVE_SUFFIX) or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive, archive.open(ARCHIVE_MANIFEST) as member:
            read = msgspec.json.decode(member.read(MAX_MODEL_CONFIG_BYTES), type=_ArchiveManifest)
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, msgspec.MsgspecError):
        return None
    found = _WHOLE_NUMBER.fullmatch(read.model.model_version)
    return int(found[1]) if found else None


def config_text(name: str, document: str) -> str:
    """Return a configuration as `config.pbtxt` has it.

    Args:
        name: The model's; a configuration of another name is refused.
        document: JSON of a `ModelConfig`.

    Raises:
        InvalidRequest: if it is none.
        ModelError: if the messages of configurations are not installed.
    """
    kinds = messages()
    from google.protobuf import json_format, text_format

    config = kinds.ModelConfig()
    try:
        json_format.Parse(document, config)
    except json_format.ParseError as error:
        raise InvalidRequest(f"the parameter 'config' is no model configuration: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the parameter 'config' is not JSON: {error}") from None
    if config.name and config.name != name:
        raise InvalidRequest(
            f"the parameter 'config' is of the model {config.name!r}, and {name!r} is to be loaded"
        )
    text: str = text_format.MessageToString(config)
    return text


def written(scratch: Path, name: str, config: str, files: Mapping[str, bytes]) -> Path:
    """Write a model's files and its configuration; return its folder. It blocks.

    Args:
        scratch: An empty folder.
        name: The model's.
        config: Text of its `config.pbtxt`.
        files: Contents by `VERSION/FILE`.

    Raises:
        InvalidRequest: if a file's name is refused.
    """
    check_upload_paths([f"{name}/{path}" for path in files])
    folder = scratch / name
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (folder / CONFIG_FILE).write_text(config, encoding="utf-8")
    return folder


def laid_out(scratch: Path, manifest: Manifest, files: Path, config: str) -> Path:
    """Lay out a version's files below another configuration; return the model's folder. It blocks.

    Args:
        scratch: An empty folder.
        manifest: The version.
        files: Where its files are.
        config: Text of its new `config.pbtxt`.
    """
    folder = scratch / manifest.model
    version = folder / str(manifest.version)
    version.mkdir(parents=True)
    for file in manifest.files:
        target = (folder if file.path.startswith(_BESIDE) else version) / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(files / file.path, target)
        except OSError:
            shutil.copyfile(files / file.path, target)
    (folder / CONFIG_FILE).write_text(config, encoding="utf-8")
    return folder

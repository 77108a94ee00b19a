"""Which files a model takes, and as what: pictures, recordings and the like that clients send as they are.

| a model | takes |
|---|---|
| whose configuration has `meshnode_upload`, such as `image=image/png,image/jpeg;mask=image/png` | these, and nothing else |
| that takes JSON documents and has types (Pydantic) | members of its request that are bytes: `contentMediaType` says of which media types |
| that takes tensors | pictures for inputs that have their shape, anything for inputs of BYTES |

A model that takes JSON documents is given a file as base64. One whose HTTP routes are its own reads bodies by itself, and
so does an archive's handler.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshnode.errors import ModelError
from meshnode.limits import MAX_UPLOAD_INPUTS
from meshnode.models.execution import Interface
from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meshnode.models.manifest import Manifest, TensorSpec

UPLOAD_PARAMETER: Final = "meshnode_upload"
"""Parameter of a `config.pbtxt` that says which files a model takes."""

ANYTHING: Final = "*/*"
PICTURES: Final = "image/*"

_MEDIA_TYPE: Final = re.compile(
    r"(\*/\*|[a-z0-9][a-z0-9!#$&^_.+-]*/(\*|[a-z0-9][a-z0-9!#$&^_.+-]*))"
)
_PICTURE_TYPES: Final = frozenset({DataType.FP16, DataType.FP32, DataType.FP64, DataType.UINT8})
_CHANNELS: Final = (1, 3)
_ENCODED: Final = ("base64", "binary", "base64url")


class Kind(StrEnum):
    """As what a model takes a file."""

    BASE64 = "base64"  # a member of a JSON document
    BYTES = "bytes"  # one element of a BYTES tensor
    PICTURE = "picture"  # a tensor of its points


class Upload(NamedTuple):
    """One input that takes files.

    Attributes:
        name: The input's, or the member's of a document.
        media_types: Which files; `image/*` is every picture.
        kind: As what.
        several: Whether it takes a list of them.
    """

    name: str
    media_types: tuple[str, ...]
    kind: Kind
    several: bool = False

    def takes(self, media_type: str) -> bool:
        """Whether it takes files of a media type (lower case, without parameters)."""
        family = media_type.partition("/")[0] + "/*"
        return any(each in (ANYTHING, media_type, family) for each in self.media_types)


def read_uploads(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Read `NAME=TYPE,TYPE;NAME=TYPE` as names and media types.

    Raises:
        ModelError: saying what was expected.
    """
    found: dict[str, tuple[str, ...]] = {}
    for each in filter(str.strip, text.split(";")):
        name, _, types = each.partition("=")
        media_types = tuple(part.strip().lower() for part in types.split(",") if part.strip())
        name = name.strip()
        if (
            not name
            or name in found
            or not media_types
            or not all(map(_MEDIA_TYPE.fullmatch, media_types))
        ):
            raise ModelError(
                f"{each.strip()[:60]!r} does not say which files an input takes; write NAME=TYPE,TYPE;..., such as "
                "image=image/png,image/jpeg"
            )
        found[name] = media_types
    if len(found) > MAX_UPLOAD_INPUTS or any(
        len(types) > MAX_UPLOAD_INPUTS for types in found.values()
    ):
        raise ModelError(
            f"at most {MAX_UPLOAD_INPUTS} inputs take files, of at most {MAX_UPLOAD_INPUTS} types each"
        )
    return tuple(found.items())


def uploads_of(manifest: Manifest) -> tuple[Upload, ...]:
    """Return the inputs of a model that take files; none for one that reads bodies by itself."""
    said = dict(manifest.execution.parameters).get(UPLOAD_PARAMETER)
    interface = manifest.execution.interface
    if interface is Interface.HTTP:
        return ()
    if said is not None:
        return tuple(_said(manifest, said))
    if interface is Interface.JSON:
        return tuple(_of_schema(request_schema(manifest)))
    return tuple(_of_tensors(manifest.inputs))


def request_schema(manifest: Manifest) -> Mapping[str, Any]:
    """Return the JSON schema of a model's requests; empty without one."""
    try:
        schemas = msgspec.json.decode(manifest.execution.schema or "{}")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}  # another node's words
    found = schemas.get("request") if isinstance(schemas, dict) else None
    return found if isinstance(found, dict) else {}


def _said(manifest: Manifest, text: str) -> Iterator[Upload]:
    try:
        said = read_uploads(text)
    except ModelError:
        return  # checked where the configuration is read; this came from elsewhere
    specs = {spec.name: spec for spec in manifest.inputs}
    for name, media_types in said:
        if manifest.execution.interface is Interface.JSON:
            yield Upload(name, media_types, Kind.BASE64)
        elif (spec := specs.get(name)) is not None and (kind := _kind(spec)) is not None:
            yield Upload(name, media_types, kind)


def _of_tensors(specs: tuple[TensorSpec, ...]) -> Iterator[Upload]:
    for spec in specs:
        kind = _kind(spec)
        if kind is not None:
            yield Upload(spec.name, (PICTURES if kind is Kind.PICTURE else ANYTHING,), kind)


def _kind(spec: TensorSpec) -> Kind | None:
    if spec.datatype is DataType.BYTES:
        return Kind.BYTES if all(size in (-1, 1) for size in spec.shape) else None
    return Kind.PICTURE if _is_picture(spec) else None


def _is_picture(spec: TensorSpec) -> bool:
    """Whether an input has the shape of pictures, as `meshnode.models.images` reads them."""
    shape = spec.shape
    if spec.datatype not in _PICTURE_TYPES or not shape or shape[0] not in (-1, 1):
        return False
    if len(shape) == 3:
        return True
    return len(shape) == 4 and (shape[1] in _CHANNELS or shape[3] in _CHANNELS)


def _of_schema(schema: Mapping[str, Any]) -> Iterator[Upload]:
    members = schema.get("properties")
    for name, member in members.items() if isinstance(members, dict) else ():
        for several, form in _forms(member):
            media = form.get("contentMediaType")
            is_encoded = form.get("contentEncoding") in _ENCODED or form.get("format") in _ENCODED
            if form.get("type") != "string" or not (is_encoded or isinstance(media, str)):
                continue
            types = tuple(each.strip().lower() for each in str(media or ANYTHING).split(","))
            yield Upload(str(name), types, Kind.BASE64, several)
            break


def _forms(member: object) -> Iterator[tuple[bool, Mapping[str, Any]]]:
    """Yield what a member may be, with whether it is an element of a list: optional ones have alternatives."""
    if not isinstance(member, dict):
        return
    alternatives = member.get("anyOf")
    outer = {key: value for key, value in member.items() if key.startswith("content")}
    for each in alternatives if isinstance(alternatives, list) else [member]:
        if not isinstance(each, dict):
            continue
        items = each.get("items")
        if each.get("type") == "array" and isinstance(items, dict):
            yield True, {**outer, **items}
        else:
            yield False, {**outer, **each}

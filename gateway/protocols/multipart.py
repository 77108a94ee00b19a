"""`multipart/form-data` (RFC 7578): what forms and `curl -F` send, read whole.

    --BOUNDARY CRLF  header lines CRLF  CRLF  data CRLF   ... again ...   --BOUNDARY-- rest

The data of a part is a view of the body: nothing is copied. What real clients send is taken: line ends of the headers
may be bare LF, names may be quoted or not, file names may come as `filename*` (RFC 5987) and are never used as paths.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from meshnode.errors import InvalidRequest, TooLarge
from meshnode.limits import MAX_FORM_HEADER_BYTES, MAX_FORM_PARTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.types import Buffer

FORM_DATA: Final = "multipart/form-data"

_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER: Final = re.compile(
    r';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)'
)
_QUOTED: Final = re.compile(r"\\(.)")


class Part(NamedTuple):
    """One field or file of a form.

    Attributes:
        name: Of the field.
        filename: As the client says; empty for what is no file.
        content_type: Lower case, without parameters; `text/plain` where the client says nothing.
        data: Its bytes.
    """

    name: str
    filename: str
    content_type: str
    data: memoryview

    @property
    def is_file(self) -> bool:
        """Whether the client sent it as a file: with a name of one, or a type other than text."""
        return bool(self.filename) or self.content_type != "text/plain"


def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type header, in lower case and without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def parameter(header: str, name: str) -> str:
    """Return a parameter of a header such as Content-Type, or the empty text; of several the first."""
    for found in _PARAMETER.finditer(header):
        if found[1].lower() == name:
            value = found[2].strip()
            return _QUOTED.sub(r"\1", value[1:-1]) if value.startswith('"') else value
    return ""


def parse(content_type: str, body: Buffer) -> list[Part]:
    """Return the parts of a form.

    Args:
        content_type: The request's Content-Type, which names the boundary.
        body: The whole body.

    Raises:
        InvalidRequest: if it is no form.
        TooLarge: if it has too many parts, or one with too long headers.
    """
    boundary = parameter(content_type, "boundary")
    if not _BOUNDARY.fullmatch(boundary):
        raise InvalidRequest(
            "the Content-Type of a form names its boundary, of at most 70 characters; this one names none"
        )
    view = memoryview(body).cast("B")
    data = bytes(view)  # a copy for searching only: views cannot be searched
    return [
        _part(data, view, start, end) for start, end in _sections(data, b"--" + boundary.encode())
    ]


def _sections(data: bytes, mark: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each part begins and ends, headers included."""
    begin = 0 if data.startswith(mark) else _after(data, b"\n" + mark, 0)
    if begin < 0:
        raise InvalidRequest(
            "the form does not begin with the boundary that its Content-Type names"
        )
    position, count = begin + (0 if begin == 0 else 1) + len(mark), 0
    while data[position : position + 2] != b"--":
        count += 1
        if count > MAX_FORM_PARTS:
            raise TooLarge(
                f"the form has more than {MAX_FORM_PARTS} parts; send fewer in one request"
            )
        start = data.find(b"\n", position)
        end = _after(data, b"\r\n" + mark, start - 1 if start > 0 else 0)
        if start < 0 or data[position:start].strip() or end < 0:
            raise InvalidRequest("the form breaks off: its last boundary is missing")
        yield start + 1, end
        position = end + 2 + len(mark)


def _after(data: bytes, mark: bytes, start: int) -> int:
    """Return where a boundary begins that is a whole one, not the beginning of a longer word; -1 for none."""
    position = data.find(mark, start)
    while position >= 0:
        follows = data[position + len(mark) : position + len(mark) + 2]
        if follows in (b"--", b"\r\n") or follows[:1] in (b"\n", b" ", b"\t"):
            return position
        position = data.find(mark, position + 1)
    return -1


def _part(data: bytes, view: memoryview, start: int, end: int) -> Part:
    headers, at = _headers(data, start, end)
    disposition = headers.get("content-disposition", "")
    name = parameter(disposition, "name")
    if media_type(disposition) != "form-data" or not name:
        raise InvalidRequest(
            'each part of a form has a header such as: Content-Disposition: form-data; name="file"'
        )
    filename = _extended(parameter(disposition, "filename*")) or parameter(disposition, "filename")
    content_type = media_type(headers.get("content-type", "")) or "text/plain"
    return Part(name, filename, content_type, view[at : max(at, end)])


def _headers(data: bytes, start: int, end: int) -> tuple[dict[str, str], int]:
    """Return a part's headers, names in lower case, and where its data begins."""
    headers: dict[str, str] = {}
    position = start
    while True:
        line_end = data.find(b"\n", position, min(end + 2, start + MAX_FORM_HEADER_BYTES))
        if line_end < 0:
            if end - start >= MAX_FORM_HEADER_BYTES:
                raise TooLarge(
                    f"a part of the form has more than {MAX_FORM_HEADER_BYTES} bytes of headers"
                )
            raise InvalidRequest(
                "a part of the form has no empty line between its headers and its data"
            )
        line = data[position:line_end].rstrip(b"\r")
        position = line_end + 1
        if not line:
            return headers, position
        key, colon, value = line.decode("utf-8", "replace").partition(":")
        if not colon:
            raise InvalidRequest(f"a header of the form's parts is malformed: {key[:40]!r}")
        headers.setdefault(key.strip().lower(), value.strip())


def _extended(value: str) -> str:
    """Return a value as RFC 5987 writes it: `UTF-8''na%C3%AFve.png`."""
    charset, _, rest = value.partition("'")
    if not rest or charset.lower() not in ("utf-8", "iso-8859-1"):
        return ""
    return unquote_to_bytes(rest.partition("'")[2]).decode(charset, "replace")

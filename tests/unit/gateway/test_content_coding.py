"""gzip and deflate of whole bodies."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import InvalidRequest, TooLarge
from meshnode.gateway.protocols.content_coding import compress, decompress, wanted_coding

if TYPE_CHECKING:
    from meshnode.types import Buffer


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b"plain", mtime=0)),
        (" GZIP ", gzip.compress(b"plain", mtime=0)),
        ("x-gzip", gzip.compress(b"plain", mtime=0)),
        ("deflate", zlib.compress(b"plain")),
    ],
)
def test_a_compressed_body_becomes_what_it_was(coding: str, body: bytes) -> None:
    assert decompress(body, coding, 5) == b"plain"


def test_a_bomb_is_refused_without_being_unpacked() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 60_000
    with pytest.raises(TooLarge, match="1000 bytes when decompressed"):
        decompress(bomb, "gzip", 1000)


@pytest.mark.parametrize(
    ("coding", "body", "sentence"),
    [
        ("br", b"", "'br' is not supported"),
        ("gzip, gzip", b"", "not supported"),
        ("gzip", b"no gzip at all", "no valid gzip data"),
        ("gzip", gzip.compress(b"plain", mtime=0)[:-3], "cut off"),
        ("gzip", b"", "cut off"),
        ("deflate", zlib.compress(b"plain") + b"more", "bytes follow"),
        ("gzip", 2 * gzip.compress(b"plain", mtime=0), "bytes follow"),
    ],
)
def test_damaged_and_unknown_codings_are_refused(coding: str, body: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        decompress(body, coding, 1000)


@pytest.mark.parametrize(
    ("header", "coding"),
    [(None, ""), ("", ""), ("gzip", "gzip"), (" Deflate", "deflate"), ("gzip, deflate, br", "")],
)
def test_only_a_client_that_names_one_coding_gets_it(header: str | None, coding: str) -> None:
    assert wanted_coding(header) == coding


def test_parts_are_compressed_as_one_body() -> None:
    parts: list[Buffer] = [b"json", memoryview(b"tensor"), bytearray(b"more")]
    assert gzip.decompress(compress(parts, "gzip")) == b"jsontensormore"
    assert zlib.decompress(compress(parts, "deflate")) == b"jsontensormore"

"""Forms as clients send them: read whole, from the first byte to the last, and refused where they break off."""

from __future__ import annotations

import pytest

from meshnode.errors import InvalidRequest, TooLarge
from meshnode.gateway.protocols.multipart import Part, media_type, parameter, parse
from meshnode.limits import MAX_FORM_HEADER_BYTES, MAX_FORM_PARTS

TYPE = "multipart/form-data; boundary=XyZ"
CURL = (
    b'--XyZ\r\nContent-Disposition: form-data; name="file"; filename="cat.png"\r\n'
    b"Content-Type: image/png\r\n\r\n\x89PNG\r\n--not a boundary\r\n"
    b'\r\n--XyZ\r\nContent-Disposition: form-data; name="threshold"\r\n\r\n0.5\r\n--XyZ--\r\n'
)


def plain(parts: list[Part]) -> list[tuple[str, str, str, bytes]]:
    return [(each.name, each.filename, each.content_type, bytes(each.data)) for each in parts]


def test_files_and_fields_are_read_and_file_data_may_hold_what_looks_like_a_boundary() -> None:
    parts = parse(TYPE, CURL)
    assert plain(parts) == [
        ("file", "cat.png", "image/png", b"\x89PNG\r\n--not a boundary\r\n"),
        ("threshold", "", "text/plain", b"0.5"),
    ]
    assert [each.is_file for each in parts] == [True, False]


def test_a_form_that_breaks_off_anywhere_is_refused() -> None:
    end = CURL.rindex(b"--XyZ--") + len(b"--XyZ--")
    assert len(parse(TYPE, CURL[:end])) == 2
    for length in range(end):
        with pytest.raises(InvalidRequest):
            parse(TYPE, CURL[:length])


@pytest.mark.parametrize("before", [b"", b"\r\n", b"a preamble\r\n"])
@pytest.mark.parametrize("after", [b"", b"\r\n", b"\r\nan epilogue --XyZ"])
def test_what_stands_around_the_parts_does_not_count(before: bytes, after: bytes) -> None:
    body = before + b"--XyZ\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--XyZ--" + after
    assert plain(parse(TYPE, body)) == [("a", "", "text/plain", b"1")]


def test_a_boundary_that_begins_a_longer_word_is_none() -> None:
    body = (
        b"--XyZ\r\nContent-Disposition: form-data; name=a\r\n\r\n"
        b"1\r\n--XyZzz\r\n2\r\n--XyZ \r\nContent-Disposition: form-data; name=b\r\n\r\n\r\n--XyZ--"
    )
    assert plain(parse(TYPE, body)) == [
        ("a", "", "text/plain", b"1\r\n--XyZzz\r\n2"),
        ("b", "", "text/plain", b""),
    ]


def test_a_part_without_data_is_empty() -> None:
    body = b"--XyZ\r\nContent-Disposition: form-data; name=a\r\n\r\n--XyZ--"
    assert plain(parse(TYPE, body)) == [("a", "", "text/plain", b"")]


def test_a_form_without_parts_has_none() -> None:
    assert parse(TYPE, b"--XyZ--\r\n") == []


@pytest.mark.parametrize(
    ("header", "name", "value"),
    [
        ('form-data; name="a b"; filename=c.png', "name", "a b"),
        ("form-data; NAME=a", "name", "a"),
        (r'form-data; name="a\"b\\"; x=1', "name", 'a"b\\'),
        ('form-data; filename="name=no"; name=yes', "name", "yes"),
        ("form-data", "name", ""),
        ('multipart/form-data; boundary="a b"', "boundary", "a b"),
    ],
)
def test_parameters_of_headers_may_be_quoted(header: str, name: str, value: str) -> None:
    assert parameter(header, name) == value
    assert media_type("Image/PNG ; a=b") == "image/png"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("UTF-8''na%C3%AFve.png", "naïve.png"),
        ("iso-8859-1'de'%E4.png", "ä.png"),
        ("koi8-r''x", "plain.png"),
        ("nothing", "plain.png"),
    ],
)
def test_file_names_may_be_written_as_rfc_5987_has_it(said: str, name: str) -> None:
    head = f"--XyZ\r\nContent-Disposition: form-data; name=a; filename=plain.png; filename*={said}\r\n\r\n"
    (part,) = parse(TYPE, head.encode() + b"1\r\n--XyZ--")
    assert part.filename == name


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("multipart/form-data", CURL, "names its boundary"),
        ("multipart/form-data; boundary=" + "a" * 71, CURL, "names its boundary"),
        ("multipart/form-data; boundary=other", CURL, "does not begin with the boundary"),
        (TYPE, b"", "does not begin"),
        (TYPE, b"--XyZ\r\nContent-Type: a\r\n\r\n1\r\n--XyZ--", "Content-Disposition"),
        (
            TYPE,
            b"--XyZ\r\nContent-Disposition: form-data\r\n\r\n1\r\n--XyZ--",
            "Content-Disposition",
        ),
        (
            TYPE,
            b"--XyZ\r\nContent-Disposition: file; name=a\r\n\r\n1\r\n--XyZ--",
            "Content-Disposition",
        ),
        (TYPE, b"--XyZ\r\nno colon\r\n\r\n1\r\n--XyZ--", "malformed"),
        (TYPE, b"--XyZ\r\nContent-Disposition: form-data; name=a\r\n--XyZ--", "no empty line"),
        (TYPE, b"--XyZ trailing\r\n\r\n1\r\n--XyZ--", "breaks off"),
    ],
)
def test_what_is_no_form_is_refused(content_type: str, body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse(content_type, body)


def test_a_form_has_a_limited_number_of_parts_and_headers() -> None:
    part = b"--XyZ\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n"
    assert len(parse(TYPE, part * MAX_FORM_PARTS + b"--XyZ--")) == MAX_FORM_PARTS
    with pytest.raises(TooLarge, match="parts"):
        parse(TYPE, part * (MAX_FORM_PARTS + 1) + b"--XyZ--")
    long = b"--XyZ\r\nX: " + b"a" * MAX_FORM_HEADER_BYTES + b"\r\n\r\n1\r\n--XyZ--"
    with pytest.raises(TooLarge, match="headers"):
        parse(TYPE, long)

from __future__ import annotations

import pytest

from meshnode.sim.scenario.positions import line_of, positions

DOCUMENT = """\
# a comment with [brackets] and "quotes"
title = "a # that is no comment"  # one that is
'quoted key'.inner = 1
"esc\\u0061ped" = 2

long = \"\"\"
[not.a.table]
key = "no"
a quote \\\""" and "" two
ends with one\"\"\"\"
plain = '''
[[neither]]
'''

[ table . "with dot." ]
when = 2026-01-01T00:00:00Z
list = [ 1,  # one
  [2, 3],
  { x = "]", y = [4,
  5] },
]

[[rows]]
name = "a"
[[rows.inner]]
deep = true
[[rows]]
name = "b"
point = { x.y = 1, z = {} }
[rows.sub]
key = -1.5e3
"""


@pytest.mark.parametrize(
    ("at", "line"),
    [
        (("title",), 2),
        (("quoted key", "inner"), 3),
        (("escaped",), 4),
        (("long",), 6),
        (("plain",), 11),
        (("table",), 15),
        (("table", "with dot."), 15),
        (("table", "with dot.", "when"), 16),
        (("table", "with dot.", "list", 0), 17),
        (("table", "with dot.", "list", 1, 1), 18),
        (("table", "with dot.", "list", 2, "x"), 19),
        (("table", "with dot.", "list", 2, "y", 1), 20),
        (("rows", 0), 23),
        (("rows", 0, "name"), 24),
        (("rows", 0, "inner", 0, "deep"), 26),
        (("rows", 1), 27),
        (("rows", 1, "name"), 28),
        (("rows", 1, "point", "x", "y"), 29),
        (("rows", 1, "point", "z"), 29),
        (("rows", 1, "sub", "key"), 31),
    ],
)
def test_each_value_has_the_line_on_which_it_begins(at: tuple[str | int, ...], line: int) -> None:
    assert positions(DOCUMENT)[at] == line
    assert positions(DOCUMENT.replace("\n", "\r\n"))[at] == line


def test_nothing_is_found_in_strings_and_comments() -> None:
    assert {at[0] for at in positions(DOCUMENT)} == {
        "title", "quoted key", "escaped", "long", "plain", "table", "rows",
    }  # fmt: skip


def test_what_is_not_in_the_document_has_the_line_of_what_it_would_be_in() -> None:
    lines = positions(DOCUMENT)
    assert line_of(("rows", 1, "missing"), lines) == 27
    assert line_of(("nowhere",), lines) == 1


@pytest.mark.parametrize("text", ["", "\n", "# only a comment", "a = 1", "[a]", "a = []", "a = {}"])
def test_short_documents_end_where_they_end(text: str) -> None:
    assert all(line == 1 for line in positions(text).values())

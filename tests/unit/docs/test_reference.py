"""The generated pages say what the code says, and the code says enough to generate them."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshnode import limits as limits_module
from meshnode.errors import MeshError, error_of
from meshnode.reference import ErrorRow, LimitRow, errors, limits

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
PACKAGES = ("meshnode", "gateway", "routing", "models", "sim")
LIMITS_FILE = ROOT / "meshnode" / "limits.py"

NO_LIMITS_OF_A_BOUNDARY = {
    # The demo's patience with its own three nodes, and its own stream's length.
    "meshnode/cli/demo.py": {
        "_DEAD_TIMEOUT_S",
        "_HTTP_TIMEOUT_S",
        "_MEMBERS_TIMEOUT_S",
        "_READY_TIMEOUT_S",
    },
    "meshnode/cli/demo_load.py": {"_MAX_RECORDS", "_TIMEOUT_S"},
    "meshnode/cli/demo_mesh.py": {"_ASK_TIMEOUT_S", "_START_TIMEOUT_S", "_STOP_TIMEOUT_S"},
    "meshnode/client/infer.py": {"_LONGEST_MARGIN_S"},  # of a deadline's split: tuning
    "meshnode/cli/answers.py": {
        "_MAX_CLASSES_SORTED",
        "_MAX_ROWS_SHOWN",
        "_MAX_SMALL",
    },  # shown
    "meshnode/reconcile.py": {"RETRY_MAX_S"},  # the last pause of a backoff: tuning
    "meshnode/trust/datagrams.py": {"MAX_PAYLOAD_BYTES"},  # what the seal leaves of a datagram
    "meshnode/wire/link.py": {"MAX_STREAM_ID"},  # the protocol's field has 32 bits
    "routing/choice.py": {"WEIGHTS_MAX_AGE_S"},  # how stale a choice may be: tuning
    "routing/load.py": {"MAX_ERROR", "MAX_RHO"},  # of what the score believes: tuning
}
"""Constants named like limits that are none: chosen for a screen, derived, or tuning."""


def _load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = _load_generator()


def _sources() -> Iterator[tuple[str, str]]:
    """Yield all modules once: path and text. Folders that are links come under their own name."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not any(name.startswith(f"meshnode/{other}/") for other in PACKAGES):
                yield name, path.read_text(encoding="utf-8")


SOURCES = dict(_sources())


@pytest.mark.parametrize("path", sorted(GENERATOR.PAGES))
def test_a_generated_page_is_up_to_date(path: str) -> None:
    page = (ROOT / path).read_text(encoding="utf-8")
    assert page == GENERATOR.PAGES[path](), f"{path} is not what the code says: run `make docs`"
    assert "make docs" in page.splitlines()[0]


def test_what_would_break_a_table_is_made_harmless() -> None:
    table = GENERATOR.table(["a", "b"], [["x|y", "one\ntwo"]])
    assert table == "| a | b |\n| --- | --- |\n| x\\|y | one<br>two |\n"


# Limits


@pytest.mark.parametrize("row", limits(), ids=lambda row: row.name)
def test_a_limit_has_a_section_a_unit_and_a_reason(row: LimitRow) -> None:
    assert row.section
    assert row.unit
    assert isinstance(row.value, int | float)
    assert len(row.reason.split()) >= 4, f"{row.name} needs a docstring: what it limits, and why so"
    assert row.reason.endswith(".")


def test_every_public_name_of_the_limits_is_a_row_and_defined_once() -> None:
    body = ast.parse(LIMITS_FILE.read_text(encoding="utf-8")).body
    defined = [
        node.target.id
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    assert [name for name, count in Counter(defined).items() if count > 1] == []
    assert [row.name for row in limits()] == [n for n in defined if n not in ("KIB", "MIB")]
    sections = [row.section for row in limits()]
    assert len(set(sections)) == len(
        [s for s, t in zip(sections, ["", *sections], strict=False) if s != t]
    )


def test_every_limit_is_kept_by_some_module() -> None:
    used = {name for text in SOURCES.values() for name in _imported_limits(text)} | {
        name.id
        for _, value in _constants(SOURCES["meshnode/limits.py"])
        for name in ast.walk(value)
        if isinstance(name, ast.Name)
    }
    assert [row.name for row in limits() if row.name not in used] == []


def _imported_limits(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ImportFrom(module="meshnode.limits", names=names):
                yield from (name.name for name in names)
            case ast.Attribute(value=ast.Name(id="limits"), attr=name):
                yield name


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (64 * 1024 * 1024, "bytes", "64 MiB"),
        (65_535, "bytes", "65,535 bytes"),
        (2**63 - 1, "bytes", "2^63-1 bytes"),
        (2**36, "bytes", "64 GiB"),
        (16 * 1024, "bytes per second", "16 KiB/s"),
        (30 * 86_400, "seconds", "30 d"),
        (0.3, "seconds", "0.3 s"),
        (75.0, "seconds", "75 s"),
        (1500, "milliseconds", "1,500 ms"),
        (63, "characters", "63 characters"),
        (1_000_000, "count", "1,000,000"),
        (2**53, "count", "2^53"),
    ],
)
def test_a_value_is_shown_as_a_person_writes_it(value: float, unit: str, text: str) -> None:
    assert LimitRow("", "", value, unit, "").readable == text


def test_limits_are_defined_in_their_module_alone() -> None:
    """A limit beside the code that keeps it would be missing from `config show --limits`."""
    strays = {
        path: names
        for path, text in SOURCES.items()
        if not path.startswith("sim/") and path != "meshnode/limits.py"
        if (names := {name for name, value in _constants(text) if _is_limit(name, value)})
    }
    assert strays == NO_LIMITS_OF_A_BOUNDARY, "move limits to meshnode/limits.py"


def _is_limit(name: str, value: ast.expr) -> bool:
    named = re.search(r"(?:^|_)(?:MAX|LONGEST|LIMIT)_|_LIMIT$|(?:^|_)TIMEOUT_S$", name)
    return named is not None and isinstance(value, ast.Constant | ast.BinOp | ast.Name)


def _constants(text: str) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.parse(text).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value


# Errors


@pytest.mark.parametrize("row", errors(), ids=lambda row: row.name)
def test_an_error_tells_when_it_happens_what_changed_and_what_to_do(row: ErrorRow) -> None:
    form = f"{row.name}: see the head of meshnode/errors.py for the form of its docstring"
    assert len(row.when.split()) >= 4, form
    assert row.changed, form
    assert row.to_do, form
    for text in (row.when, row.changed, row.to_do):
        assert text.endswith("."), form
        assert "Args:" not in text
        assert "Attributes:" not in text


def test_every_class_of_errors_in_the_code_is_documented() -> None:
    """Found by reading the source, so that a class is not missed because nothing imported it."""
    parents = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for text in SOURCES.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    }
    known = {"MeshError"}
    while more := {name for name, bases in parents.items() if bases & known} - known:
        known |= more
    public = {name for name in known if not name.startswith("_")}
    assert {row.name for row in errors()} == public, "import its module in meshnode/reference.py"


def test_an_error_of_its_own_kind_has_a_code_of_its_own() -> None:
    """Special cases that are defined elsewhere (`TrustError`) travel under their parent's code."""
    body = ast.parse((ROOT / "meshnode" / "errors.py").read_text(encoding="utf-8")).body
    families = {node.name for node in body if isinstance(node, ast.ClassDef)}
    codes = Counter(row.code for row in errors() if row.name in families)
    assert [code for code, count in codes.items() if count > 1] == []
    assert {row.code for row in errors()} == set(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("code", sorted({row.code for row in errors()}))
def test_an_error_that_crossed_a_link_is_rebuilt_from_its_code_and_sentence(code: str) -> None:
    error = error_of(code, "what happened")
    assert (error.code, str(error)) == (code, "what happened")
    assert isinstance(error, MeshError)


def test_who_is_to_blame_decides_the_exit_code_and_the_kind_of_status() -> None:
    for row in errors():
        expected = {"usage": (2, 4), "peer": (1, 5), "internal": (1, 5)}[row.family]
        if row.name == "NotCached":  # RFC 9111, 5.2.1.7 wants 504 for who takes a kept answer only
            expected = (2, 5)
        assert (row.exit_code, row.http_status // 100) == expected, row.name


def test_the_rows_carry_what_the_modules_decide() -> None:
    saturated = next(row for row in errors() if row.name == "Saturated")
    assert saturated == ErrorRow(
        name="Saturated",
        code="saturated",
        family="peer",
        retryable=True,
        http_status=503,
        exit_code=1,
        when="Every queue that could take the request is full.",
        changed="nothing ran.",
        to_do="try again after a pause that grows; for lasting load, deploy more replicas.",
    )
    body = next(row for row in limits() if row.name == "MAX_BODY_BYTES")
    assert (body.section, body.value, body.unit, body.readable) == (
        "HTTP gateway", limits_module.MAX_BODY_BYTES, "bytes", "64 MiB",
    )  # fmt: skip
    assert body.reason.startswith("An HTTP request body")

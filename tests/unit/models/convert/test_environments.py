from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import UsageError
from meshnode.models.convert.environments import check_installed, environment_folder, managed_python
from meshnode.models.convert.formats import Conversion

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def test_what_is_missing_is_named_with_the_extra_that_has_it() -> None:
    way = Conversion("from_x", ("json", "no_such_library"), ("x",), "convert", frozenset())
    with pytest.raises(UsageError) as caught:
        check_installed(way)
    assert "needs no_such_library: pip install 'meshnode[convert]'" in str(caught.value)
    assert "--install" in str(caught.value)


def test_an_environment_sees_the_packages_of_meshnode_and_is_made_once(tmp_path: Path) -> None:
    asked: list[tuple[str, Sequence[str]]] = []

    def install(python: str, packages: Sequence[str]) -> None:
        asked.append((python, packages))

    said: list[str] = []
    python = managed_python(tmp_path, ("a", "b"), said.append, install)
    assert managed_python(tmp_path, ("b", "a"), said.append, install) == python
    assert [packages for _, packages in asked] == [("a", "b")]
    assert said == [
        f"making an environment with a, b in {environment_folder(tmp_path, ('a', 'b'))}"
    ]
    done = subprocess.run(
        [python, "-c", "import numpy, sys; print(sys.prefix)"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.strip() == str(environment_folder(tmp_path, ("a", "b")))


def test_an_environment_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    def fail(python: str, packages: Sequence[str]) -> None:
        raise UsageError("no network")

    with pytest.raises(UsageError, match="no network"):
        managed_python(tmp_path, ("a",), lambda _: None, fail)
    made: list[str] = []
    managed_python(tmp_path, ("a",), lambda _: None, lambda python, _: made.append(python))
    assert len(made) == 1

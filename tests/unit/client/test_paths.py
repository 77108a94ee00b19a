from pathlib import Path

import pytest

from meshnode.client.paths import data_dir


def test_the_option_wins_over_the_variable(tmp_path: Path) -> None:
    assert data_dir(str(tmp_path), {"MESHNODE_DATA_DIR": "/elsewhere"}) == tmp_path


def test_the_variable_counts_where_there_is_no_option(tmp_path: Path) -> None:
    assert data_dir(None, {"MESHNODE_DATA_DIR": str(tmp_path)}) == tmp_path


@pytest.mark.parametrize("environ", [{}, {"MESHNODE_DATA_DIR": ""}])
def test_the_platforms_folder_is_the_default(environ: dict[str, str]) -> None:
    found = data_dir(None, environ)
    assert found.is_absolute()
    assert found.name == "meshnode"


def test_a_relative_folder_becomes_absolute_and_home_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_dir("here", {}) == tmp_path / "here"
    assert data_dir("~/there", {}) == tmp_path / "there"

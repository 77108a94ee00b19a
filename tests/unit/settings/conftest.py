"""A machine whose every source of settings lies in a temporary folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from meshnode.client.paths import data_dir as choose_data_dir
from meshnode.settings.load import Given, Loaded, load

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.options import Chosen, JoinOptions


@dataclass
class Place:
    """Where settings are read: `work` is the working folder, `data` the data folder."""

    work: Path
    data: Path
    environ: dict[str, str] = field(default_factory=dict)

    def env_file(self, text: str) -> Path:
        path = self.work / ".env"
        path.write_text(text, encoding="utf-8")
        return path

    def toml(self, text: str) -> Path:
        path = self.data / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    def keep(self, chosen: Chosen) -> Path:
        path = self.data / "options"
        path.write_bytes(chosen.to_json())
        return path

    def load(
        self,
        values: dict[str, object] | None = None,
        membership: list[str] | None = None,
        config: str | None = None,
        env_file: str | None = None,
        data_dir: str | None = None,
    ) -> Loaded:
        given = Given(values or {}, membership, data_dir or str(self.data), config, env_file)
        return load(given, self.environ, self.work, choose_data_dir)

    def options(
        self, values: dict[str, object] | None = None, membership: list[str] | None = None
    ) -> JoinOptions:
        loaded = self.load(values, membership)
        return loaded.settings.options(data_dir=str(loaded.data_dir), invite=None, new=False)

    def faults(self, values: dict[str, object] | None = None) -> list[str]:
        return [str(fault) for fault in self.load(values).settings.faults]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for name in ("work", "data"):
        (tmp_path / name).mkdir()
    return Place(tmp_path / "work", tmp_path / "data")

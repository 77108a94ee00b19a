"""What is to be applied at once: definitions of files and programs, and the mistakes that were found in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.deployment_file import DeploymentSpec, Found, read_draft, read_file
from meshnode.limits import MAX_DEPLOYMENT_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.deployment_file import Format

FORMATS: Final[dict[str, Format]] = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}
"""Formats of deployment files, by how their names end."""


@dataclass(frozen=True, slots=True)
class Order:
    """A deployment of a file, and where its relative paths start."""

    found: Found
    folder: Path

    @property
    def spec(self) -> DeploymentSpec:
        """What it says."""
        return self.found.spec


@dataclass(frozen=True, slots=True)
class Orders:
    """All that is to be applied at once, and the mistakes that were found in it.

    Attributes:
        orders: What is to be.
        told: The mistakes.
        drafts: What has some, as far as it could be read.
    """

    orders: list[Order] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    drafts: list[Order] = field(default_factory=list)

    def add_text(self, text: str, kind: Format, source: str, folder: Path) -> None:
        """Add what a file says, with its mistakes."""
        drafts: list[Found] = []
        found, told = read_file(text, kind, source, drafts)
        self.orders.extend(Order(each, folder) for each in found)
        self.drafts.extend(Order(each, folder) for each in drafts)
        self.told.extend(told)

    def add_file(self, path: Path) -> None:
        """Add a file by the ending of its name, with its mistakes."""
        kind = FORMATS.get(path.suffix.lower())
        if kind is None:
            self.told.append(
                f"{path}: a deployment file is called NAME.toml, NAME.yaml or NAME.yml"
            )
            return
        try:
            with path.open("rb") as stream:
                content = stream.read(MAX_DEPLOYMENT_FILE_BYTES + 1)
            text = content.decode()
        except OSError as error:
            self.told.append(f"{path}: it cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self.told.append(f"{path}: it is not text in UTF-8")
        else:
            self.add_text(text, kind, str(path), path.absolute().parent)

    def add_document(self, document: Mapping[str, Any]) -> None:
        """Add one deployment as a document with the keys of a file; paths start from the working folder."""
        spec, faults = read_draft(dict(document))
        self.told.extend(each.told("the deployment") for each in faults)
        if spec is not None:
            order = Order(Found(spec, "the deployment"), Path.cwd())
            (self.drafts if faults else self.orders).append(order)


def orders_of(definition: str | Path | Mapping[str, Any]) -> Orders:
    """Return what a program wants to apply: a file, or a document with its keys."""
    made = Orders()
    if isinstance(definition, str | Path):
        made.add_file(Path(definition))
    else:
        made.add_document(definition)
    return made

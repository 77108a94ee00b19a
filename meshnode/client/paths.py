"""Where a node keeps its data: its identity, its mesh, its models and its control channel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA_DIR_VARIABLE = "MESHNODE_DATA_DIR"
"""Environment variable that names the data folder where no option does."""


def data_dir(option: str | None, environ: Mapping[str, str]) -> Path:
    """Return the data folder as an absolute path; it need not exist.

    Args:
        option: What `--data-dir` said, or None.
        environ: Environment variables; `MESHNODE_DATA_DIR` counts where the option is missing,
            and an empty value counts as missing.

    Returns:
        The option's folder, the variable's, or the platform's folder for a user's data, such as
        `~/.local/share/meshnode` on Linux.
    """
    chosen = option or environ.get(DATA_DIR_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("meshnode", appauthor=False)).absolute()

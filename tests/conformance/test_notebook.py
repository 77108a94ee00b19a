"""The notebook of examples/client runs from its first cell to its last, against a mesh of three nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conformance.table import conforms

if TYPE_CHECKING:
    from tests.conformance.conftest import ConformanceMesh

FOLDER = Path(__file__).parents[2] / "examples" / "client"

# In a process of its own: a notebook's machinery warns of its own doings, which pytest makes errors.
RUN = """
import sys, warnings
warnings.simplefilter("ignore")
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
client = nbclient.NotebookClient(notebook, timeout=90, resources={"metadata": {"path": sys.argv[2]}})
client.execute()
for cell in notebook.cells:
    for output in cell.get("outputs", ()):
        print(output.get("text", ""))
"""


@conforms("Python client", "a notebook")
def test_the_notebook_runs(mesh: ConformanceMesh, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(FOLDER / "mesh_client.ipynb"), str(FOLDER)],
        env={
            **os.environ,
            "MESHNODE_URL": mesh.url,
            "MESHNODE_DATA_DIR": str(mesh.holders[0].data_dir),
            "IPYTHONDIR": str(tmp_path),
            "JUPYTER_PLATFORM_DIRS": "1",
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "expected [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" in ran.stdout
    assert "ModelNotFound - " in ran.stdout

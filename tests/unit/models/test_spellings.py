"""How a Python model is written, told from its files."""

from __future__ import annotations

import pytest

from meshnode.models.execution import Spelling
from meshnode.models.repository.spellings import written

TRITON = "class TritonPythonModel:\n    def execute(self, requests): ...\n"
PREDICTOR = "class Chat(Base):\n    def predict(self, request): ...\n"
STREAMER = "class Chat:\n    async def async_predict(self, request): yield 1\n"


@pytest.mark.parametrize(
    ("files", "spelling", "entry"),
    [
        ({"model.py": TRITON}, Spelling.TRITON, "model.py"),
        ({"pipeline.py": "pipe = print"}, Spelling.PIPELINE, "pipeline.py"),
        ({"model.py": TRITON, "pipeline.py": ""}, Spelling.TRITON, "model.py"),
        ({"model.py": "class Net: ...", "pipeline.py": ""}, Spelling.PIPELINE, "pipeline.py"),
        ({"squeeze.mar": ""}, Spelling.ARCHIVE, "squeeze.mar"),
        ({"MAR-INF/MANIFEST.json": "", "h.py": ""}, Spelling.ARCHIVE, "MAR-INF/MANIFEST.json"),
        ({"predictor.py": PREDICTOR}, Spelling.PREDICTOR, "predictor.py"),
        ({"src/main_entry.py": STREAMER, "x.py": ""}, Spelling.PREDICTOR, "src/main_entry.py"),
        ({"serve.py": PREDICTOR, "net.py": "x = 1"}, Spelling.PREDICTOR, "serve.py"),
        ({"model.py": "syntax error ("}, Spelling.TRITON, "model.py"),
    ],
)
def test_the_files_of_a_folder_tell_how_it_is_written(
    files: dict[str, str], spelling: Spelling, entry: str
) -> None:
    assert written(files, files.__getitem__) == (spelling, entry)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"model.onnx": ""},
        {"a.py": PREDICTOR, "b.py": PREDICTOR},
        {"a.mar": "", "b.mar": ""},
        {"a.py": "\0"},
        {"train.py": "def predict(): ..."},
    ],
)
def test_a_folder_that_could_be_anything_is_no_python_model(files: dict[str, str]) -> None:
    assert written(files, files.__getitem__) is None

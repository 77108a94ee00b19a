from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from meshnode.errors import ConfigError, ModelError
from meshnode.models.convert.formats import Target
from meshnode.models.convert.writing import next_version, place
from meshnode.models.repository.config import parse_config
from meshnode.types import DataType

if TYPE_CHECKING:
    from pathlib import Path

INPUTS = (("x", "float32", (-1, 4)),)


def result_in(folder: Path, name: str = "model.onnx") -> Path:
    folder.mkdir()
    (folder / name).write_bytes(b"model")
    (folder / f"{name}.data").write_bytes(b"weights")
    return folder / name


def test_a_model_folder_gets_its_next_version_with_external_data(tmp_path: Path) -> None:
    result = result_in(tmp_path / "work")
    (tmp_path / "iris" / "7").mkdir(parents=True)
    path, size_bytes = place(result, tmp_path / "iris", Target.ONNX, INPUTS, {})
    assert path == tmp_path / "iris" / "8" / "model.onnx"
    assert sorted(each.name for each in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert size_bytes == 12
    assert next_version(tmp_path / "iris") == 9


def test_a_name_with_the_targets_suffix_is_a_file(tmp_path: Path) -> None:
    path, _ = place(
        result_in(tmp_path / "work"), tmp_path / "a" / "b.onnx", Target.ONNX, INPUTS, {}
    )
    assert path.read_bytes() == b"model"


def test_torchscript_gets_a_configuration_that_says_its_tensors(tmp_path: Path) -> None:
    result = result_in(tmp_path / "work", "model.pt")
    answers = {"probabilities": np.zeros((7, 3), np.float32)}
    place(result, tmp_path / "iris", Target.TORCHSCRIPT, INPUTS, answers)
    config = parse_config((tmp_path / "iris" / "config.pbtxt").read_text(), "iris")
    assert [
        (each.name, each.datatype, each.shape) for each in (*config.inputs, *config.outputs)
    ] == [
        ("x", DataType.FP32, (-1, 4)),
        ("probabilities", DataType.FP32, (-1, 3)),
    ]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "iris").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        place(result_in(tmp_path / "work"), tmp_path / "iris" / "x", Target.ONNX, INPUTS, {})


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_in_the_place_of_a_result_is_not_followed(tmp_path: Path, kind: str) -> None:
    """A model's code could leave one to the node's key, and have it copied into what is published."""
    (tmp_path / "node.key").write_text("hidden-value")
    (tmp_path / "work").mkdir()
    result = tmp_path / "work" / "model.onnx"
    if kind == "symbolic":
        result.symlink_to(tmp_path / "node.key")
    else:
        result.hardlink_to(tmp_path / "node.key")
    with pytest.raises(ModelError, match=r"left a link at model\.onnx"):
        place(result, tmp_path / "out", Target.ONNX, INPUTS, {})
    with pytest.raises(ModelError, match="wrote no result"):
        place(tmp_path / "work" / "none.onnx", tmp_path / "out", Target.ONNX, INPUTS, {})


def test_data_beside_a_result_is_no_link_either(tmp_path: Path) -> None:
    result = result_in(tmp_path / "work")
    (tmp_path / "work" / "model.onnx.data").unlink()
    (tmp_path / "work" / "model.onnx.data").symlink_to(__file__)
    with pytest.raises(ModelError, match=r"left a link at model\.onnx\.data"):
        place(result, tmp_path / "out", Target.ONNX, INPUTS, {})

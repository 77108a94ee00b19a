from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from meshnode.errors import ModelError
from meshnode.models import repository
from meshnode.models.repository import FoundModel, scan

WriteModel = Callable[..., Path]


def one(path: Path, name: str | None = None) -> FoundModel:
    [model] = scan(path, name)
    return model


def paths(model: FoundModel) -> dict[int, list[str]]:
    return {found.version: [file.path for file in found.files] for found in model.versions}


def test_a_bare_file_is_version_1_named_after_itself_with_its_external_data(tmp_path: Path) -> None:
    for name in ("net.onnx", "net.onnx.data", "net.onnx_data_0", "net.onnx.bak", "other.onnx.data"):
        (tmp_path / name).write_bytes(b"12345")
    model = one(tmp_path / "net.onnx")
    assert (model.name, model.config, model.error) == ("net", None, "")
    assert paths(model) == {1: ["net.onnx", "net.onnx.data", "net.onnx_data_0"]}
    assert model.versions[0].entry == "net.onnx"
    assert model.versions[0].files[0].size_bytes == 5


def test_a_name_can_be_chosen_for_a_file_whose_own_is_no_model_name(tmp_path: Path) -> None:
    path = tmp_path / "my model.onnx"
    path.touch()
    assert "cannot be a model's name" in one(path).error
    model = one(path, "mine")
    assert (model.name, model.error) == ("mine", "")


def test_a_link_is_named_after_itself_not_after_its_target(tmp_path: Path) -> None:
    """As in a download cache, whose files are links to content-addressed blobs."""
    (tmp_path / "4ca5e").write_bytes(b"x")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "net.onnx").symlink_to("../4ca5e")
    assert (one(tmp_path / "snapshot" / "net.onnx").name) == "net"


def test_a_version_must_hold_the_entry_itself(write_model: WriteModel) -> None:
    write_model("net", version="1")
    repo = write_model("net", version="11/empty")  # a version folder with nothing right in it
    (repo / "net" / "12").write_bytes(b"")  # a file, not a folder
    model = one(repo / "net")
    assert "version 11 of 'net' has no 'model.onnx'; it has empty/model.onnx" in model.error


def test_versions_with_leading_zeros_or_other_names_are_ignored(write_model: WriteModel) -> None:
    repo = write_model("net", version="1")
    for version in ("2", "10", "03", "old", "0"):
        write_model("net", version=version)
    assert list(paths(one(repo / "net"))) == [10]


def test_the_version_policy_of_the_configuration_is_applied(write_model: WriteModel) -> None:
    write_model("net", version="1", config="version_policy { all { } }")
    repo = write_model("net", version="2")
    model = one(repo / "net")
    assert model.config is not None
    assert list(paths(model)) == [1, 2]


def test_all_regular_files_of_a_version_belong_to_it(write_model: WriteModel) -> None:
    repo = write_model("net")
    version = repo / "net" / "1"
    (version / "weights").mkdir()
    (version / "weights" / "w.bin").write_bytes(b"w")
    (version / ".DS_Store").touch()
    (version / ".cache").mkdir()
    (version / ".cache" / "x").touch()
    assert paths(one(repo / "net")) == {1: ["model.onnx", "weights/w.bin"]}


def test_links_are_followed_inside_the_folder_and_left_out_beyond_it(
    write_model: WriteModel, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("s")
    repo = write_model("net")
    version = repo / "net" / "1"
    (repo / "net" / "shared.bin").write_bytes(b"w")
    (version / "inside.bin").symlink_to("../shared.bin")
    (version / "outside.bin").symlink_to(tmp_path / "secret")
    (version / "nowhere.bin").symlink_to("missing")
    (version / "loop.bin").symlink_to("loop.bin")
    (version / "folder").symlink_to(tmp_path)
    (repo / "net" / "2").symlink_to(tmp_path)
    model = one(repo / "net")
    assert paths(model) == {1: ["inside.bin", "model.onnx"]}
    assert len(model.warnings) == 5
    assert sum("leads out of the folder" in warning for warning in model.warnings) == 4
    assert "folder 'folder' of version 1 is left out: a link" in model.warnings


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
def test_what_is_no_regular_file_is_left_out(write_model: WriteModel) -> None:
    repo = write_model("net")
    os.mkfifo(repo / "net" / "1" / "pipe")
    model = one(repo / "net")
    assert paths(model) == {1: ["model.onnx"]}
    assert model.warnings == ("file 'pipe' is left out: 'pipe' is not a regular file",)


def test_a_file_name_that_other_platforms_cannot_have_is_left_out(write_model: WriteModel) -> None:
    repo = write_model("net")
    (repo / "net" / "1" / "a\\..\\b").touch()
    model = one(repo / "net")
    assert paths(model) == {1: ["model.onnx"]}
    assert "not a plain relative path" in model.warnings[0]


def test_a_linked_entry_that_leads_out_stops_the_model(
    write_model: WriteModel, tmp_path: Path
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"m")
    repo = write_model("net")
    (repo / "net" / "1" / "model.onnx").unlink()
    (repo / "net" / "1" / "model.onnx").symlink_to(tmp_path / "m.onnx")
    (repo / "net" / "1" / "readme").touch()
    assert "version 1 of 'net' has no 'model.onnx'; it has readme" in one(repo / "net").error


def test_a_linked_configuration_that_leads_out_is_refused(
    write_model: WriteModel, tmp_path: Path
) -> None:
    (tmp_path / "c").touch()
    repo = write_model("net")
    (repo / "net" / "config.pbtxt").symlink_to(tmp_path / "c")
    assert "config.pbtxt is a link that leads out" in one(repo / "net").error


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"name: 3", "line 1, column 7"),
        (b"\xff", "is not UTF-8"),
        (b"#" * (1024 * 1024 + 1), "is longer than 1048576 bytes"),
        (b"version_policy { specific { versions: 7 } }", "version 7, but the folder has 1"),
    ],
)
def test_a_bad_configuration_is_the_models_error(
    write_model: WriteModel, content: bytes, reason: str
) -> None:
    repo = write_model("net")
    (repo / "net" / "config.pbtxt").write_bytes(content)
    assert reason in one(repo / "net").error


def test_a_configuration_without_versions_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.pbtxt").touch()
    assert "has no version folder such as net/1/model.onnx" in one(tmp_path / "net").error


def test_the_entry_may_have_another_name(write_model: WriteModel) -> None:
    repo = write_model("net", config='default_model_filename: "big.onnx"')
    assert "has no 'big.onnx'; it has model.onnx" in one(repo / "net").error
    (repo / "net" / "1" / "model.onnx").rename(repo / "net" / "1" / "big.onnx")
    assert one(repo / "net").versions[0].entry == "big.onnx"


def test_in_a_repository_one_bad_model_does_not_stop_the_others(write_model: WriteModel) -> None:
    write_model("good", config="dynamic_batching { }")
    repo = write_model("bad", config='name: "other"')
    (repo / "bare.onnx").touch()
    (repo / ".git").mkdir()
    (repo / "notes.txt").touch()
    (repo / "empty").mkdir()
    found = {model.name: model for model in scan(repo)}
    assert sorted(found) == ["bad", "bare", "good"]
    assert "name is 'other'" in found["bad"].error
    assert found["good"].warnings == ("dynamic_batching is set, but has no effect",)
    assert found["bare"].versions


def test_two_models_of_one_name_in_a_repository_are_told(write_model: WriteModel) -> None:
    repo = write_model("net")
    (repo / "net.onnx").touch()
    [model] = scan(repo)
    assert model.path == repo / "net"
    assert model.warnings == ("'net.onnx' is left out: 'net' has the same model name",)


def test_links_in_a_repository_must_stay_in_it(write_model: WriteModel, tmp_path: Path) -> None:
    repo = write_model("net")
    (tmp_path / "elsewhere" / "1").mkdir(parents=True)
    (tmp_path / "elsewhere" / "1" / "model.onnx").touch()
    (repo / "linked").symlink_to(tmp_path / "elsewhere")
    (repo / "alias").symlink_to("net")
    found = {model.name: model for model in scan(repo)}
    assert "'linked' is a link that leads out of" in found["linked"].error
    assert found["alias"].error == ""


def test_a_path_without_models_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected <model>/<version>/model.onnx or <model>.onnx"):
        scan(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        scan(tmp_path / "missing")
    (tmp_path / "model.pt").touch()
    assert "'model.pt' is no ONNX file" in one(tmp_path / "model.pt").error


def test_a_repository_cannot_be_given_one_name(write_model: WriteModel) -> None:
    with pytest.raises(ModelError, match="is not one model"):
        scan(write_model("net"), "mine")


def test_limits_hold(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model("a")
    repo = write_model("b")
    (repo / "b" / "1" / "extra").write_bytes(b"123")
    monkeypatch.setattr(repository, "MAX_MODEL_FILES", 1)
    assert "version 1 has more than 1 files" in one(repo / "b").error
    monkeypatch.setattr(repository, "MAX_MODEL_FILE_BYTES", 2)
    assert "'extra' is larger than 2 bytes" in " ".join(one(repo / "b").warnings)
    monkeypatch.setattr(repository, "MAX_MODELS", 1)
    with pytest.raises(ModelError, match="holds 2 models; at most 1"):
        scan(repo)


def test_a_file_that_cannot_be_read_is_the_models_error(
    write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permission bits do not bind root, so the refusal is simulated."""
    repo = write_model("net", config="")

    def denied(path: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", denied)
    assert "config.pbtxt cannot be read: Permission denied" in one(repo / "net").error
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        scan(repo)


def test_triton_s_own_examples_are_found(triton_examples: Path) -> None:
    found = {model.name: model for model in scan(triton_examples)}
    assert sorted(found) == ["simple", "simple_string"]
    assert all(not model.error and not model.warnings for model in found.values())
    assert paths(found["simple"]) == {1: ["model.onnx"]}

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from meshnode.errors import ModelError
from meshnode.models.execution import Spelling
from meshnode.models.manifest import check_model_name
from meshnode.models.provenance import Provenance
from meshnode.models.repository import scanning, version_files
from meshnode.models.repository.scanning import FoundModel, passed_over, scan
from meshnode.models.repository.version_files import find_file

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
    assert "config.pbtxt of 'net' is a link that leads out" in one(repo / "net").error


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


def test_a_version_that_the_policy_names_and_that_is_missing_does_not_stop_the_others(
    write_model: WriteModel,
) -> None:
    repo = write_model("net", config="version_policy { specific { versions: [ 1, 5 ] } }")
    found = one(repo / "net")
    assert (found.error, [each.version for each in found.versions]) == ("", [1])
    assert found.warnings == ("version_policy names version 5, which the folder does not have",)


@pytest.mark.parametrize(
    ("name", "shown"), [("na me", "x_na_x20_me"), ("ünï", "x__xfc_n_xef_"), ("a..b", "x_a._x2e_b")]
)
def test_a_folder_whose_name_cannot_be_a_models_is_shown_under_one_that_can(
    write_model: WriteModel, name: str, shown: str
) -> None:
    """Else its reason would be in the log alone: what is told to the mesh must have a valid name."""
    write_model("good")
    [found, _] = sorted(scan(write_model(name)), key=lambda model: not model.error)
    assert (found.name, check_model_name(found.name)) == (shown, shown)
    assert found.error.startswith(f"{name!r} cannot be a model's name")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system here")
def test_a_pipe_instead_of_a_file_is_the_models_error(write_model: WriteModel) -> None:
    repo = write_model("net")
    (repo / "net" / "1" / "model.onnx").unlink()
    os.mkfifo(repo / "net" / "1" / "model.onnx")
    [found] = scan(repo)
    assert found.error.startswith("version 1 of 'net' has no 'model.onnx'")
    assert "file 'model.onnx' is left out: 'model.onnx' is not a regular file" in found.warnings


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
    write_model("good", config="metric_tags { key: 'a' value: 'b' }")
    repo = write_model("bad", config='name: "other"')
    (repo / "bare.onnx").touch()
    (repo / ".git").mkdir()
    (repo / "notes.txt").touch()
    (repo / "empty").mkdir()
    found = {model.name: model for model in scan(repo)}
    assert sorted(found) == ["bad", "bare", "good"]
    assert "name is 'other'" in found["bad"].error
    assert found["good"].warnings == ("metric_tags is set, but has no effect",)
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
    (tmp_path / "model.h5").touch()
    assert "'model.h5' is no model file: its name ends in none of .onnx, .pt" in (
        one(tmp_path / "model.h5").error
    )


def test_a_repository_cannot_be_given_one_name(write_model: WriteModel) -> None:
    with pytest.raises(ModelError, match="is not one model"):
        scan(write_model("net"), "mine")


def test_limits_hold(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model("a")
    repo = write_model("b")
    (repo / "b" / "1" / "extra").write_bytes(b"123")
    monkeypatch.setattr(version_files, "MAX_MODEL_FILES", 1)
    assert "version 1 has more than 1 files" in one(repo / "b").error
    monkeypatch.setattr(version_files, "MAX_MODEL_FILE_BYTES", 2)
    assert "'extra' is larger than 2 bytes" in " ".join(one(repo / "b").warnings)
    monkeypatch.setattr(scanning, "MAX_MODELS", 1)
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


@pytest.mark.parametrize(
    ("file", "runtime", "spelling"),
    [
        ("net.onnx", "onnx", Spelling.NONE),
        ("net.pt", "torch", Spelling.NONE),
        ("net.pth", "torch", Spelling.NONE),
        ("net.pt2", "torch", Spelling.NONE),
        ("net.tflite", "litert", Spelling.NONE),
        ("net.mar", "python", Spelling.ARCHIVE),
    ],
)
def test_a_bare_file_of_any_kind_needs_no_configuration(
    tmp_path: Path, file: str, runtime: str, spelling: Spelling
) -> None:
    (tmp_path / file).touch()
    model = one(tmp_path / file)
    [version] = model.versions
    assert (model.name, version.runtime, version.entry) == ("net", runtime, file)
    assert version.execution.spelling is spelling
    assert scan(tmp_path)[0] == model


TRITON = "class TritonPythonModel: ..."
PREDICTOR = "class P:\n    def predict(self, request): ..."


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "runtime", "entry", "spelling"),
    [
        ({"model.py": TRITON}, "python", "model.py", Spelling.TRITON),
        ({"pipeline.py": "def pipe(x): ..."}, "python", "pipeline.py", Spelling.PIPELINE),
        ({"pipeline.py": "", "model.onnx": ""}, "python", "pipeline.py", Spelling.PIPELINE),
        ({"predictor.py": PREDICTOR, "model.pt": ""}, "python", "predictor.py", Spelling.PREDICTOR),
        ({"odd.py": PREDICTOR, "model.pt": ""}, "torch", "model.pt", Spelling.NONE),
        ({"src/main_entry.py": PREDICTOR}, "python", "src/main_entry.py", Spelling.PREDICTOR),
        ({"model.py": TRITON, "model.onnx": ""}, "onnx", "model.onnx", Spelling.NONE),
        ({"x.mar": ""}, "python", "x.mar", Spelling.ARCHIVE),
        ({"resnet.onnx": "", "labels.txt": ""}, "onnx", "resnet.onnx", Spelling.NONE),
        ({"model.pt2": ""}, "torch", "model.pt2", Spelling.NONE),
        ({"model.tflite": ""}, "litert", "model.tflite", Spelling.NONE),
    ],
)
def test_what_opens_a_version_is_told_by_what_its_folder_holds(
    tmp_path: Path, files: dict[str, str], runtime: str, entry: str, spelling: Spelling
) -> None:
    write(tmp_path / "net" / "1", {**files, "keep/me": "x"})
    model = one(tmp_path / "net")
    assert model.error == ""
    [version] = model.versions
    assert (version.runtime, version.entry, version.execution.spelling) == (
        runtime, entry, spelling
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "files", "found"),
    [
        ('backend: "python"', {"model.py": "", "model.onnx": ""}, ("python", "model.py")),
        ('platform: "pytorch_libtorch"', {"model.pt": "", "model.onnx": ""}, ("torch", "model.pt")),
        ('default_model_filename: "a.py"', {"a.py": TRITON}, ("python", "a.py")),
        ('default_model_filename: "a.tflite"', {"a.tflite": ""}, ("litert", "a.tflite")),
        ('backend: "onnxruntime" default_model_filename: "model.graph"', {"model.graph": ""},
         ("onnx", "model.graph")),
    ],
)  # fmt: skip
def test_a_configuration_says_what_opens_it(
    tmp_path: Path, config: str, files: dict[str, str], found: tuple[str, str]
) -> None:
    write(tmp_path / "net", {"config.pbtxt": config})
    write(tmp_path / "net" / "1", files)
    [version] = one(tmp_path / "net").versions
    assert (version.runtime, version.entry) == found


@pytest.mark.parametrize(
    ("config", "files", "reason"),
    [
        ("", {"a.onnx": "", "b.onnx": ""}, "any of 'a.onnx', 'b.onnx' could be the model"),
        ("", {"readme": ""}, "has no 'model.onnx'; it has readme"),
        ('backend: "pytorch"', {"model.onnx": ""}, "has no 'model.pt'; it has model.onnx"),
        ('backend: "python"', {"readme": ""}, "has no 'model.py'"),
        ('default_model_filename: "a.h5"', {"a.h5": ""}, "'a.h5' is of no known kind"),
        ('backend: "pytorch" default_model_filename: "a.onnx"', {"a.onnx": ""},
         "'a.onnx' is no file that runtime 'torch' opens; its files end in .pt, .pt2, .pth"),
        ('backend: "python" default_model_filename: "a.onnx"', {"a.onnx": ""}, "end in .py, .mar"),
    ],
)  # fmt: skip
def test_a_version_that_nothing_opens_says_what_was_expected(
    tmp_path: Path, config: str, files: dict[str, str], reason: str
) -> None:
    write(tmp_path / "net", {"config.pbtxt": config})
    write(tmp_path / "net" / "1", files)
    assert reason in one(tmp_path / "net").error


def test_a_folder_without_versions_is_version_1_with_all_that_is_in_it(tmp_path: Path) -> None:
    """As in Graphcore's example server, where a model's folder has pipeline.py right in it."""
    files = {"pipeline.py": "def pipe(x): ...", "types.py": "", "w/a.bin": "", "config.pbtxt": ""}
    hidden = {"__pycache__/pipeline.pyc": "", ".env": "SECRET=1", ".git/config": ""}
    write(tmp_path / "repo" / "net", {**files, **hidden})
    (tmp_path / "repo" / "old.onnx").touch()
    model = {each.name: each for each in scan(tmp_path / "repo")}["net"]
    assert paths(model) == {1: ["pipeline.py", "types.py", "w/a.bin"]}
    assert not model.numbered
    assert model.versions[0].folder == tmp_path / "repo" / "net"
    assert one(tmp_path / "repo" / "net") == model


def test_a_folder_with_a_single_file_of_a_usual_name_is_a_model(tmp_path: Path) -> None:
    write(tmp_path / "net", {"model.onnx": "", "labels.txt": ""})
    assert one(tmp_path / "net").name == "net"
    write(tmp_path / "several", {"model.onnx": "", "other.onnx": ""})
    assert [model.name for model in scan(tmp_path / "several")] == ["model", "other"]


@pytest.mark.parametrize(
    ("files", "entry"),
    [
        ({"any.mar": "PK"}, "any.mar"),
        ({"any.mar": "PK", "README.md": "read me"}, "any.mar"),
        ({"MAR-INF/MANIFEST.json": "{}", "handler.py": ""}, "MAR-INF/MANIFEST.json"),
    ],
)
def test_a_folder_of_a_repository_with_an_archive_is_a_model(
    tmp_path: Path, files: dict[str, str], entry: str
) -> None:
    write(tmp_path / "repo" / "squeeze", files)
    write(tmp_path / "repo" / "other", {"model.onnx": ""})
    other, squeeze = scan(tmp_path / "repo")
    assert (other.name, squeeze.name, squeeze.error) == ("other", "squeeze", "")
    (version,) = squeeze.versions
    assert (version.version, version.entry) == (1, entry)
    assert version.execution.spelling is Spelling.ARCHIVE
    assert passed_over(tmp_path / "repo") == []
    assert one(tmp_path / "repo" / "squeeze", name="squeeze").versions[0].entry == entry


def test_a_repository_with_a_bare_archive_is_no_model_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "repo", {"squeeze.mar": "PK"})
    assert one(tmp_path / "repo").name == "squeeze"


def test_folders_in_which_nothing_can_be_served_are_told(tmp_path: Path) -> None:
    write(tmp_path / "repo" / "good", {"model.onnx": ""})
    write(tmp_path / "repo" / "two", {"a.mar": "PK", "b.mar": "PK"})
    write(tmp_path / "repo" / ".git", {"config": ""})
    (tmp_path / "repo" / "empty").mkdir()
    (told,) = passed_over(tmp_path / "repo")
    assert told.startswith("folder 'two' is passed over: it has no version folder such as two/1/")
    assert passed_over(tmp_path / "repo", '["good"]') == []
    assert passed_over(tmp_path / "repo" / "good") == []


def test_a_stray_script_does_not_make_a_repository_one_model(write_model: WriteModel) -> None:
    repo = write_model("net")
    (repo / "client.py").write_text(PREDICTOR)
    assert one(repo).name == "net"


def test_an_ensemble_needs_neither_file_nor_version_folder(tmp_path: Path) -> None:
    config = """
    input { name: "x" data_type: TYPE_FP32 dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: 1 }
    ensemble_scheduling { step {
      model_name: "a" input_map { key: "i" value: "x" } output_map { key: "o" value: "y" }
    } }
    """
    write(tmp_path / "both", {"config.pbtxt": config})
    [version] = one(tmp_path / "both").versions
    assert (version.version, version.runtime, version.files, version.entry) == (
        1,
        "ensemble",
        (),
        "",
    )
    (tmp_path / "both" / "3").mkdir()
    assert list(paths(one(tmp_path / "both"))) == [3]


def test_a_moment_is_a_version_and_keeps_its_label(write_model: WriteModel) -> None:
    repo = write_model("net", version="20260131_120000")
    write_model("net", version="20251231_235959")
    write_model("net", version="20260231_120000")  # a day that there is not
    [version] = one(repo / "net").versions
    assert version.version == 20260131120000
    assert version.provenance == Provenance(label="20260131_120000")
    write_model("net", version="20260131120000")
    assert "'20260131120000' and '20260131_120000' are the same version" in one(repo / "net").error


METADATA = '{"version": "1.4", "accuracy": 0.5, "timestamp": "20260131_120000"}'


def test_metadata_beside_the_versions_that_is_of_another_one_is_left_out_with_a_word(
    write_model: WriteModel,
) -> None:
    repo = write_model("net")
    write(repo / "net", {"metadata.json": '{"version": 4, "accuracy": 0.5}'})
    model = one(repo / "net")
    assert model.versions[0].provenance is None
    assert (
        "metadata.json beside the versions is of version 4, and is left out for version 1"
        in model.warnings
    )


def test_metadata_beside_the_versions_or_in_one_says_where_it_comes_from(
    write_model: WriteModel,
) -> None:
    repo = write_model("net", config="version_policy { all { } }")
    write_model("net", version="2")
    write(repo / "net", {"metadata.json": METADATA})
    write(repo / "net" / "2", {"metadata.json": '{"version": 2, "f1": 1}'})
    first, second = one(repo / "net").versions
    assert first.provenance == Provenance(
        created_s=1769860800.0, label="1.4", metrics=(("accuracy", 0.5),)
    )
    assert second.provenance == Provenance(metrics=(("f1", 1.0),))
    assert "metadata.json" in {file.path for file in second.files}


def test_metadata_of_another_version_is_not_taken_or_the_folder_counts(
    write_model: WriteModel,
) -> None:
    repo = write_model("net")
    write(repo / "net", {"metadata.json": '{"version": 7, "accuracy": 1}'})
    assert one(repo / "net").versions[0].provenance is None
    write(repo / "net" / "1", {"metadata.json": '{"version": 7, "accuracy": 1}'})
    model = one(repo / "net")
    assert model.versions[0].provenance == Provenance(metrics=(("accuracy", 1.0),))
    assert "metadata.json says version 7, but the folder is 1: the folder counts" in model.warnings
    write(repo / "net" / "1", {"metadata.json": "[]"})
    assert "metadata.json is no JSON object" in one(repo / "net").error


def test_metadata_beside_a_bare_file_gives_it_its_version(tmp_path: Path) -> None:
    write(tmp_path, {"net.onnx": "", "metadata.json": '{"version": 5}'})
    assert one(tmp_path / "net.onnx").versions[0].version == 5
    assert one(tmp_path / "net.onnx").numbered
    write(tmp_path, {"other.onnx": ""})  # now it could be of either
    assert one(tmp_path / "net.onnx").versions[0].version == 1
    write(tmp_path, {"other.metadata.json": '{"version": "20260131_120000"}'})
    assert one(tmp_path / "other.onnx").versions[0].version == 20260131120000


WARM_UP = """
model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 input_data_file: "zebra" } } }
"""
STATES = """
sequence_batching { state { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: 1
  initial_state { data_type: TYPE_FP32 dims: 1 data_file: "first" } } }
"""


@pytest.mark.parametrize(
    ("config", "path"), [(WARM_UP, "warmup/zebra"), (STATES, "initial_state/first")]
)
def test_files_that_the_configuration_names_belong_to_every_version(
    write_model: WriteModel, tmp_path: Path, config: str, path: str
) -> None:
    repo = write_model("net", config=config)
    assert f"names the file {path!r}, but" in one(repo / "net").error
    write(repo / "net", {path: "12345678", "warmup/other": "x"})
    model = one(repo / "net")
    assert paths(model) == {1: sorted(["model.onnx", path])}
    assert find_file(model.versions[0].folder, path) == repo / "net" / path
    (repo / "net" / path).unlink()
    (tmp_path / "secret").touch()
    (repo / "net" / path).symlink_to(tmp_path / "secret")
    assert "it is a link that leads out" in one(repo / "net").error
    with pytest.raises(ModelError, match="is not there"):
        find_file(model.versions[0].folder, path)


def test_server_models_choose_what_is_served_and_how_often(write_model: WriteModel) -> None:
    write_model("a")
    repo = write_model("b")
    found = scan(repo, server_models='[{"model": "b", "replicas": "2"}, {"model": "c"}]')
    assert [(model.name, model.error == "") for model in found] == [("b", True), ("c", False)]
    assert found[0].versions[0].execution.replicas == 2
    assert "SERVER_MODELS names 'c', but" in found[1].error
    (repo / ".env").write_text("OTHER=1\nSERVER_MODELS='[\"a\"]'\n")
    assert [model.name for model in scan(repo)] == ["a"]
    assert [model.name for model in scan(repo, server_models='["b"]')] == ["b"]
    with pytest.raises(ModelError, match="SERVER_MODELS cannot be read: it is not JSON"):
        scan(repo, server_models="a,b")


def test_a_linked_environment_file_that_leads_out_is_not_read(
    write_model: WriteModel, tmp_path: Path
) -> None:
    (tmp_path / "secrets").write_text("SERVER_MODELS='[]'")
    repo = write_model("net")
    (repo / ".env").symlink_to(tmp_path / "secrets")
    with pytest.raises(ModelError, match="is a link that leads out"):
        scan(repo)


def test_a_python_file_that_is_no_text_counts_by_its_name(tmp_path: Path) -> None:
    write(tmp_path / "net" / "1", {})
    (tmp_path / "net" / "1").mkdir(parents=True)
    (tmp_path / "net" / "1" / "model.py").write_bytes(b"\xff\xfe")
    assert one(tmp_path / "net").versions[0].execution.spelling is Spelling.TRITON

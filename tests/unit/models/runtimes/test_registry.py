"""All runtimes by name, and which of them this machine can offer."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING, NoReturn

import pytest

from meshnode.errors import ModelError, NotServing
from meshnode.models.runtimes import registry
from meshnode.models.runtimes.base import Environment
from meshnode.models.runtimes.onnx import OnnxRuntime

if TYPE_CHECKING:
    from meshnode.types import InferRequest, InferResponse


async def nobody(request: InferRequest) -> InferResponse:
    raise NotServing(request.model)


ALONE = Environment(infer=nobody, manifest_of=lambda *_: None)


def test_every_runtime_is_there_by_its_name() -> None:
    runtimes = registry.all_runtimes(ALONE)
    assert list(runtimes) == ["onnx", "torch", "litert", "python", "ensemble"]
    assert {name for name, runtime in runtimes.items() if runtime.is_code} == {"torch", "python"}
    assert all(runtime.platform for runtime in runtimes.values())
    assert registry.runtime_named(runtimes, "onnx") is runtimes["onnx"]
    with pytest.raises(ModelError, match="no runtime 'tensorrt'; it has ensemble, litert, onnx"):
        registry.runtime_named(runtimes, "tensorrt")


def test_what_is_code_is_offered_only_where_it_is_allowed() -> None:
    assert "torch" in registry.installed_runtimes(allow_code=True)
    assert "python" in registry.installed_runtimes(allow_code=True)
    assert not {"torch", "python"} & set(registry.installed_runtimes(allow_code=False))


def test_what_is_not_installed_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ai_edge_litert" else real(name)
    )
    assert "litert" not in registry.installed_runtimes(allow_code=True)
    assert "onnx" in registry.installed_runtimes(allow_code=True)


def test_a_library_that_breaks_when_it_is_asked_counts_as_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: OnnxRuntime) -> NoReturn:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(OnnxRuntime, "capability", broken)
    found = registry.capabilities()
    assert found["onnx"].missing == "libcuda.so.1: cannot open shared object file"
    assert found["onnx"].devices == ()
    assert found["ensemble"].missing == ""


def test_knowing_the_runtimes_imports_none_of_their_libraries() -> None:
    script = (
        "import sys; from meshnode.models.runtimes import registry; "
        "registry.installed_runtimes(allow_code=True); "
        "print([n for n in ('numpy', 'torch', 'onnxruntime', 'ai_edge_litert') if n in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"

"""What docs/conformance.md is made from: each test says which feature of which dialect it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Test = TypeVar("Test", bound="Callable[..., Any]")

Dialect = Literal[
    "OIP REST",
    "OIP gRPC",
    "OpenAI",
    "TensorFlow Serving",
    "TorchServe",
    "Endpoint style",
    "Native API",
    "Jobs",
    "Front door",
    "Python client",
]

DIALECTS: Final[dict[Dialect, str]] = {
    "OIP REST": "`tritonclient.http`, synchronous and asyncio, and Triton's `perf_analyzer`",
    "OIP gRPC": "`tritonclient.grpc`, synchronous, asyncio and streaming, and `perf_analyzer`",
    "OpenAI": "the `openai` SDK, synchronous and asynchronous",
    "TensorFlow Serving": "requests as TensorFlow Serving documents them",
    "TorchServe": "requests as TorchServe documents them",
    "Endpoint style": "requests as curl and HTML forms send them",
    "Native API": "requests as `/openapi.json` describes them",
    "Jobs": "requests as [jobs.md](jobs.md) describes them",
    "Front door": "all of the above, with what they have in common",
    "Python client": "`MeshClient` and `AsyncMeshClient`",
}
"""The dialects in the order of the page, and what judges each."""


def is_left_out(report: pytest.TestReport, environment: Mapping[str, str]) -> bool:
    """Whether a test was skipped where everything that it needs is installed, so that nothing shows what its line says.

    Args:
        report: What came of it.
        environment: Variables: `CI` is set where the project's checks run, after `.ci/install dev`.
    """
    return bool(environment.get("CI")) and report.skipped and not hasattr(report, "wasxfail")


def conforms(dialect: Dialect, feature: str, *, supported: bool = True) -> Callable[[Test], Test]:
    """Mark a test as the one that shows a feature; several may be put on one test.

    The page is made from the source, so all arguments must be literals.

    Args:
        dialect: One of `DIALECTS`.
        feature: What is shown, as it stands on the page, such as `"chat completions, streamed"`.
        supported: False if the test shows how the feature, which others have, is refused here.

    Raises:
        ValueError: if there is no such dialect, or no feature is named.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"{dialect!r} is no dialect of tests/conformance/table.py; add it there")
    if not feature.strip() or not isinstance(supported, bool):
        raise ValueError("name the feature, and say with a literal whether it is supported")

    def mark(test: Test) -> Test:
        marked: Test = pytest.mark.e2e(test)
        return marked

    return mark

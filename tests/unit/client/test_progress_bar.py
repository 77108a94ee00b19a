"""The progress bar of the client."""

from __future__ import annotations

import io

from meshnode.client.jobs import JobInfo
from meshnode.client.progress_bar import ProgressBar
from meshnode.client.results import DeployProgress

UPLOADING = DeployProgress(
    stage="uploading", sent_bytes=50, total_bytes=100, text="50 of 100 [b]bytes[/b]"
)


def test_a_deployment_and_a_job_are_drawn_with_what_is_said_of_them() -> None:
    screen = io.StringIO()
    with ProgressBar(screen, force=True) as bar:
        bar(UPLOADING)
        assert "shown" in repr(bar)
        bar(DeployProgress(stage="waiting", ready=1, wanted=2, text="1 of 2 replicas"))
        bar(JobInfo(id="j", status="running", model="painter", progress=0.25))
        bar(JobInfo(id="j", status="succeeded", model="painter"))
    assert "painter: succeeded" in screen.getvalue()
    assert "shown" not in repr(bar)


def test_a_models_name_is_no_markup() -> None:
    screen = io.StringIO()
    with ProgressBar(screen, force=True) as bar:
        bar(UPLOADING)
    assert "[b]bytes[/b]" in screen.getvalue()


def test_nothing_is_drawn_where_nobody_looks() -> None:
    screen = io.StringIO()
    with ProgressBar(screen) as bar:
        bar(UPLOADING)
    assert screen.getvalue() == ""

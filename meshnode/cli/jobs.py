"""`meshnode jobs`: inferences whose callers do not wait for the answer."""

import json as json_codec
import sys
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh
from meshnode.cli.output import plain, print_error, print_json, print_table
from meshnode.client.calls import Call, ask
from meshnode.errors import ConfigError
from meshnode.limits import MAX_JOBS_LISTED

app = typer.Typer(
    name="jobs",
    help="Jobs: inferences that run while nobody waits.",
    no_args_is_help=True,
)

_JOBS = "/mesh/v1/jobs"
_ENDED = ("succeeded", "failed", "cancelled")
_LOOK_S = 0.5  # between two looks at a job that is waited for

_JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]


@app.command(name="list")
@asks_mesh
def list_(
    mesh: AskedMesh,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="STATUS",
            help="Only those that are queued, running, succeeded, failed or cancelled.",
            show_default="all",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, max=MAX_JOBS_LISTED, help="At most so many.")
    ] = 50,
    json: AsJson = False,
) -> None:
    """List jobs, the newest first: all of the mesh's, or with a key those of that key."""
    query = {"limit": str(limit), **({"status": status} if status else {})}
    with mesh.client() as client:
        found = client.get(f"{_JOBS}?{urlencode(query)}")
    if json:
        print_json(found)
        return
    print_table(
        ["ID", "STATUS", "MODEL", "NODE", "CREATED", "FINISHED"],
        [
            (
                job["id"],
                _status(job),
                job["model"],
                job["node"],
                job["created_at"],
                job["finished_at"],
            )
            for job in found["jobs"]
        ],
        empty="There are no jobs.",
        droppable=("FINISHED", "CREATED", "NODE"),
    )
    if found["next"]:
        typer.echo("There are more; see them with a larger --limit.")
    if found["incomplete"]:
        names = ", ".join(plain(name) for name in found["incomplete"])
        print_error(f"some jobs may be missing: {names} did not answer")


@app.command()
@asks_mesh
def show(
    mesh: AskedMesh,
    job: _JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    json: AsJson = False,
) -> None:
    """Show how a job fares; with --wait once it has ended, and end with 1 unless it succeeded."""
    with mesh.client() as client:
        found = client.get(_path(job))
        while wait and found["status"] not in _ENDED:
            time.sleep(_LOOK_S)
            found = client.get(_path(job))
    if json:
        print_json(found)
    else:
        _print(found)
    if wait and found["status"] != "succeeded":
        raise typer.Exit(1)


@app.command()
@asks_mesh
def cancel(
    mesh: AskedMesh,
    job: _JobId,
    json: AsJson = False,
) -> None:
    """Cancel a job; one that has ended stays as it is."""
    with mesh.client() as client:
        found = client.delete(_path(job))
    if json:
        print_json(found)
    elif found["status"] == "cancelled":
        typer.echo(f"Job {plain(found['id'])} is cancelled.")
    else:
        typer.echo(f"Job {plain(found['id'])} had ended before: {plain(found['status'])}.")


@app.command()
@asks_mesh
def result(
    mesh: AskedMesh,
    job: _JobId,
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write it to this file.", show_default="stdout"),
    ] = None,
) -> None:
    """Print the answer of a job that has ended, as its path would have given it."""
    with mesh.client() as client:
        reply = client.run(ask(Call("GET", f"{_path(job)}/result")))
    if output is None:
        sys.stdout.buffer.write(reply.body)
        sys.stdout.buffer.flush()
        return
    try:
        Path(output).expanduser().write_bytes(reply.body)
    except OSError as error:
        raise ConfigError(f"{output!r} cannot be written: {error.strerror}") from None


@app.command()
@asks_mesh
def submit(
    mesh: AskedMesh,
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Public name of the model.")],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help='A JSON file with {"inputs": {NAME: value}}, as for /mesh/v1/models/MODEL/infer; - for stdin.',
        ),
    ],
    json: AsJson = False,
) -> None:
    """Have a model run later; print the job's id, and nothing else where no terminal reads it."""
    body = _read(file)
    with mesh.client() as client:
        made = client.post(f"/mesh/v1/models/{quote(name, safe='')}/jobs", body)
    if json:
        print_json(made)
        return
    job = plain(made["id"])
    if not sys.stdout.isatty():
        typer.echo(job)
        return
    typer.echo(
        f"Job {job} is {plain(made['status'])}. When it has ended:\n\n  meshnode jobs result {job}"
    )


def _path(job: str) -> str:
    return f"{_JOBS}/{quote(job, safe='')}"


def _status(job: dict[str, Any]) -> str:
    if job["status"] == "running" and job["progress"] is not None:
        return f"running {job['progress']:.0%}"
    return str(job["status"])


def _print(job: dict[str, Any]) -> None:
    typer.echo(f"Job {plain(job['id'])}: {plain(_status(job))}")
    rows = {
        "asks": job["path"],
        "node": job["node"],
        "created": job["created_at"],
        "started": job["started_at"],
        "finished": job["finished_at"],
        "kept until": job["expires_at"],
    }
    if job["webhook"] is not None:
        rows["webhook"] = f"{job['webhook']['url']} ({job['webhook']['state']})"
    if job["error"] is not None:
        rows["error"] = job["error"]["error"]
    for name, value in rows.items():
        if value is not None:
            typer.echo(f"  {name}: {plain(value)}")


def _read(file: str) -> Any:
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
        return json_codec.loads(text)
    except OSError as error:
        raise ConfigError(f"{file!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file!r} is not JSON: {error}") from None

"""The entry point: assembles the commands and turns errors into a sentence and an exit code.

| exit code | when |
|---|---|
| 0 | it worked |
| 1 | something failed on the way: a peer, the network, a model, a timeout |
| 2 | what was asked cannot be: a wrong option, no daemon, an unknown model, a bad invite |
| 130 | Ctrl-C |
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import meshnode
from meshnode.cli import demo, deploy, infer, inspect, invite, join
from meshnode.cli.output import print_error
from meshnode.errors import MeshError, UsageError

_EXIT_FAILED = 1
_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class MeshGroup(TyperGroup):
    """The command group, with the project's errors as `error: sentence` instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; see the table above for what its errors become."""
        try:
            return super().invoke(ctx)
        except MeshError as error:
            print_error(error)
            code = _EXIT_USAGE if isinstance(error, UsageError) else _EXIT_FAILED
            raise typer.Exit(code) from None
        except KeyboardInterrupt:
            raise typer.Exit(_EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=MeshGroup,
    name="meshnode",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"meshnode {meshnode.__version__}")
        raise typer.Exit


@app.callback()
def _meshnode(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """One inference mesh from all your devices: join each, deploy a model, ask any of them."""


app.command()(join.join)
app.command()(invite.invite)
app.command()(inspect.nodes)
app.command()(inspect.models)
app.command()(inspect.status)
app.command()(deploy.deploy)
app.command()(deploy.undeploy)
app.command()(infer.infer)
app.command()(demo.demo)


def main() -> None:
    """Run the command line; exits the process."""
    app(prog_name="meshnode")

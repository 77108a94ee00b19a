"""The entry point: assembles the commands and turns errors into a sentence and an exit code.

| exit code | when |
|---|---|
| 0 | it worked |
| 1 | something failed on the way: a peer, the network, a model, a timeout; stdout could not be written |
| 2 | what was asked cannot be: a wrong option, no daemon, an unknown model, a bad invite |
| 130 | Ctrl-C |
"""

import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

import meshnode
from meshnode.cli.arguments import JSON_ASKED
from meshnode.cli.output import give_up_output, print_error, print_json
from meshnode.errors import MeshError

_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_COMMANDS: Final = {
    "join": "join:join",
    "invite": "invite:invite",
    "approve": "approve:approve",
    "drain": "drain:drain",
    "evict": "evict:evict",
    "trust": "trust:app",
    "keys": "keys:app",
    "stop": "running:stop",
    "leave": "running:leave",
    "logs": "running:logs",
    "service": "service:app",
    "nodes": "inspect:nodes",
    "node": "node:app",
    "rtt": "rtt:rtt",
    "explain": "explain:explain",
    "doctor": "doctor:doctor",
    "models": "inspect:models",
    "status": "inspect:status",
    "deploy": "deploy:deploy",
    "undeploy": "deploy:undeploy",
    "apply": "apply:apply",
    "diff": "apply:diff",
    "deployments": "deployments:deployments",
    "get": "deployments:get",
    "history": "deployments:history",
    "rollout": "rollout:app",
    "rollback": "deployments:rollback",
    "pause": "deployments:pause",
    "resume": "deployments:resume",
    "env": "deployments:env",
    "delete": "deployments:delete",
    "publish": "publish:publish",
    "unpublish": "publish:unpublish",
    "artifacts": "publish:artifacts",
    "infer": "infer:infer",
    "jobs": "jobs:app",
    "convert": "convert:convert",
    "optimize": "optimize:optimize",
    "bake": "bake:bake",
    "demo": "demo:demo",
    "sim": "sim:app",
    "config": "config:app",
}
"""Commands in the order of the help, with the module below `meshnode.cli` and the function or group."""


class _CommandsOnDemand(MutableMapping[str, Any]):
    """The commands by name; each is imported when it is asked for.

    A command that needs little starts quickly, and a daemon carries no other command's modules.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            module, _, attribute = _COMMANDS[name].partition(":")
            found = getattr(import_module(f"meshnode.cli.{module}"), attribute)
            if isinstance(found, typer.Typer):
                self._loaded[name] = get_group(found)
            else:
                alone = typer.Typer(add_completion=False)
                alone.command(name)(found)
                self._loaded[name] = get_command(alone)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in _COMMANDS

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class MeshGroup(TyperGroup):
    """The command group, with the project's errors as `error: sentence` instead of a traceback."""

    def __init__(self, **settings: Any) -> None:
        """Take Typer's settings; the commands are those of `_COMMANDS`."""
        super().__init__(**settings)
        self.commands = _CommandsOnDemand()

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run the command line; an output that cannot be written, as on a full disk, is told as an error."""
        try:
            return super().main(*args, **settings)
        except OSError as error:
            if not give_up_output():
                raise  # it is about another file, which whoever opened it should have told
            print_error(
                f"the output cannot be written: {error.strerror}; free some space, or send it elsewhere"
            )
            sys.exit(_EXIT_FAILED)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; see the table above for what its errors become."""
        try:
            return super().invoke(ctx)
        except MeshError as error:
            print_error(error)
            if ctx.meta.get(JSON_ASKED):
                print_json({"error": str(error), "code": error.code})
            raise typer.Exit(error.exit_code) from None
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


def main() -> None:
    """Run the command line; exits the process."""
    app(prog_name="meshnode")

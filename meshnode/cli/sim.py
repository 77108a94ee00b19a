"""`meshnode sim`: whole meshes on this machine, in virtual time or as real processes.

Each command is a module of its own (`sim_run`, `sim_compare`, ...) that imports the simulator when it
runs, and is registered here in the order of the help.
"""

import typer

from meshnode.cli.sim_compare import compare
from meshnode.cli.sim_library import check, list_scenarios, show
from meshnode.cli.sim_run import run
from meshnode.cli.sim_shrink import shrink
from meshnode.cli.sim_up import up

app = typer.Typer(
    name="sim",
    help="Rehearse: play a mesh with its faults on this machine, from a scenario file and a seed.",
    no_args_is_help=True,
)

app.command("run")(run)
app.command("compare")(compare)
app.command("shrink")(shrink)
app.command("up")(up)
app.command("list")(list_scenarios)
app.command("show")(show)
app.command("check")(check)

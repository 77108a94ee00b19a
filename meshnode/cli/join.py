"""`meshnode join`: check what was asked, then be the daemon."""

import sys
from dataclasses import replace
from typing import Annotated

import typer

from meshnode.cli.invite import read_invite
from meshnode.cli.output import print_error
from meshnode.cli.settings import ConfigFile, EnvFile, load_settings, option
from meshnode.datafolder import is_member, read_evicted
from meshnode.errors import ConfigError
from meshnode.options import no_mesh_to_rejoin
from meshnode.settings.fields import HTTP, MESH, RUNNING


def join(
    invite: Annotated[
        str | None,
        typer.Argument(
            help="The mesh1… line from `meshnode invite` on a member; - reads it from stdin.",
            metavar="INVITE",
        ),
    ] = None,
    invite_file: Annotated[
        str | None,
        typer.Option(
            help="A file with that line, which `ps` does not show.",
            metavar="FILE",
            rich_help_panel=MESH,
        ),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            "-d",
            help="Run in the background, once it is a member.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    name: Annotated[str | None, option("name")] = None,
    region: Annotated[str | None, option("region")] = None,
    zone: Annotated[str | None, option("zone")] = None,
    label: Annotated[list[str] | None, option("labels")] = None,
    models: Annotated[str | None, option("models")] = None,
    models_poll: Annotated[str | None, option("models_poll")] = None,
    listen: Annotated[str | None, option("listen")] = None,
    advertise: Annotated[list[str] | None, option("advertise")] = None,
    mdns: Annotated[bool | None, option("mdns")] = None,
    mdns_interface: Annotated[list[str] | None, option("mdns_interfaces")] = None,
    relay: Annotated[bool | None, option("relay")] = None,
    profile: Annotated[str | None, option("profile")] = None,
    membership: Annotated[
        list[str] | None,
        typer.Option(
            help="One value of the profile, such as probe_interval_s=2; repeatable; '' for none.",
            metavar="NAME=VALUE",
            rich_help_panel=MESH,
        ),
    ] = None,
    ask: Annotated[
        str | None,
        typer.Option(
            help="Ask to be admitted without an invite: HOST:PORT of a node, or a node's name or a mesh's "
            "id as heard by mDNS. Shows a code for `meshnode approve` there.",
            metavar="WHERE",
            rich_help_panel=MESH,
        ),
    ] = None,
    new: Annotated[
        bool,
        typer.Option(
            "--new", help="Found a new mesh without looking for others.", rich_help_panel=MESH
        ),
    ] = False,
    rejoin: Annotated[
        bool,
        typer.Option(
            "--rejoin",
            help="Only rejoin the mesh that this device is a member of; never found one.",
            rich_help_panel=MESH,
        ),
    ] = False,
    http: Annotated[str | None, option("http")] = None,
    no_gateway: Annotated[
        bool, typer.Option("--no-gateway", help="Offer no HTTP.", rich_help_panel=HTTP)
    ] = False,
    grpc: Annotated[str | None, option("grpc")] = None,
    no_grpc: Annotated[
        bool, typer.Option("--no-grpc", help="Offer no gRPC.", rich_help_panel=HTTP)
    ] = False,
    shared_memory: Annotated[bool | None, option("shared_memory")] = None,
    triton_ports: Annotated[bool | None, option("triton_ports")] = None,
    allow_host: Annotated[list[str] | None, option("allow_hosts")] = None,
    require_key: Annotated[bool | None, option("require_key")] = None,
    cors_origin: Annotated[list[str] | None, option("cors_origins")] = None,
    allow_outbound: Annotated[list[str] | None, option("allow_outbound")] = None,
    access_log: Annotated[str | None, option("access_log")] = None,
    decision_log: Annotated[str | None, option("decision_log")] = None,
    tls_cert: Annotated[str | None, option("tls_cert")] = None,
    tls_key: Annotated[str | None, option("tls_key")] = None,
    max_memory: Annotated[str | None, option("max_memory")] = None,
    response_cache: Annotated[str | None, option("response_cache")] = None,
    max_disk: Annotated[str | None, option("max_disk")] = None,
    max_cpus: Annotated[str | None, option("max_cpus")] = None,
    nice: Annotated[str | None, option("nice")] = None,
    only_on_mains: Annotated[bool | None, option("only_on_mains")] = None,
    max_temperature: Annotated[str | None, option("max_temperature")] = None,
    cost: Annotated[str | None, option("cost")] = None,
    allow_code: Annotated[bool | None, option("allow_code")] = None,
    log_level: Annotated[str | None, option("log_level")] = None,
    log_format: Annotated[str | None, option("log_format")] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="The node's data folder (MESHNODE_DATA_DIR).",
            show_default="the platform's data folder",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    config: ConfigFile = None,
    env_file: EnvFile = None,
) -> None:
    """Run this device's node, in the foreground until Ctrl-C, or with --detach in the background.

    With an invite it joins that mesh; later, a plain `meshnode join` rejoins it, with the same
    settings, which it keeps in its data folder. An option given anew replaces what is kept.

    Without one it looks for meshes on the local network, and founds one if there is none. On a terminal
    it asks which of them is meant, and shows a code to type on a member: `meshnode approve CODE`.

    Settings also come from MESHNODE_… variables, a .env file and config.toml in the data folder:
    `meshnode config show` tells each value and where it is from.
    """
    invite = read_invite(invite, invite_file)
    if invite is not None and new:
        raise ConfigError("an invite joins an existing mesh and --new founds one; give one of them")
    if ask is not None and (new or rejoin or invite is not None):
        raise ConfigError(
            "--ask asks a member to admit this device; leave out --new, --rejoin and the invite"
        )
    if rejoin and (new or invite is not None):
        raise ConfigError(
            "--rejoin is for a device that is a member already; leave it out to join by an invite or to "
            "found a mesh with --new"
        )
    if no_gateway and http is not None:
        raise ConfigError("--http says where the gateway listens and --no-gateway leaves it out")
    if no_grpc and grpc is not None:
        raise ConfigError("--grpc says where gRPC is served and --no-grpc leaves it out")
    loaded = load_settings(
        {
            "name": name,
            "region": region,
            "zone": zone,
            "labels": label,
            "models": models,
            "models_poll": models_poll,
            "listen": listen,
            "advertise": advertise,
            "mdns": mdns,
            "mdns_interfaces": mdns_interface,
            "relay": relay,
            "profile": profile,
            "http": "off" if no_gateway else http,
            "grpc": "off" if no_grpc else grpc,
            "shared_memory": shared_memory,
            "triton_ports": triton_ports,
            "allow_hosts": allow_host,
            "require_key": require_key,
            "cors_origins": cors_origin,
            "allow_outbound": allow_outbound,
            "access_log": access_log,
            "decision_log": decision_log,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "max_memory": max_memory,
            "response_cache": response_cache,
            "max_disk": max_disk,
            "max_cpus": max_cpus,
            "nice": nice,
            "only_on_mains": only_on_mains,
            "max_temperature": max_temperature,
            "cost": cost,
            "allow_code": allow_code,
            "log_level": log_level,
            "log_format": log_format,
        },
        membership=membership,
        data_dir=data_dir,
        config=config,
        env_file=env_file,
    )
    options = loaded.settings.options(data_dir=str(loaded.data_dir), invite=invite, new=new)
    evicted = read_evicted(loaded.data_dir)
    if evicted is not None and invite is None and ask is None and not new:
        from meshnode.daemon.supervisor import final_exit_code

        print_error(evicted.sentence)
        raise typer.Exit(final_exit_code(ConfigError.exit_code))
    if rejoin and not is_member(loaded.data_dir):
        raise ConfigError(no_mesh_to_rejoin(str(loaded.data_dir)))
    # A member that is left while its daemon starts must not found a mesh of its own then.
    rejoin = rejoin or (invite is None and not new and is_member(loaded.data_dir))
    options = replace(options, rejoin=rejoin, ask=ask, config_files=loaded.files)
    if detach:
        from meshnode.cli.detach import start_detached

        raise typer.Exit(start_detached(options))
    from meshnode.daemon import run

    options = replace(options, on_terminal=sys.stdin.isatty() and sys.stdout.isatty())
    raise typer.Exit(run(options))

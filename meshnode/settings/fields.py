"""The table of all settings: the one place that names, types, explains and limits them.

A setting has one name in three spellings: `max_memory` in TOML, `MESHNODE_MAX_MEMORY` in the
environment and in `.env`, `--max-memory` on the command line (where what can be repeated is named
in the singular). The settings of membership are a table of their own (`tuning`), since their
single source is `MembershipConfig`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from meshnode.limits import (
    MAX_ADVERTISED,
    MAX_ALLOWED_HOSTS,
    MAX_CLAIMED_COST,
    MAX_CORS_ORIGINS,
    MAX_CPUS,
    MAX_MDNS_INTERFACES,
    MAX_MODELS_POLL_S,
    MAX_OUTBOUND_NETWORKS,
    MAX_TEMPERATURE_LIMIT_C,
    MIN_DISK_LIMIT_BYTES,
    MIN_MEMORY_LIMIT_BYTES,
    MIN_RESPONSE_CACHE_BYTES,
    MIN_TEMPERATURE_LIMIT_C,
    MODELS_POLL_S,
    RESPONSE_CACHE_BYTES,
)
from meshnode.options import (
    DEFAULT_GRPC,
    DEFAULT_GRPC_PORT,
    DEFAULT_HTTP,
    DEFAULT_HTTP_PORT,
    DEFAULT_LISTEN,
    DEFAULT_MESH_PORT,
    DEFAULT_REGION,
)
from meshnode.settings.kinds import (
    Choice,
    DiskSize,
    FilePath,
    HostName,
    HostPort,
    InterfaceAddress,
    Kind,
    Labels,
    ListOf,
    LogPlace,
    ModelPlace,
    Name,
    NetworkText,
    Number,
    Origin,
    PublicAddress,
    Size,
    Switch,
)

PREFIX: Final = "MESHNODE_"
"""What the environment variables of settings begin with."""

THIS_NODE: Final = "This node"
MESH: Final = "Mesh"
HTTP: Final = "HTTP"
OWNER_LIMITS: Final = "Limits the owner sets"
LOGGING: Final = "Logging"
RUNNING: Final = "Running"


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One setting.

    Attributes:
        key: Its name in TOML; in capitals after `MESHNODE_`, its environment variable.
        kind: How its values are read.
        default: Its value where nobody chose one.
        option: Its options as the command line declares them, the first one for messages.
        metavar: What follows the option, or None for a switch.
        panel: The group of `join --help` that it is shown in.
        help: What the command line says of it, in a few words.
        meaning: What it does.
        unit: What it is counted in, or its form.
        trade_off: What more of it, or choosing it at all, costs and brings.
        sane: Values that make sense.
        relation: What else it depends on.
        example: A value as TOML has it.
        default_text: The default as people read it, where it is not the value.
        attribute: Its name in `JoinOptions`.
    """

    key: str
    kind: Kind
    default: Any
    option: tuple[str, ...]
    metavar: str | None
    panel: str
    help: str
    meaning: str
    unit: str
    trade_off: str
    sane: str
    relation: str
    example: str
    default_text: str = ""
    attribute: str = ""

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.key.upper().replace(".", "_")


_FIELDS: Final = (
    Field(
        key="name",
        kind=Name(),
        default=None,
        default_text="the host name",
        option=("--name",),
        metavar="NAME",
        panel=THIS_NODE,
        help="This node's name.",
        meaning="What this node is called in tables, logs and `--on`.",
        unit="1 to 63 letters, digits, `-`, `_`, `.`",
        trade_off="A name of your own survives a change of the host name; the host name needs no choice.",
        sane="One that no other node of the mesh has: two nodes of one name are told apart by id only.",
        relation="Nothing depends on it: a node's identity is its key.",
        example='"kitchen"',
    ),
    Field(
        key="region",
        kind=Name(),
        default=DEFAULT_REGION,
        option=("--region",),
        metavar="NAME",
        panel=THIS_NODE,
        help="Where this node is, such as eu-west.",
        meaning="Where this node is. Replicas are spread over regions, and retries prefer another one.",
        unit="a name; any, no fixed list",
        trade_off="More regions spread a model wider, so that it survives the loss of a site, and send "
        "more requests over long ways.",
        sane="One per site or cloud region: nodes within about 10 ms of each other share it.",
        relation="`zone` divides it.",
        example='"eu-west"',
    ),
    Field(
        key="zone",
        kind=Name(may_be_empty=True),
        default="",
        option=("--zone",),
        metavar="NAME",
        panel=THIS_NODE,
        help="A place within the region; '' for none.",
        meaning="A place within the region that fails as a whole, such as a rack or a room.",
        unit="a name, or empty for none",
        trade_off="Tells nodes of one region apart for their owner, at the cost of one more name to keep right.",
        sane="None at home; a rack or an availability zone elsewhere.",
        relation="Only meaningful within `region`.",
        example='"rack-1"',
    ),
    Field(
        key="labels",
        kind=Labels(),
        default=(),
        option=("--label",),
        metavar="KEY=VALUE",
        panel=THIS_NODE,
        help="A label of this node; repeatable; '' for none.",
        meaning="Facts about this node that its owner states and all nodes see.",
        unit="pairs of key and value, of the letters that a name has; in TOML also a table",
        trade_off="Each label is carried in the node's record to all members, so a few are free and "
        "dozens cost traffic at every start.",
        sane="0 to 5; at most 32.",
        relation="A list replaces the list of a lower source as a whole.",
        example='{ gpu = "a100", owner = "anna" }',
    ),
    Field(
        key="models",
        kind=ModelPlace(),
        default=None,
        option=("--models", "--model-repository"),
        metavar="DIR|URL",
        panel=THIS_NODE,
        help="Serve every model of this folder, s3://, gs:// or http(s):// URL; '' for none.",
        meaning="A model repository whose every model this node serves: on this machine, in a bucket or on a "
        "web server.",
        unit="a folder that holds one folder per model, an archive of one, such as `meshnode bake` writes, or a URL",
        trade_off="Serves without a deployment, but on this node only; `meshnode deploy` places models "
        "on the nodes that suit.",
        sane="None, a folder of models that are prepared on this machine, or a bucket that they are put into.",
        relation="Loaded models count towards `max_memory`. `models_poll` says how often it is looked at.",
        example='"models"',
    ),
    Field(
        key="models_poll",
        kind=Number(0, MAX_MODELS_POLL_S, whole=False, unit="seconds"),
        default=MODELS_POLL_S,
        option=("--models-poll",),
        metavar="S",
        panel=THIS_NODE,
        help="Look this often for changed models in --models; 0 only at the start.",
        meaning="How often the folder of `models` is looked at for new, changed and removed versions.",
        unit="seconds; 0 for never again after the start",
        trade_off="Shorter serves a new version sooner; longer looks at a large folder less often.",
        sane="1 to 60.",
        relation="A file that still grows is waited for: a version is loaded once two looks in a row see the "
        "same. A bucket or web server is asked once a minute at most.",
        example="10.0",
        attribute="models_poll_s",
    ),
    Field(
        key="listen",
        kind=HostPort(DEFAULT_MESH_PORT),
        default=DEFAULT_LISTEN,
        option=("--listen",),
        metavar="HOST:PORT",
        panel=MESH,
        help="The mesh: TCP and UDP.",
        meaning="Where this node takes links (TCP) and datagrams (UDP) of other nodes.",
        unit="HOST:PORT; without a port, the default one; port 0 takes a free one at each start",
        trade_off="A wildcard is reached over every interface; one address keeps the mesh to one network; "
        "loopback keeps it to this machine. A fixed port can be opened in a firewall, a free one cannot.",
        sane="The default, or an address of this machine.",
        relation="`advertise` tells others another address, where this one is not what they reach.",
        example=f'"{DEFAULT_LISTEN}"',
    ),
    Field(
        key="advertise",
        kind=ListOf(PublicAddress(0), MAX_ADVERTISED),
        default=(),
        default_text="the addresses of the machine's interfaces",
        option=("--advertise",),
        metavar="HOST:PORT",
        panel=MESH,
        help="Tell others this address instead of the found ones; repeatable; '' for none.",
        meaning="Where others are told to reach this node, instead of the addresses found on its interfaces.",
        unit="a list of HOST:PORT, tried in this order; without a port (or with port 0) that of `listen`",
        trade_off="Needed behind a port mapping, in a container or a cloud; a wrong one makes this node "
        "unreachable for all that cannot be dialled from here.",
        sane="None on a plain machine; else one to three, such as the public and the private address.",
        relation="Their ports must lead to the port of `listen`, both TCP and UDP.",
        example='["203.0.113.7:8471"]',
    ),
    Field(
        key="mdns",
        kind=Switch(),
        default=True,
        option=("--mdns/--no-mdns",),
        metavar=None,
        panel=MESH,
        help="Announce and search on the local network.",
        meaning="Announce this node on the local network, and look for others there.",
        unit="true or false",
        trade_off="On, nodes of one network find each other without typing; off, nobody on that network "
        "hears that this node exists.",
        sane="On at home, off in networks of strangers and where multicast is unwanted.",
        relation="`mdns_interfaces` limits it.",
        example="true",
    ),
    Field(
        key="mdns_interfaces",
        kind=ListOf(InterfaceAddress(), MAX_MDNS_INTERFACES),
        default=(),
        default_text="all that are suitable",
        option=("--mdns-interface",),
        metavar="ADDRESS",
        panel=MESH,
        help="Limit that to the network of this address; repeatable; '' for all.",
        meaning="The networks on which this node announces itself and searches.",
        unit="a list of IP addresses of this machine",
        trade_off="Fewer networks hear of this node, and nodes on the others must be found by invite.",
        sane="All, or the one address whose network is yours.",
        relation="Contradicts `mdns = false`.",
        example='["192.168.1.7"]',
    ),
    Field(
        key="relay",
        kind=Switch(),
        default=True,
        option=("--relay/--no-relay",),
        metavar=None,
        panel=MESH,
        help="Pass on what two nodes say that cannot dial each other.",
        meaning="Relay between nodes of this mesh that have links to this one and cannot dial each other, as two "
        "behind routers. They encrypt what they say from end to end: this node reads nothing of it.",
        unit="true or false",
        trade_off="On, nodes behind routers serve each other through this one, for at most 64 MiB/s of its network; "
        "off, they need another relay, or do without each other.",
        sane="On where the network costs nothing by volume; off on a metered line.",
        relation="It says nothing about whether this node uses relays: it does where it has to.",
        example="true",
    ),
    Field(
        key="profile",
        kind=Choice(("lan", "wan")),
        default="lan",
        option=("--profile",),
        metavar="lan|wan",
        panel=MESH,
        help="How patient membership is; the same on all nodes.",
        meaning="The preset of membership's times: how often members are probed, and how long they may "
        "be silent. Every node of a mesh should use the same one: a node with shorter times "
        "declares others dead that are within theirs.",
        unit="`lan` or `wan`",
        trade_off="`lan` notices a crash in seconds and needs round trips below about 50 ms; `wan` "
        "tolerates a second and loss, sends a fifth of the probes and takes several times as long.",
        sane="`lan` within one site; `wan` when any two nodes are on different continents, on mobile "
        "networks or satellites.",
        relation="The fields of `membership` override single values of it.",
        example='"lan"',
    ),
    Field(
        key="http",
        kind=HostPort(DEFAULT_HTTP_PORT, may_be_off=True),
        default=DEFAULT_HTTP,
        option=("--http",),
        metavar="HOST:PORT",
        panel=HTTP,
        help="The HTTP gateway; off loopback, callers need keys.",
        meaning="Where this node's gateway answers HTTP for the whole mesh; `off` for no gateway "
        "(`--no-gateway` on the command line).",
        unit="HOST:PORT, or `off`; without a port, the default one; port 0 takes a free one at each start",
        trade_off="Loopback needs no keys and serves this machine only; any other address serves other "
        "machines, which need API keys.",
        sane="The default; `0.0.0.0:8470` with `tls_cert` where others shall ask.",
        relation="Off loopback, use `tls_cert` and `tls_key`, and `allow_hosts` behind a proxy.",
        example='"127.0.0.1:8470"',
    ),
    Field(
        key="grpc",
        kind=HostPort(DEFAULT_GRPC_PORT, may_be_off=True),
        default=DEFAULT_GRPC,
        default_text=f"the host of `http`, port {DEFAULT_GRPC_PORT}, if grpcio is installed and the port is free",
        option=("--grpc",),
        metavar="HOST:PORT",
        panel=HTTP,
        help="The gateway's gRPC; needs meshnode[grpc].",
        meaning="Where this node's gateway answers gRPC (Open Inference Protocol, as Triton has it) for the whole "
        "mesh; `off` for none (`--no-grpc` on the command line).",
        unit="HOST:PORT, or `off`; without a port, the default one; port 0 takes a free one at each start",
        trade_off="Serves Triton's gRPC clients and load generators; takes about 15 MB and a few threads.",
        sane="The default; the host of `http` with a port of its own where several nodes share a machine.",
        relation="Only with a gateway (`http`), whose keys, certificate (`tls_cert`) and `require_key` hold here, "
        "too. Chosen, it must be possible; by default, it is left out where it is not.",
        example='"127.0.0.1:8472"',
    ),
    Field(
        key="shared_memory",
        kind=Switch(),
        default=False,
        option=("--shared-memory/--no-shared-memory",),
        metavar=None,
        panel=HTTP,
        help="Let programs on this machine hand tensors over in shared memory.",
        meaning="Whether clients on this machine may register system shared memory and name it instead of sending "
        "tensors (Triton's extension).",
        unit="true or false",
        trade_off="Large tensors cost their clients no sending; every program that may ask this gateway without a "
        "key can read and overwrite the shared memory of all programs that run as the daemon's user.",
        sane="Off, except on a machine of which you know every program, such as a benchmark's.",
        relation="Linux only; with `require_key` nobody counts as being on this machine.",
        example="false",
    ),
    Field(
        key="triton_ports",
        kind=Switch(),
        default=False,
        option=("--triton-ports/--no-triton-ports",),
        metavar=None,
        panel=HTTP,
        help="Also listen at Triton's ports: 8000 HTTP, 8001 gRPC, 8002 metrics.",
        meaning="Whether the gateway also listens where users of Triton look for a server: 8000 for HTTP, 8001 for "
        "gRPC (with meshnode[grpc]), 8002 for `/metrics` only.",
        unit="true or false",
        trade_off="Clients, load generators and dashboards made for Triton need no other address; only one node of a "
        "machine can have these ports.",
        sane="Off, except where such clients are used.",
        relation="At the host of `http`, with its certificate (`tls_cert`), keys (`require_key`) and `allow_hosts`; a port "
        "that is taken ends the start.",
        example="false",
    ),
    Field(
        key="allow_hosts",
        kind=ListOf(HostName(), MAX_ALLOWED_HOSTS),
        default=(),
        default_text="its own addresses",
        option=("--allow-host",),
        metavar="NAME",
        panel=HTTP,
        help="A further name that the gateway answers to; repeatable; '' for none.",
        meaning="Host names besides its own under which the gateway may be asked, such as a proxy's.",
        unit="a list of host names without ports",
        trade_off="Each name is one more under which a web page may reach the gateway through a "
        "browser; without it, requests for that name are refused.",
        sane="None, or the names in your DNS or proxy that lead here.",
        relation="Only with a gateway (`http`), whose callers then all need keys, as with `require_key`; "
        "the names should be in the certificate of `tls_cert`.",
        example='["mesh.example.org"]',
    ),
    Field(
        key="require_key",
        kind=Switch(),
        default=False,
        option=("--require-key/--no-require-key",),
        metavar=None,
        panel=HTTP,
        help="The gateway wants a key of everybody, of this machine's programs too.",
        meaning="The gateway wants an API key of every caller, programs on its own machine included; the "
        "`meshnode` command needs none, since it has a channel of its own.",
        unit="true or false",
        trade_off="Nobody is let in for where they seem to come from; every program on this machine "
        "then has to be given a key.",
        sane="True behind a reverse proxy or a tunnel on this machine, and where other people have "
        "accounts on it; false on a machine of your own.",
        relation="Only with a gateway (`http`). `allow_hosts` implies it, whatever is said here: a gateway "
        "with a public name is behind a proxy, whose callers all seem to be on this machine.",
        example="false",
    ),
    Field(
        key="cors_origins",
        kind=ListOf(Origin(), MAX_CORS_ORIGINS),
        default=(),
        default_text="none",
        option=("--cors-origin",),
        metavar="ORIGIN",
        panel=HTTP,
        help="Pages of this origin may use the gateway; repeatable; * for all; '' for none.",
        meaning="Origins of web pages that may use the gateway from a browser (CORS), besides the gateway's own.",
        unit="a list of origins, such as `https://app.example.org`, or `*`",
        trade_off="A page of a named origin may do what its API key allows, and on this machine, where "
        "programs need none, what they may. With `*` every page may try, and needs a key everywhere.",
        sane="None, or the origin of your own front end.",
        relation="Only with a gateway (`http`); with `require_key` pages need a key like all others.",
        example='["https://app.example.org"]',
    ),
    Field(
        key="allow_outbound",
        kind=ListOf(NetworkText(), MAX_OUTBOUND_NETWORKS),
        default=(),
        default_text="none",
        option=("--allow-outbound",),
        metavar="NETWORK",
        panel=HTTP,
        help="URLs that callers name may lead into this network too; repeatable; '' for none.",
        meaning="Networks that a URL which a caller of the HTTP API names (a job's webhook, a model's source) may lead "
        "to, besides public addresses.",
        unit="a list of networks, such as `10.0.0.0/8` or `192.168.1.20/32`",
        trade_off="Services of your own network can be told and read from, by everybody with an API key: through "
        "this node they reach what they may not reach themselves.",
        sane="None, or the addresses of the machines that receive webhooks.",
        relation="Each node goes by its own: any node of the mesh may be the one that tells a webhook.",
        example='["192.168.1.20/32"]',
    ),
    Field(
        key="access_log",
        kind=LogPlace(),
        default=None,
        option=("--access-log",),
        metavar="FILE",
        panel=HTTP,
        help="Write a line of JSON per request to this file, or to stdout (-); '' for none.",
        meaning="Where each request to this node's entrances is told: when, who, what, how long, which node "
        "answered, and the ids of the request and its trace.",
        unit="a file, or `-` for stdout; put aside when it has 64 MiB",
        trade_off="Who asked what and when can be found out later, also by others who read the file; each "
        "request costs some microseconds and 300 bytes.",
        sane="None at home; a file where several people or programs share a gateway.",
        relation="Only with a gateway (`http`). The node's own log (`log_level`) tells faults, not requests.",
        example='"/var/log/meshnode/access.log"',
    ),
    Field(
        key="decision_log",
        kind=FilePath(),
        default=None,
        option=("--decision-log",),
        metavar="FILE",
        panel=HTTP,
        help="Write decisions about requests to this file, to be replayed; '' for none.",
        meaning="Where decisions about requests are told with all that they were made from, so that `meshnode explain "
        "--replay` can make them again: why a request went where it went, and what another version would do.",
        unit="a file; put aside when it has 32 MiB",
        trade_off="Each line has some 6 KB of 20 candidates. A busy gateway writes only some of its decisions, at most "
        "1,000 candidates a second, which costs it about a hundredth of a core.",
        sane="None; a file while you look for a reason. The last 256 decisions are kept in memory in any case.",
        relation="It says nothing of what clients sent but its size. `access_log` tells what became of requests.",
        example='"/var/log/meshnode/decisions.log"',
    ),
    Field(
        key="tls_cert",
        kind=FilePath(),
        default=None,
        option=("--tls-cert",),
        metavar="FILE",
        panel=HTTP,
        help="The gateway's certificate chain (PEM); '' for none.",
        meaning="The certificate chain with which the gateway speaks HTTPS.",
        unit="a PEM file; read again when it changes",
        trade_off="Keys and data cannot be read on the way; somebody must renew it.",
        sane="None on loopback; a certificate for the names in use elsewhere.",
        relation="Together with `tls_key` only, and only with a gateway (`http`).",
        example='"tls/cert.pem"',
    ),
    Field(
        key="tls_key",
        kind=FilePath(),
        default=None,
        option=("--tls-key",),
        metavar="FILE",
        panel=HTTP,
        help="Its private key (PEM), without a password; '' for none.",
        meaning="The private key of that certificate.",
        unit="a PEM file without a password; read again when it changes",
        trade_off="As for `tls_cert`; who reads this file can pose as the gateway.",
        sane="A file that only this node's user can read.",
        relation="Together with `tls_cert` only, whose key it must be.",
        example='"tls/key.pem"',
    ),
    Field(
        key="max_memory",
        kind=Size(MIN_MEMORY_LIMIT_BYTES),
        default=None,
        default_text="no limit",
        option=("--max-memory",),
        metavar="SIZE",
        panel=OWNER_LIMITS,
        help="At most this memory: 8G, 512M or 50%; '' for no limit.",
        meaning="What this node may take of the machine's memory; models that would not fit are not loaded.",
        unit="bytes: K, M, G, T (or KiB …) are powers of 1024, KB … of 1000; `%` of the machine's memory",
        trade_off="Less leaves more for other programs, and fits fewer and smaller models.",
        sane="1G to 80%; at least 64M.",
        relation="Placement sees the lower of this and the machine's memory.",
        example='"50%"',
        attribute="max_memory_bytes",
    ),
    Field(
        key="response_cache",
        kind=Size(MIN_RESPONSE_CACHE_BYTES),
        default=RESPONSE_CACHE_BYTES,
        option=("--response-cache",),
        metavar="SIZE",
        panel=OWNER_LIMITS,
        help="Memory for kept answers: 64M, 1G or 5%; '' for none.",
        meaning="Memory for answers of models whose configuration asks for a response cache, over all "
        "models of this node.",
        unit="bytes: K, M, G, T (or KiB …) are powers of 1024, KB … of 1000; `%` of the machine's memory",
        trade_off="More answers are given without a run; what it takes, models cannot have.",
        sane="64M, the default; as much as the answers to an hour's repeated questions take; at least 1M.",
        relation="Counts towards `max_memory`; emptied while memory runs short.",
        example='"256M"',
        attribute="response_cache_bytes",
    ),
    Field(
        key="max_disk",
        kind=DiskSize(MIN_DISK_LIMIT_BYTES),
        default=None,
        default_text="what the disk has, less what stays free of it",
        option=("--max-disk",),
        metavar="SIZE",
        panel=OWNER_LIMITS,
        help="At most this disk for models: 200G, 512M or 50%; '' for no limit.",
        meaning="What the files of models may take of the disk that holds the data folder. Files of "
        "what is served, wanted or published here always stay, and more of them than this are not "
        "taken; files that nobody wants any more go first, least recently wanted first.",
        unit="bytes: K, M, G, T (or KiB …) are powers of 1024, KB … of 1000; `%` of the disk",
        trade_off="More keeps what was served before, so that it need not travel again; less leaves the "
        "disk to others.",
        sane="Twice the largest set of models served at once, so that the next version fits beside the "
        "last; at least 64M.",
        relation="Independent of it, 1 GiB (5 % of small disks) stays free. Without it, files that "
        "nobody wants take a tenth of the disk at most.",
        example='"200G"',
    ),
    Field(
        key="max_cpus",
        kind=Number(1, MAX_CPUS, whole=True, may_be_none=True),
        default=None,
        default_text="all",
        option=("--max-cpus",),
        metavar="N",
        panel=OWNER_LIMITS,
        help="Use at most so many processors; '' for all.",
        meaning="How many logical processors this node uses.",
        unit="processors",
        trade_off="Fewer leave the others to other programs, and make a request of a large model slower.",
        sane="1 to the machine's processors; half of them on a computer that somebody works on.",
        relation="`nice` shares processors instead of leaving them out.",
        example="4",
    ),
    Field(
        key="nice",
        kind=Number(0, 19, whole=True, may_be_none=True),
        default=None,
        default_text="as it was started",
        option=("--nice",),
        metavar="N",
        panel=OWNER_LIMITS,
        help="Scheduling priority, 0 to 19 (last).",
        meaning="How much this node gives way to other programs that want the processor.",
        unit="steps of Unix's `nice`",
        trade_off="Higher disturbs other programs less, and makes answers late while they are busy.",
        sane="0 on a server, 10 on a computer that somebody works on.",
        relation="Works within `max_cpus`.",
        example="10",
    ),
    Field(
        key="only_on_mains",
        kind=Switch(),
        default=False,
        option=("--only-on-mains/--no-only-on-mains",),
        metavar=None,
        panel=OWNER_LIMITS,
        help="Serve models only while not on battery.",
        meaning="Pause serving models while the machine runs on battery; it stays a member and a gateway.",
        unit="true or false",
        trade_off="Saves the battery; the mesh loses this node's replicas whenever it is unplugged.",
        sane="True on a laptop or phone, without effect on a machine that has no battery.",
        relation="Like `max_temperature`, it pauses replicas, and others take over.",
        example="false",
    ),
    Field(
        key="max_temperature",
        kind=Number(
            MIN_TEMPERATURE_LIMIT_C,
            MAX_TEMPERATURE_LIMIT_C,
            whole=False,
            unit="degrees Celsius",
            may_be_none=True,
        ),
        default=None,
        default_text="no limit",
        option=("--max-temperature",),
        metavar="C",
        panel=OWNER_LIMITS,
        help="Serve models only below this many degrees Celsius; '' for no limit.",
        meaning="Pause serving models while the machine is hotter than this.",
        unit="degrees Celsius",
        trade_off="Lower keeps a small or fanless machine cool and quiet, and pauses it more often.",
        sane="60 to 90; below what makes the processor throttle, where that is known.",
        relation="Needs a readable sensor (`meshnode node show`); without one it has no effect.",
        example="80",
        attribute="max_temperature_c",
    ),
    Field(
        key="cost",
        kind=Number(0, MAX_CLAIMED_COST, whole=False),
        default=0.0,
        option=("--cost",),
        metavar="N",
        panel=OWNER_LIMITS,
        help="What an hour of this machine costs; of equally fast ones the cheapest serves.",
        meaning="What an hour of this machine costs. Gateways choose the cheapest of replicas that are expected to be "
        "about equally fast.",
        unit="any that the mesh's owners agree on, such as cents",
        trade_off="A dear node gets requests when the others are busier; it never makes an answer much slower.",
        sane="0 for machines that are paid for anyway; what the provider bills for rented ones.",
        relation="Only compared with the `cost` of other nodes; all alike is as good as none.",
        example="2.5",
    ),
    Field(
        key="allow_code",
        kind=Switch(),
        default=False,
        option=("--allow-code/--no-allow-code",),
        metavar=None,
        panel=OWNER_LIMITS,
        help="Run models that are code (Python, TorchScript), wherever they come from.",
        meaning="Whether this node runs models that are code: Python models, TorchScript and exported "
        "programs of PyTorch, TorchServe archives. Whoever may deploy to the mesh then runs code here.",
        unit="true or false",
        trade_off="On, this node can serve such models for the mesh; each runs in a process of its own that "
        "the system keeps away from this node's key where it can (docs/python-models.md). Off, nobody's "
        "code comes here.",
        sane="True where you trust all who may deploy; false on a device that you only lend.",
        relation="Models in the node's own `models` folder run in any case: who wrote there is its owner.",
        example="false",
    ),
    Field(
        key="log_level",
        kind=Choice(("debug", "info", "warning", "error")),
        default="info",
        option=("--log-level",),
        metavar="LEVEL",
        panel=LOGGING,
        help="debug, info, warning or error.",
        meaning="The least severe messages that are logged, on stderr and in the log file.",
        unit="`debug`, `info`, `warning` or `error`",
        trade_off="`debug` shows every decision and costs disk and time at many requests per second; "
        "`error` hides what explains an error.",
        sane="`info`; `debug` while looking for a fault.",
        relation="Holds for both forms of `log_format`.",
        example='"info"',
    ),
    Field(
        key="log_format",
        kind=Choice(("text", "json")),
        default="text",
        option=("--log-format",),
        metavar="text|json",
        panel=LOGGING,
        help="The log on stderr; the log file is always JSON.",
        meaning="What the log on stderr looks like; the log file always has one JSON object per line.",
        unit="`text` or `json`",
        trade_off="`text` is for people; `json` is for a collector of logs and hard to read.",
        sane="`text` in a terminal, `json` in a container whose output is collected.",
        relation="Independent of `log_level`.",
        example='"text"',
    ),
)

FIELDS: Final = {field.key: field for field in _FIELDS}
"""All settings but those of membership, by key, in the order in which they are shown."""


def attribute_of(field: Field) -> str:
    """Return the name that a setting has in `JoinOptions`."""
    return field.attribute or field.key

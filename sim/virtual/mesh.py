"""A mesh of whole daemons in virtual time, and the clients that ask it.

    with VirtualMesh(machines, seed=7, network=NetworkConfig()) as mesh:
        mesh.start()
        mesh.deploy("digits", StandInModel(mean_s=0.02), replicas=2)
        outcome = mesh.loop.run_until_complete(mesh.ask(call))

The first machine founds the mesh, the others join with an invite that it makes. Every region has a
host with clients, which show an API key that the founder made.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec

from meshnode.errors import MeshError, UsageError
from meshnode.gateway.protocols.caller import OWNER
from meshnode.release_file import read_release
from meshnode.sim.core_world import NotReachedError
from meshnode.sim.network import Network, NetworkConfig
from meshnode.sim.stand_in import StandInModel
from meshnode.sim.standings import ASKED, DEPLOYED
from meshnode.sim.virtual.clients import HttpClient
from meshnode.sim.virtual.daemon import VirtualNode
from meshnode.sim.virtual.gateway_watch import GatewayWatch
from meshnode.sim.virtual.log_watch import LogWatch
from meshnode.sim.virtual.loop import VirtualLoop
from meshnode.types import Address, NodeId, NodeState, ReplicaState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from typing import Any

    from meshnode.effects import Emit
    from meshnode.node import Node
    from meshnode.sim import faults
    from meshnode.sim.stage import Call, Machine, Outcome
    from meshnode.sim.trace import Trace
    from meshnode.sim.virtual.host import VirtualHost
    from meshnode.state.release import Release
    from meshnode.state.scaling import Scaling
    from meshnode.types import InferRequest

MAX_NODES: Final = 100
"""Whole daemons in one process: so many take a minute of CPU to get to know each other."""

INVITE_TTL_S: Final = 7 * 86_400
"""How long the mesh's invite lasts: longer than a rehearsal."""

JOIN_APART_S: Final = 0.02
"""Seconds between the starts of two nodes: people do not press return at the same moment."""

LOOK_EVERY_S: Final = 0.05
"""How often a condition is looked at that is waited for."""

CLIENTS: Final = "clients"
"""Prefix of the names of the hosts where clients run; the region's name follows."""

_SETTLE_LIMIT_S: Final = 120.0
_LEAVING_POLL_S: Final = 0.1


class _Release(NamedTuple):
    """What was deployed last under a name; see `VirtualMesh.deploy`."""

    stand_in: StandInModel
    replicas: int | None
    on: tuple[str, ...]
    standby: int
    scaling: Scaling | None
    plan: Release | None = None


class VirtualMesh:
    """Nodes, their world, and clients.

    Attributes:
        machines: What there is.
        seed: Decides everything.
        loop: The world: time, hosts, network.
        nodes: By name.
        api_key: What clients show; empty until `start`.
        on_emit: Told of everything that cores report, with the node.
        on_made: Told of the cores of each boot before they hear of anything.
        on_ended: Told when a daemon's process is gone.
        on_event: Told of what people do to releases: the node's name, a kind, the model and a detail.
        by_id: Nodes by the ids that their cores have.
        gateway_watch: What watches what gateways answer; `broken` of it is told.
    """

    def __init__(
        self,
        machines: Sequence[Machine],
        seed: int,
        network: NetworkConfig | None = None,
        trace: Trace | None = None,
    ) -> None:
        """Make the hosts; nothing runs yet.

        Raises:
            UsageError: if there are too many machines, or none.
        """
        if not 1 <= len(machines) <= MAX_NODES:
            raise UsageError(
                f"whole daemons are for 1 to {MAX_NODES} nodes, not {len(machines)}; take depth A"
            )
        self.machines = tuple(machines)
        self.seed = seed
        paths = Network(network or NetworkConfig(), random.Random(f"{seed}/network"))
        self.loop = VirtualLoop(seed, paths, trace)
        self.api_key = ""
        self.on_emit: Callable[[VirtualNode, Emit], None] = lambda _node, _emit: None
        self.on_made: Callable[[VirtualNode, Node], None] = lambda _node, _cores: None
        self.on_ended: Callable[[VirtualNode], None] = lambda _node: None
        self.on_event: Callable[[str, str, str, str], None] = lambda *_about: None
        self.by_id: dict[NodeId, VirtualNode] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="meshnode-sim-"))
        self._is_closed = False
        self._log_watch = LogWatch()
        self._log_watch.begin()
        self._invite: str | None = None
        self.gateway_watch = GatewayWatch(self._gateway_at)
        self._clients: dict[str, HttpClient] = {}
        self._releases: dict[str, _Release] = {}
        self.released: dict[str, None] = {}
        """The models of which there was ever a release."""
        self._candidates: set[tuple[str, int]] = set()
        self.nodes = {each.name: self._node(each) for each in self.machines}

    def __repr__(self) -> str:
        up = sum(node.state == "up" for node in self.nodes.values())
        return f"<VirtualMesh seed {self.seed}: {up} of {len(self.nodes)} nodes up>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything and remove all files; may be called more than once."""
        if self._is_closed:
            return
        self._is_closed = True
        for node in self.nodes.values():
            node.close()
        self.loop.close()
        self._log_watch.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    # Starting.

    def start(self, progress: Callable[[str], None] = lambda _text: None) -> None:
        """Boot all nodes, and wait until all know all and clients may ask.

        Raises:
            NotReachedError: if that does not come about.
        """
        founder = self.founder
        progress(f"{founder.name} founds the mesh")
        founder.start(founds=True)
        self.wait_for(lambda: self._is_up(founder), "the founder is ready")
        invite = founder.host.call(self._make_invite)
        self._invite = invite
        self.api_key = founder.host.call(self._make_key)
        others = [node for node in self.nodes.values() if node is not founder]
        progress(f"{len(others)} nodes join")
        for number, node in enumerate(others):
            self.loop.after(number * JOIN_APART_S, node.start, invite)
        self.wait_for(lambda: all(map(self._is_up, self.nodes.values())), "all nodes are ready")
        progress("all get to know all")
        self.wait_for(self.agrees, "all nodes know all")
        self.wait_for(self._all_have_key, "all gateways know the clients' key")

    @property
    def founder(self) -> VirtualNode:
        """The node that founds the mesh: the first that can be dialled."""
        reachable = [each.name for each in self.machines if not each.nat]
        if not reachable:
            raise UsageError(
                "all nodes are behind routers: nobody could join; set one to nat = false"
            )
        return self.nodes[reachable[0]]

    def start_again(self, node: VirtualNode) -> None:
        """Switch a node on that does not run; one that is on its way out as soon as it has gone."""
        if node.host.running:
            if node.left:
                self.loop.after(_LEAVING_POLL_S, self.start_again, node)
            return
        is_member = (node.path / "mesh").exists()
        if is_member:
            node.start()
        elif node is self.founder:
            node.start(founds=True)
        else:
            node.start(self._invite)

    # Models.

    def deploy(
        self,
        model: str,
        stand_in: StandInModel,
        replicas: int | None = None,
        on: Sequence[str] = (),
        standby: int = 0,
        scaling: Scaling | None = None,
        plan: Release | None = None,
        by: str = "",
    ) -> None:
        """Deploy a model as `meshnode deploy` does, at the first node that takes it; do not wait for it.

        Args:
            model: Its name.
            stand_in: How it behaves.
            replicas: On how many nodes.
            on: Names of nodes that may serve it; empty for all.
            standby: On how many further nodes it is kept ready, in case that those cannot answer.
            scaling: What the number of replicas follows.
            plan: How it takes the place of the version before; None for directly.
            by: Name of the node that is asked; empty for the first that takes it.

        Raises:
            UsageError: if no node runs.
        """
        release = _Release(stand_in, replicas, tuple(on), standby, scaling, plan)
        self._releases[model] = release
        folder = self._folder / "models" / str(stand_in.release) / model
        stand_in.write(folder)
        up = [each for each in self.nodes.values() if self._is_up(each) and by in ("", each.name)]
        if not up:
            raise UsageError(f"no node runs that could deploy {model}")
        if plan is not None:
            self.released[model] = None
            self._candidates.add((model, stand_in.release))
            self.on_event(up[0].name, DEPLOYED, model, str(stand_in.release))

        def ask(nodes: Sequence[VirtualNode]) -> None:
            asked = nodes[0].host.run(_deploy(nodes[0], str(folder), model, release))
            asked.add_done_callback(lambda done: self._deployed(done, model, nodes[1:], ask))

        ask(up)

    def _deployed(
        self,
        done: asyncio.Task[Any],
        model: str,
        others: Sequence[VirtualNode],
        ask: Callable[[Sequence[VirtualNode]], None],
    ) -> None:
        """Ask the next node where one has refused, as a person would."""
        error = None if done.cancelled() else done.exception()
        if error is None:
            return
        left = [each for each in others if self._is_up(each)]
        if left:
            ask(left)
        else:
            self.loop.fail(UsageError(f"{model} could not be deployed: {error}"))

    def release(self, fault: faults.Release) -> None:
        """Deploy the next version of a model.

        Raises:
            UsageError: if it was never deployed.
        """
        model = fault.model
        if model not in self._releases:
            raise UsageError(f"there is no model {model} of which there could be a new release")
        before = self._releases[model]
        self.deploy(
            model,
            _next_release(before.stand_in, fault),
            before.replicas,
            before.on,
            before.standby,
            before.scaling,
            read_release(fault.release, [], ()) if fault.release else None,
            fault.node,
        )

    def order(self, fault: faults.OrderRelease) -> None:
        """Ask something of a release, at the first node that takes it; a refusal is noted."""
        for node in self.nodes.values():
            if not self._is_up(node) or fault.node not in ("", node.name):
                continue
            try:
                node.host.call(_order, node, fault)
            except MeshError as error:
                self.on_event(node.name, "order.refused", fault.model, str(error))
            else:
                return

    def serving(self, model: str) -> dict[str, int]:
        """Return which running nodes serve a model, and in which version, by name."""
        found: dict[str, int] = {}
        for node in self.nodes.values():
            server = node.models
            newest = None if server is None else server.newest(model)
            if newest is not None:
                found[node.name] = newest
        return found

    def known_ready(self, model: str) -> bool:
        """Whether every gateway that is up knows all replicas of a model that are ready."""
        ready = {self.nodes[name].parts.node.me for name in self.serving(model)}
        for node in self.nodes.values():
            if not self._is_up(node):
                continue
            table = node.parts.node.router.table
            known = {
                replica.node
                for version in table.models().get(model, ())
                for replica in table.replicas(model, version)
                if replica.state is ReplicaState.READY
            }
            if not ready <= known:
                return False
        return True

    # Clients.

    def client_host(self, region: str) -> VirtualHost:
        """Return the host of a region's clients."""
        return self.client(region).host

    def client(self, region: str) -> HttpClient:
        """Return a region's clients."""
        client = self._clients.get(region)
        if client is None:
            host = self.loop.add_host(f"{CLIENTS}.{region}", region)
            host.covers_content = True
            for machine in self.machines:
                if machine.nat and machine.region == region:
                    self.loop.network.put_inside(host.name, machine.name)
            client = self._clients[region] = HttpClient(host, self.gateway_watch)
        client.headers = self.client_headers
        return client

    @property
    def client_headers(self) -> dict[str, str]:
        """What clients show gateways."""
        return {"X-API-Key": self.api_key}

    def ask(self, call: Call) -> asyncio.Task[Outcome]:
        """Let a client of the gateway's own region make a call; return the task of what becomes of it."""
        names = (call.gateway, *call.others)
        client = self.client(self.nodes[call.gateway].machine.region)
        gateways = [self.nodes[name].http_address for name in names]
        return client.host.run(client.call(call, gateways))

    # Waiting and looking.

    def wait_for(
        self, condition: Callable[[], bool], what: str, limit_s: float = _SETTLE_LIMIT_S
    ) -> None:
        """Let time pass until a condition holds.

        Raises:
            NotReachedError: if it does not within `limit_s`, or a daemon ended with a failure.
        """
        begin = self.loop.now()
        while not condition():
            failed = [node for node in self.nodes.values() if node.failure is not None]
            if self.loop.now() - begin >= limit_s or failed:
                why = "".join(f"; {node.name}: {node.failure}" for node in failed)
                raise NotReachedError(
                    f"not within {limit_s:g} s: {what}{why} (seed {self.seed}, at "
                    f"{self.loop.now():.3f} s)"
                )
            self.loop.run_for(LOOK_EVERY_S)

    def agrees(self) -> bool:
        """Whether all nodes that are up take just those to be alive that run."""
        up = [node for node in self.nodes.values() if self._is_up(node)]
        running = {node.parts.node.me for node in up}
        return all(self.alive(node) == running for node in up)

    def alive(self, node: VirtualNode) -> set[NodeId]:
        """Return whom a node takes to be alive, itself included."""
        core = node.parts.node
        members = core.membership.members
        return {core.me, *(each for each, it in members.items() if it.state is NodeState.ALIVE)}

    def name_of(self, node: str) -> str:
        """Return a node's name; what is no node's id is returned as it is."""
        found = self.by_id.get(NodeId(node))
        return node if found is None else found.name

    # Inside.

    def add(self, machine: Machine) -> VirtualNode:
        """Add a device to those that the mesh was made with; nothing runs on it yet."""
        self.machines = (*self.machines, machine)
        node = self.nodes[machine.name] = self._node(machine)
        return node

    def _node(self, machine: Machine) -> VirtualNode:
        host = self.loop.add_host(machine.name, machine.region)
        host.covers_content = True
        if machine.nat:
            self.loop.network.put_behind_router(machine.name)
        path = self._folder / "nodes" / machine.name
        node = VirtualNode(machine, host, path, self.seed, self._emitted)
        node.on_made = self._made
        node.on_request = self._asked
        node.on_ended = self._gone
        return node

    def _emitted(self, node: VirtualNode, emit: Emit) -> None:
        self.on_emit(node, emit)

    def _made(self, node: VirtualNode, cores: Node) -> None:
        self.by_id[cores.me] = node
        self.on_made(node, cores)

    def _asked(self, request: InferRequest) -> None:
        """A model server was given a request; of those for a new version some are mirrored, under the id of another."""
        if (request.model, request.version) in self._candidates:
            self.on_event("", ASKED, request.model, str(request.version))
        else:
            self.gateway_watch.ran(request.request_id)

    def _gone(self, node: VirtualNode) -> None:
        self.on_ended(node)

    def _gateway_at(self, address: Address) -> VirtualNode:
        host = self.loop.by_address[address.host]
        return self.nodes[host.name]

    def _is_up(self, node: VirtualNode) -> bool:
        return node.ready and node.state == "up" and node.mesh is not None

    def _make_invite(self) -> str:
        return str(self.founder.parts.control.trust.create_invite(INVITE_TTL_S)["invite"])

    def _make_key(self) -> str:
        made = self.founder.parts.control.create_key("clients", ["infer"], None, OWNER)
        return str(made["key"])

    def _all_have_key(self) -> bool:
        return all(node.parts.control.keys() for node in self.nodes.values() if self._is_up(node))


async def _deploy(node: VirtualNode, path: str, model: str, release: _Release) -> None:
    control = node.parts.control
    await control.deploy(path, model, release.replicas, release.on, release=release.plan)
    cores = node.parts.node
    deployment = cores.deployment(model)
    if deployment is None:
        return
    changed = msgspec.structs.replace(deployment, standby=release.standby, scaling=release.scaling)
    if changed != deployment:
        node.parts.driver.write(cores.drafts.deployment(changed, node.host.clock.wall_s()))


def _order(node: VirtualNode, fault: faults.OrderRelease) -> None:
    node.parts.control.rollouts.ask(fault.model, fault.order, "", OWNER)


def _next_release(before: StandInModel, fault: faults.Release) -> StandInModel:
    return StandInModel(
        mean_s=before.mean_s,
        load_s=before.load_s,
        release=before.release + 1,
        slowness=fault.slowness,
        fail_share=fault.fail_share,
        fails_on=fault.fails_on,
        differs_share=fault.differs_share,
        load_error=fault.load_error,
    )

"""What the daemon counts beside the gateway, read off the parts when somebody asks."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING, Final

import psutil

from meshnode import __version__
from meshnode import metric_catalogue as catalogue
from meshnode.daemon.job_metrics import job_metrics
from meshnode.daemon.logs import logged_lines
from meshnode.errors import MeshError
from meshnode.limits import MAX_METRIC_PEERS
from meshnode.membership import messages as membership
from meshnode.metrics import Counter, Gauge, Metric, single
from meshnode.routing.breaker import BreakerState
from meshnode.state import desired_messages, owner_messages
from meshnode.trust.join_requests import EVENTS as JOIN_EVENTS
from meshnode.types import NodeState, ReplicaState
from meshnode.wire.codec import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import ModuleType

    from meshnode.daemon.driver import Driver
    from meshnode.daemon.forwarding import Forwarder
    from meshnode.daemon.jobs import Jobs
    from meshnode.daemon.serving import PeerServer
    from meshnode.daemon.uploads import Uploads
    from meshnode.daemon.watch import Watch
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.metric_catalogue import MetricSpec
    from meshnode.models.serving.server import ModelServer
    from meshnode.net.links import LinkHub
    from meshnode.node import Node
    from meshnode.trust.join_requests import JoinRequests

_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_CAPITAL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_OTHER: Final = "other"


def _kinds(*modules: ModuleType) -> Mapping[int, str]:
    """Return the names of messages by their type numbers: `OwnerDeltas` is `owner_deltas`."""
    found: dict[int, str] = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Message) and value is not Message:
                tag = value.__struct_config__.tag
                assert isinstance(tag, int)
                found[tag] = _CAPITAL.sub("_", value.__name__).lower()
    return found


_NOTE_KINDS: Final = _kinds(membership, owner_messages, desired_messages)


class DaemonMetrics:
    """Counters and gauges of everything but the gateway's HTTP edge."""

    def __init__(
        self,
        *,
        node: Node,
        driver: Driver,
        hub: LinkHub,
        pipeline: Pipeline,
        peer_server: PeerServer,
        forwarder: Forwarder,
        models: ModelServer,
        uploads: Uploads,
        watch: Watch,
        jobs: Jobs,
        join_requests: JoinRequests,
        is_ready: Callable[[], bool],
    ) -> None:
        """Read off these."""
        self._node = node
        self._driver = driver
        self._hub = hub
        self._pipeline = pipeline
        self._peer_server = peer_server
        self._forwarder = forwarder
        self._models = models
        self._uploads = uploads
        self._watch = watch
        self._jobs = jobs
        self._join_requests = join_requests
        self._is_ready = is_ready
        self._process = psutil.Process()

    def __repr__(self) -> str:
        return f"<DaemonMetrics of {self._node!r}>"

    def collect(self) -> Iterable[Metric]:
        """Return all of them with their present values."""
        yield from self._requests()
        yield from job_metrics(self._jobs)
        yield from self._served_models()
        yield from self._mesh()
        yield from self._traffic()
        yield from self._own_state()
        yield from self._machine()
        yield from _process(self._process)

    def _requests(self) -> Iterator[Metric]:
        router = self._node.router
        yield single(catalogue.REQUESTS_IN_FLIGHT, self._pipeline.in_flight)
        yield single(catalogue.RETRIES, router.budget.granted)
        yield single(catalogue.RETRIES_REFUSED, router.budget.refused)
        yield single(catalogue.HEDGES, router.hedges.granted)
        yield single(catalogue.HEDGES_REFUSED, router.hedges.refused)
        yield single(catalogue.ADMISSION_REFUSED, self._pipeline.admission.refused)
        states = router.breakers.states()
        yield _gauge(catalogue.BREAKERS, {str(state): states[state] for state in BreakerState})
        yield _counter(catalogue.PEER_REQUESTS, self._peer_server.log.outcomes)
        yield _counter(catalogue.FORWARDED_CALLS, self._forwarder.outcomes)
        forwards = self._peer_server.forwards
        answered = {} if forwards is None else forwards.outcomes
        yield _counter(catalogue.FORWARDED_CALLS_ANSWERED, answered)
        checkups = self._peer_server.checkups
        checked = {} if checkups is None else checkups.outcomes
        yield _counter(catalogue.CHECKUPS_ANSWERED, checked)

    def _served_models(self) -> Iterator[Metric]:
        states = dict.fromkeys(map(str, ReplicaState), 0)
        for replica in self._node.own.values():
            states[str(self._node.shown_state(replica))] += 1
        yield _gauge(catalogue.REPLICAS, states)
        slots = Gauge.of(catalogue.MODEL_SLOTS)
        requests = Gauge.of(catalogue.MODEL_REQUESTS)
        service = Gauge.of(catalogue.MODEL_SERVICE_TIME)
        load = Gauge.of(catalogue.MODEL_LOAD_TIME)
        for (model, version), load_s in self._models.load_times().items():
            try:
                report = self._models.load_report(model, version)
            except MeshError:
                continue  # it is being unloaded
            labels = (model, str(version))
            slots.set(labels, report.slots)
            requests.set(labels, report.in_system)
            service.set(labels, report.service_ms / 1e3)
            load.set(labels, load_s)
        yield from (slots, requests, service, load)
        yield from self._executions()
        yield from self._processes()
        yield from self._response_cache()

    def _executions(self) -> Iterator[Metric]:
        answers = Counter.of(catalogue.MODEL_ANSWERS)
        executions = Counter.of(catalogue.MODEL_EXECUTIONS)
        rows = Counter.of(catalogue.MODEL_ROWS)
        queue = Counter.of(catalogue.MODEL_QUEUE_TIME)
        compute = Counter.of(catalogue.MODEL_COMPUTE_TIME)
        for (model, version), counted in self._models.statistics().items():
            labels = (model, str(version))
            answers.add((*labels, "ok"), counted.success.count)
            answers.add((*labels, "failed"), counted.fail.count)
            executions.add(labels, counted.execution_count)
            rows.add(labels, counted.inference_count)
            queue.add(labels, counted.queue.ns / 1e9)
            for size in counted.batches:
                compute.add((*labels, "input"), size.compute_input.ns / 1e9)
                compute.add((*labels, "infer"), size.compute_infer.ns / 1e9)
                compute.add((*labels, "output"), size.compute_output.ns / 1e9)
        yield from (answers, executions, rows, queue, compute)

    def _processes(self) -> Iterator[Metric]:
        memory = Gauge.of(catalogue.MODEL_PROCESS_MEMORY)
        restarts = Counter.of(catalogue.MODEL_PROCESS_RESTARTS)
        for (model, version), (memory_bytes, restarted) in self._models.processes().items():
            memory.set((model, str(version)), memory_bytes)
            restarts.add((model, str(version)), restarted)
        yield from (memory, restarts)

    def _response_cache(self) -> Iterator[Metric]:
        cache = self._models.cache
        shared = self._models.shared_runs
        outcomes = {"hit": cache.hits, "shared": shared, "miss": cache.misses}
        yield _counter(catalogue.RESPONSE_CACHE_REQUESTS, outcomes)
        yield single(catalogue.RESPONSE_CACHE_BYTES, cache.size_bytes)
        yield single(catalogue.RESPONSE_CACHE_ENTRIES, len(cache))
        yield single(catalogue.RESPONSE_CACHE_EVICTIONS, cache.evictions)
        yield single(catalogue.MEMORY_PRESSURE, self._models.pressure)

    def _deployments(self) -> Iterator[Metric]:
        replicas = Gauge.of(catalogue.DEPLOYMENT_REPLICAS)
        stewarded = 0
        for deployment in self._node.deployments():
            seen = self._node.scaling(deployment)
            stewarded += seen.steward == self._node.me
            if deployment.enabled:
                replicas.set((deployment.name, "wanted"), seen.wanted)
                replicas.set((deployment.name, "ready"), seen.ready)
        yield replicas
        yield single(catalogue.DEPLOYMENTS_STEWARDED, stewarded)

    def _mesh(self) -> Iterator[Metric]:
        members = self._node.membership.members
        states = dict.fromkeys(map(str, NodeState), 0)
        for member in members.values():
            states[str(member.state)] += 1
        yield _gauge(catalogue.MEMBERS, states)
        yield from self._membership()
        yield _counter(catalogue.EVENTS, self._driver.events)
        yield from self._deployments()
        peers = tuple(self._hub.peers())
        yield single(catalogue.LINKS, len(peers))
        yield single(catalogue.LINKS_REFUSED, self._hub.refused)
        yield single(catalogue.LINKS_TRIED, self._hub.trials)
        yield single(catalogue.LINKS_THROTTLED, self._hub.incoming.throttled)
        yield from self._relaying()
        yield single(catalogue.PATHS_MOVED, self._driver.datagrams.paths.moved)
        asked = self._join_requests
        yield _counter(catalogue.JOIN_REQUESTS, {each: asked.events[each] for each in JOIN_EVENTS})
        yield single(catalogue.JOIN_REQUESTS_WAITING, len(asked.waiting))
        yield single(catalogue.JOIN_CODES_WRONG, asked.wrong_codes)
        rtts = Gauge.of(catalogue.LINK_RTT)
        for peer in sorted(peers)[:MAX_METRIC_PEERS]:
            rtt_s = self._hub.rtt_s(peer)
            if rtt_s is not None:
                name = members[peer].record.name if peer in members else ""
                rtts.set((name, peer), rtt_s)
        yield rtts

    def _relaying(self) -> Iterator[Metric]:
        relaying = self._driver.relaying
        if relaying is None:
            return
        outcomes = {
            "found": relaying.found,
            "failed": relaying.failed,
            "replaced": relaying.replaced,
        }
        yield single(catalogue.LINKS_RELAYED, len(relaying.relayed))
        yield _counter(catalogue.RELAY_SEARCHES, outcomes)
        yield single(catalogue.RELAYED_PAIRS, relaying.relay.budget.pairs)
        yield single(catalogue.RELAYED_BYTES, relaying.relay.budget.bytes)

    def _membership(self) -> Iterator[Metric]:
        membership = self._node.membership
        probes, beliefs = membership.counts.probes, membership.counts.beliefs
        yield single(catalogue.MEMBERSHIP_HEALTH, membership.health)
        outcomes = {
            "answered": probes.answered,
            "helped": probes.helped,
            "failed": probes.failed,
            "void": probes.void,
        }
        yield _counter(catalogue.PROBES, outcomes)
        steps = {
            "begun": beliefs.suspicions,
            "confirmed": beliefs.confirmations,
            "refuted": beliefs.refuted,
            "answered": beliefs.refutations,
        }
        yield _counter(catalogue.SUSPICIONS, steps)

    def _traffic(self) -> Iterator[Metric]:
        driver = self._driver
        datagrams = driver.datagrams
        yield single(catalogue.DATAGRAMS_SENT, datagrams.sent)
        yield single(catalogue.DATAGRAMS_SENT_BYTES, datagrams.sent_bytes)
        yield single(catalogue.DATAGRAMS_RECEIVED, datagrams.received)
        yield single(catalogue.DATAGRAMS_RECEIVED_BYTES, datagrams.received_bytes)
        yield _counter(catalogue.DATAGRAMS_DROPPED, driver.dropped)
        yield _notes(catalogue.NOTES_SENT, driver.notes_sent)
        yield _notes(catalogue.NOTES_RECEIVED, driver.notes_received)

    def _own_state(self) -> Iterator[Metric]:
        yield single(catalogue.DESIRED_ENTRIES, self._node.desired.key_count)
        yield single(catalogue.DESIRED_BYTES, self._node.desired.size_bytes)
        build = Gauge.of(catalogue.BUILD)
        build.set((__version__, platform.python_version(), platform.system().lower()), 1.0)
        yield build
        yield single(catalogue.READY, self._is_ready())
        lines = logged_lines()
        yield _counter(catalogue.LOG_LINES, {level: lines.get(level, 0) for level in _LEVELS})
        yield single(catalogue.LOG_LINES_LOST, lines.get("lost", 0))
        yield single(catalogue.UPLOADS, self._uploads.count)
        yield single(catalogue.UPLOADS_STAGED_BYTES, self._uploads.staged_bytes)

    def _machine(self) -> Iterator[Metric]:
        yield single(catalogue.MEMORY_AVAILABLE, psutil.virtual_memory().available)
        yield single(catalogue.PAUSED, bool(self._node.paused))
        fares = self._watch.fares
        temperature = Gauge.of(catalogue.TEMPERATURE)
        if fares.temperature_c is not None:
            temperature.set((), fares.temperature_c)
        battery = Gauge.of(catalogue.BATTERY)
        if fares.battery_percent is not None:
            battery.set((), fares.battery_percent / 100)
        utilisation = Gauge.of(catalogue.ACCELERATOR_UTILISATION)
        memory = Gauge.of(catalogue.ACCELERATOR_MEMORY)
        for each in fares.accelerators:
            utilisation.set((str(each.index),), each.utilisation)
            memory.set((str(each.index),), each.memory_free_bytes)
        yield from (temperature, battery, utilisation, memory)


def _process(process: psutil.Process) -> Iterator[Metric]:
    with process.oneshot():
        times = process.cpu_times()
        memory = process.memory_info()
        yield single(catalogue.PROCESS_CPU, times.user + times.system)
        yield single(catalogue.PROCESS_RESIDENT, memory.rss)
        yield single(catalogue.PROCESS_VIRTUAL, memory.vms)
        yield single(catalogue.PROCESS_START, process.create_time())
        if hasattr(process, "num_fds"):  # Windows has handles instead
            yield single(catalogue.PROCESS_OPEN_FDS, process.num_fds())
            yield single(catalogue.PROCESS_MAX_FDS, _max_open_files())


def _max_open_files() -> float:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def _gauge(spec: MetricSpec, values: Mapping[str, float]) -> Gauge:
    gauge = Gauge.of(spec)
    gauge.values.update({(label,): float(value) for label, value in values.items()})
    return gauge


def _counter(spec: MetricSpec, values: Mapping[str, int]) -> Counter:
    counter = Counter.of(spec)
    counter.values.update({(label,): float(value) for label, value in values.items()})
    return counter


def _notes(spec: MetricSpec, by_number: Mapping[int, int]) -> Counter:
    counter = Counter.of(spec)
    for number, count in by_number.items():
        counter.add((_NOTE_KINDS.get(number, _OTHER),), float(count))
    return counter

"""How busy this node is, looked at regularly; what is news is told to the mesh.

Every node hears of every sample that is told, so a change that nobody would choose otherwise for is not told,
and a node that serves nothing is looked at, and told of, ten times less often.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from meshnode.advertisement import ModelLoad, NodeLoad
from meshnode.daemon.memory_watch import MemoryWatch
from meshnode.errors import MeshError
from meshnode.limits import MAX_FETCHES_TOLD
from meshnode.node_events import LoadSampled
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from meshnode.clock import Clock
    from meshnode.daemon.artifacts import Artifacts
    from meshnode.daemon.driver import Driver
    from meshnode.daemon.surroundings import Hardware
    from meshnode.daemon.watch import Watch
    from meshnode.models.serving.server import ModelServer
    from meshnode.node import Node

LOAD_INTERVAL_S = 1.0
"""How often a node looks at its own load; only a change is told to others."""

LOAD_REFRESH_S = 10.0
"""An unchanged load is told again this often, so that a fresh one is told from a stale one."""

IDLE_LOAD_INTERVAL_S = 10.0
"""How often a node that serves nothing looks: nobody sends requests by it, it is only shown."""

IDLE_LOAD_REFRESH_S = 60.0
"""How often such a node tells an unchanged load again."""

_CPU_STEP = 0.1  # a change of CPU load that is worth telling
_IDLE_CPU_STEP = 0.3  # likewise where nothing is served
_MEMORY_STEP = 0.05  # likewise of free memory, as a share


class LoadSampling:
    """Looks at one node's load, and tells it."""

    def __init__(
        self,
        node: Node,
        driver: Driver,
        *,
        models: ModelServer,
        artifacts: Artifacts,
        watch: Watch,
        hardware: Hardware,
        clock: Clock,
    ) -> None:
        """Look at these.

        Args:
            node: Its replicas.
            driver: Told of what is news.
            models: How busy each replica is.
            artifacts: What is being fetched.
            watch: How the machine fares.
            hardware: Its processor and memory.
            clock: For the log.
        """
        self._node = node
        self._driver = driver
        self._models = models
        self._artifacts = artifacts
        self._watch = watch
        self._hardware = hardware
        self._memory = MemoryWatch(models, watch.total_bytes, clock)
        self._told: NodeLoad | None = None
        self._told_at = float("-inf")

    def __repr__(self) -> str:
        return f"<LoadSampling of {self._node.me[:8]}, told {self._told}>"

    async def run(self) -> None:
        """Look regularly; never returns."""
        self._hardware.utilisation()  # the first call only sets the mark from which the next one measures
        looked_at = float("-inf")
        while True:
            await asyncio.sleep(LOAD_INTERVAL_S)
            now = asyncio.get_running_loop().time()
            is_idle = self._is_idle()
            if is_idle and now - looked_at < IDLE_LOAD_INTERVAL_S:
                continue
            looked_at = now
            load = self._load()
            refresh_s = IDLE_LOAD_REFRESH_S if is_idle else LOAD_REFRESH_S
            cpu_step = _IDLE_CPU_STEP if is_idle else _CPU_STEP
            if _is_news(self._told, load, cpu_step) or now - self._told_at >= refresh_s:
                self._told, self._told_at = load, now
                self._driver.handle(LoadSampled(load))

    def _is_idle(self) -> bool:
        """Whether this node serves nothing, and has told so."""
        if self._told is None or self._told.models or self._told.fetches:
            return False
        if self._artifacts.is_fetching:
            return False
        return all(each.state is not ReplicaState.READY for each in self._node.own.values())

    def _load(self) -> NodeLoad:
        cpu, memory_bytes = self._hardware.utilisation()
        models = self._model_loads()
        fares = self._watch.fares
        free_bytes = self._watch.free_bytes(memory_bytes)
        self._memory.see(memory_bytes, free_bytes)
        fetches = self._artifacts.fetches()[:MAX_FETCHES_TOLD]
        return NodeLoad(
            cpu=round(cpu, 3),
            memory_available_bytes=free_bytes,
            models=models,
            temperature_c=fares.temperature_c,
            battery_percent=fares.battery_percent,
            accelerators=fares.accelerators,
            fetches=fetches,
            on_battery=fares.on_battery,
            held_back=fares.held_back,
        )

    def _model_loads(self) -> tuple[ModelLoad, ...]:
        models = []
        for (model, version), replica in self._node.own.items():
            if replica.state is not ReplicaState.READY:
                continue
            with contextlib.suppress(MeshError):  # it is being unloaded
                report = self._models.load_report(model, version)
                models.append(
                    ModelLoad(
                        model,
                        version,
                        report.in_system,
                        report.slots,
                        report.service_ms,
                        report.failing,
                    )
                )
        return tuple(models)


def _is_news(told: NodeLoad | None, load: NodeLoad, cpu_step: float) -> bool:
    if told is None or told.models != load.models or told.fetches != load.fetches:
        return True
    if (told.on_battery, told.held_back) != (load.on_battery, load.held_back):
        return True
    memory = abs(told.memory_available_bytes - load.memory_available_bytes)
    return abs(told.cpu - load.cpu) >= cpu_step or memory >= _MEMORY_STEP * max(
        1, told.memory_available_bytes
    )

"""Ensembles: a graph of models that one request runs through.

The steps' models are asked through the node's own pipeline, so each may be served here or anywhere in the
mesh, is batched and measured as ever, and its failure is retried elsewhere before the ensemble fails. A step
runs as soon as what it reads is there. All steps share the request's deadline; cancelling the request
cancels those that run.

An ensemble is ready while all of its models are: it looks at them again and again, and says which one is
missing, or that it would run itself. What is not known when it is opened (a model that no node has announced yet)
is checked once it is.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    MeshError,
    ModelError,
    ModelNotFound,
    NoReplica,
    NotServing,
)
from meshnode.limits import ENSEMBLE_LOOK_S, MAX_ENSEMBLE_REQUESTS
from meshnode.models.ensemble_plan import (
    PlannedStep,
    check_no_circle,
    check_types,
    needed_for,
    plan_steps,
)
from meshnode.models.repository.config_backend import ENSEMBLE_RUNTIME
from meshnode.models.runtimes.base import Capability, Described
from meshnode.types import InferRequest, ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.models.runtimes.base import Environment, Opening

log = logging.getLogger(__name__)

_ELSEWHERE: Final = (ModelNotFound, NotServing, NoReplica)
"""A step's model that nobody serves: what the ensemble's caller is told is 'no replica'."""


class EnsembleRuntime:
    """Opens ensembles."""

    name = ENSEMBLE_RUNTIME
    platform = "ensemble"
    is_code = False
    shares_instance = True

    def __init__(self, environment: Environment) -> None:
        """Ask models through this environment."""
        self._environment = environment

    def __repr__(self) -> str:
        return "<EnsembleRuntime>"

    def capability(self) -> Capability:
        """It needs nothing; see `Runtime.capability`."""
        return Capability("1", ("mesh",))

    def describe(self, opening: Opening) -> Described:
        """Check the steps, as far as their models are known; see `Runtime.describe`."""
        self._steps(opening)
        # Its steps join requests where that pays; here it would only make them wait for each other.
        execution = msgspec.structs.replace(opening.execution, adaptive=False)
        return Described(opening.inputs, opening.outputs, opening.max_batch_size, execution)

    def load(self, opening: Opening) -> EnsembleModel:
        """Make an ensemble ready; see `Runtime.load`."""
        steps, unknown = self._steps(opening)
        if unknown:
            log.info(
                "ensemble %s: not served yet: %s; it is ready once they are",
                opening.model, ", ".join(unknown),
            )  # fmt: skip
        return EnsembleModel(steps, opening, self._environment, checked=not unknown)

    def _steps(self, opening: Opening) -> tuple[tuple[PlannedStep, ...], tuple[str, ...]]:
        """Return the checked steps, and the models that are not known now."""
        known = self._environment.manifest_of
        steps = plan_steps(opening.execution.steps, opening.inputs, opening.outputs)
        check_no_circle(opening.model, steps, _first_of(known, self._environment.announced))
        return steps, check_types(steps, opening.inputs, opening.outputs, known)


class EnsembleModel:
    """An ensemble; fulfils `ProcessModel`, since it is asked from the event loop, without a process.

    Attributes:
        inputs: As configured.
        outputs: As configured.
        on_lost: Told why it cannot answer while a model is missing, and with an empty reason when none is.
    """

    joins_rows = False
    concurrency = MAX_ENSEMBLE_REQUESTS
    memory_bytes = 0
    device = "mesh"

    def __init__(
        self,
        steps: tuple[PlannedStep, ...],
        opening: Opening,
        environment: Environment,
        *,
        checked: bool,
    ) -> None:
        """Run these steps; `checked` says whether all of their models were known."""
        self._on_lost: Callable[[str], None] = _nobody
        self._looking: asyncio.Task[None] | None = None
        self._missing = ""
        self._model = opening.model
        self.inputs: tuple[TensorSpec, ...] = opening.inputs
        self.outputs: tuple[TensorSpec, ...] = opening.outputs
        self._steps = steps
        self._environment = environment
        self._checked = checked

    def __repr__(self) -> str:
        return f"<EnsembleModel of {', '.join(step.model for step in self._steps)}>"

    async def execute(
        self, requests: Sequence[InferRequest]
    ) -> list[tuple[Tensor, ...] | ResponsePart | MeshError]:
        """Run each request through the steps, all at the same time."""
        if len(requests) == 1:
            return [await self._outcome(requests[0])]
        return list(await asyncio.gather(*map(self._outcome, requests)))

    async def stream(self, request: InferRequest) -> AsyncIterator[ResponsePart]:
        """Give the one answer."""
        outcome = await self._outcome(request)
        if isinstance(outcome, MeshError):
            raise outcome
        yield ResponsePart(outcome)

    @property
    def on_lost(self) -> Callable[[str], None]:
        """As the attribute; whoever sets it is told from then on, on the running event loop."""
        return self._on_lost

    @on_lost.setter
    def on_lost(self, told: Callable[[str], None]) -> None:
        self._on_lost = told
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def close(self) -> None:
        """Stop looking for its models."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        """Tell whenever it becomes able or unable to answer."""
        while True:
            missing = self._why_not()
            if bool(missing) != bool(self._missing):
                self._on_lost(missing)
            self._missing = missing
            await asyncio.sleep(ENSEMBLE_LOOK_S)

    def _why_not(self) -> str:
        """Return why it cannot answer now; empty if it can."""
        environment = self._environment
        known = _first_of(environment.manifest_of, environment.announced)
        try:
            check_no_circle(self._model, self._steps, known)
            for step in self._steps:
                reason = environment.why_absent(step.model, step.version)
                if reason:
                    return f"{step.title}: {reason}"
            self._check()
        except ModelError as error:
            return f"the ensemble does not fit its models: {error}"
        return ""

    async def _outcome(self, request: InferRequest) -> tuple[Tensor, ...] | MeshError:
        try:
            self._check()
            return await self._run(request)
        except ModelError as error:
            return InferenceFailed(f"the ensemble does not fit its models: {error}")
        except MeshError as error:
            return error

    def _check(self) -> None:
        if not self._checked:
            unknown = check_types(
                self._steps, self.inputs, self.outputs, self._environment.manifest_of
            )
            self._checked = not unknown

    async def _run(self, request: InferRequest) -> tuple[Tensor, ...]:
        wanted = request.outputs or tuple(spec.name for spec in self.outputs)
        steps, needed = needed_for(self._steps, wanted)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.timeout_s
        flow = _Flow(self._environment, request, deadline, needed, self.inputs)
        if len(steps) == 1:
            await flow.run(steps[0])
        else:
            await _run_all(flow, list(steps))
        try:
            return tuple(flow.values[name] for name in wanted)
        except KeyError as error:
            raise InferenceFailed(f"no step answered the output {error.args[0]!r}") from None


class _Flow:
    """One request on its way through the steps."""

    def __init__(
        self,
        environment: Environment,
        request: InferRequest,
        deadline: float,
        needed: frozenset[str],
        inputs: Sequence[TensorSpec],
    ) -> None:
        self.values = {tensor.name: tensor for tensor in request.inputs}
        self._absent = {spec.name for spec in inputs} - set(self.values)
        self._environment = environment
        self._request = request
        self._deadline = deadline
        self._needed = needed

    def is_ready(self, step: PlannedStep) -> bool:
        """Whether what a step reads is there; an optional input that was left out never comes."""
        return all(tensor in self.values or tensor in self._absent for _, tensor in step.reads)

    async def run(self, step: PlannedStep) -> None:
        """Run a step and keep what it answers.

        Raises:
            MeshError: naming the step.
        """
        remaining_s = self._deadline - asyncio.get_running_loop().time()
        if remaining_s <= 0:
            raise DeadlineExceeded(f"the deadline passed before {step.title}")
        asked = {name: tensor for name, tensor in step.writes if tensor in self._needed}
        request = InferRequest(
            step.model,
            tuple(
                _renamed(self.values[tensor], name)
                for name, tensor in step.reads
                if tensor in self.values
            ),
            step.version,
            tuple(asked),
            self._request.request_id,
            self._request.parameters,
            remaining_s,
            self._request.trace,
        )
        try:
            response = await self._environment.infer(request)
            part = response.single
            if part is None:
                parts = [each async for each in response]
                if len(parts) != 1:
                    raise InferenceFailed(
                        f"it answered {len(parts)} times; a step must answer once"
                    )
                part = parts[0]
        except _ELSEWHERE as error:
            raise NoReplica(f"{step.title}: {error}") from error
        except MeshError as error:
            raise type(error)(f"{step.title}: {error}") from error
        for tensor in part.outputs:
            if tensor.name in asked:
                self.values[asked[tensor.name]] = _renamed(tensor, asked[tensor.name])


async def _run_all(flow: _Flow, waiting: list[PlannedStep]) -> None:
    """Run steps as they become ready; the first that fails ends the others."""
    running: dict[asyncio.Task[None], None] = {}  # in the order in which they began
    try:
        while waiting or running:
            ready = [step for step in waiting if flow.is_ready(step)]
            waiting = [step for step in waiting if step not in ready]
            if not ready and not running:
                raise InferenceFailed(
                    f"{waiting[0].title} did not get all that it reads: an earlier step left it out"
                )
            running |= dict.fromkeys(asyncio.ensure_future(flow.run(step)) for step in ready)
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            # In that order, so that of several errors the first step's is told.
            for task in [each for each in running if each in done]:
                del running[task]
                task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _first_of(
    one: Callable[[str, int | None], Manifest | None],
    other: Callable[[str, int | None], Manifest | None],
) -> Callable[[str, int | None], Manifest | None]:
    return lambda model, version: one(model, version) or other(model, version)


def _renamed(tensor: Tensor, name: str) -> Tensor:
    return (
        tensor if tensor.name == name else Tensor(name, tensor.datatype, tensor.shape, tensor.data)
    )


def _nobody(reason: str) -> None:
    del reason

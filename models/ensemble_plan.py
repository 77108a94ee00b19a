"""What an ensemble's steps come to: a graph of models, checked before anything runs. Pure.

A step waits for the tensors that it reads and runs as soon as they are there; steps that do not wait for
each other run at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meshnode.models.execution import EnsembleStep
    from meshnode.models.manifest import Manifest, TensorSpec


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step.

    Attributes:
        number: Its place in the configuration, from 1, for messages.
        model: Which model it runs.
        version: Which version; None for the newest.
        reads: (the model's input, the ensemble's tensor).
        writes: (the model's output, the ensemble's tensor).
    """

    number: int
    model: str
    version: int | None
    reads: tuple[tuple[str, str], ...]
    writes: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"step {self.number} (model {self.model!r})"


def plan_steps(
    steps: Sequence[EnsembleStep], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[PlannedStep, ...]:
    """Return an ensemble's steps in an order in which each finds what it reads.

    Args:
        steps: As configured.
        inputs: The ensemble's own.
        outputs: The ensemble's own.

    Raises:
        ModelError: if a tensor is read that nobody writes, written twice or never used, or if steps wait
            for each other in a circle.
    """
    if not steps:
        raise ModelError("an ensemble needs at least one step in its ensemble_scheduling")
    if not inputs or not outputs:
        raise ModelError("an ensemble's inputs and outputs must be in its config.pbtxt")
    planned = tuple(
        PlannedStep(number, step.model, step.version or None, step.input_map, step.output_map)
        for number, step in enumerate(steps, 1)
    )
    _check_tensors(planned, {spec.name for spec in inputs}, {spec.name for spec in outputs})
    return _ordered(planned, {spec.name for spec in inputs})


def needed_for(
    steps: Sequence[PlannedStep], outputs: Iterable[str]
) -> tuple[tuple[PlannedStep, ...], frozenset[str]]:
    """Return the steps that these outputs need, in order, and all tensors that are needed."""
    needed = set(outputs)
    chosen: list[PlannedStep] = []
    for step in reversed(steps):
        if any(tensor in needed for _, tensor in step.writes):
            chosen.append(step)
            needed.update(tensor for _, tensor in step.reads)
    return tuple(reversed(chosen)), frozenset(needed)


def check_types(
    steps: Sequence[PlannedStep],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    manifest_of: Callable[[str, int | None], Manifest | None],
) -> tuple[str, ...]:
    """Check the steps against the models that they run, as far as these are known.

    Args:
        steps: In an order in which each finds what it reads.
        inputs: The ensemble's own.
        outputs: The ensemble's own.
        manifest_of: Returns a model's manifest, or None where it is not known now.

    Returns:
        The models that are not known.

    Raises:
        ModelError: naming the step and both sides where types or shapes disagree.
    """
    known: dict[str, tuple[TensorSpec, str]] = {
        spec.name: (spec, f"the ensemble's input {spec.name!r}") for spec in inputs
    }
    missing: list[str] = []
    for step in steps:
        manifest = manifest_of(step.model, step.version)
        if manifest is None:
            missing.append(step.model)
            continue
        if manifest.execution.decoupled:
            raise ModelError(
                f"{step.title} may answer any number of times; a step must answer once"
            )
        ins = {spec.name: spec for spec in manifest.inputs}
        outs = {spec.name: spec for spec in manifest.outputs}
        _check_names(step, ins, outs, manifest.execution.optional_inputs)
        for name, tensor in step.reads:
            if tensor in known:
                _check_fit(step, f"its input {name!r}", ins[name], *known[tensor])
        for name, tensor in step.writes:
            known[tensor] = (outs[name], f"output {name!r} of {step.title}")
    for spec in outputs:
        if spec.name in known:
            actual, where = known[spec.name]
            _check_pair(f"the ensemble's output {spec.name!r}", spec, actual, where)
    return tuple(dict.fromkeys(missing))


def check_no_circle(
    model: str,
    steps: Sequence[PlannedStep],
    manifest_of: Callable[[str, int | None], Manifest | None],
) -> None:
    """Check that no step comes back to the ensemble itself, through other ensembles either.

    Raises:
        ModelError: naming the way.
    """
    ways: list[tuple[str, tuple[str, ...], int | None]] = [
        (step.model, (model, step.model), step.version) for step in steps
    ]
    seen: set[str] = set()
    while ways:
        name, way, version = ways.pop()
        if name == model:
            raise ModelError(f"the ensemble runs itself: {' → '.join(way)}")
        manifest = None if name in seen else manifest_of(name, version)
        seen.add(name)
        if manifest is not None:
            ways += [
                (step.model, (*way, step.model), step.version or None)
                for step in manifest.execution.steps
            ]


def _check_tensors(steps: Sequence[PlannedStep], inputs: set[str], outputs: set[str]) -> None:
    writers = dict.fromkeys(inputs, "the ensemble's input")
    for step in steps:
        for side, pairs in (("input_map", step.reads), ("output_map", step.writes)):
            if len({name for name, _ in pairs}) != len(pairs) or not pairs:
                raise ModelError(f"{step.title}: its {side} is empty or names a tensor twice")
        for _, tensor in step.writes:
            if tensor in writers:
                raise ModelError(
                    f"tensor {tensor!r} is written by {writers[tensor]} and by {step.title}"
                )
            writers[tensor] = step.title
    read = {tensor for step in steps for _, tensor in step.reads}
    for step in steps:
        for _, tensor in step.reads:
            if tensor not in writers:
                raise ModelError(f"{step.title} reads {tensor!r}, which nothing writes")
    for name in sorted(outputs - set(writers)):
        raise ModelError(f"the ensemble's output {name!r} is written by no step")
    for name in sorted(inputs - read):
        raise ModelError(f"the ensemble's input {name!r} is read by no step")


def _ordered(steps: Sequence[PlannedStep], there: set[str]) -> tuple[PlannedStep, ...]:
    waiting, ordered = list(steps), list[PlannedStep]()
    there = set(there)
    while waiting:
        ready = [step for step in waiting if all(tensor in there for _, tensor in step.reads)]
        if not ready:
            raise ModelError(
                f"{', '.join(step.title for step in waiting)} wait for each other's tensors in a circle"
            )
        ordered += ready
        waiting = [step for step in waiting if step not in ready]
        there.update(tensor for step in ready for _, tensor in step.writes)
    return tuple(ordered)


def _check_names(
    step: PlannedStep,
    ins: Mapping[str, TensorSpec],
    outs: Mapping[str, TensorSpec],
    optional: Sequence[str],
) -> None:
    for kind, pairs, specs in (("input", step.reads, ins), ("output", step.writes, outs)):
        for name, _ in pairs:
            if name not in specs:
                there = ", ".join(map(repr, specs))
                raise ModelError(f"{step.title} has no {kind} {name!r}; its {kind}s are {there}")
    mapped = {name for name, _ in step.reads}
    for name in ins:
        if name not in mapped and name not in optional:
            raise ModelError(f"{step.title}: nothing is given to its input {name!r}")


def _check_fit(
    step: PlannedStep, what: str, wanted: TensorSpec, actual: TensorSpec, where: str
) -> None:
    _check_pair(f"{step.title}: {what}", wanted, actual, where)


def _check_pair(what: str, wanted: TensorSpec, actual: TensorSpec, where: str) -> None:
    same_rank = len(wanted.shape) == len(actual.shape)
    fits = same_rank and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(wanted.shape, actual.shape, strict=True)
    )
    if wanted.datatype != actual.datatype or not fits:
        raise ModelError(
            f"{what} is {wanted.datatype} {list(wanted.shape)}, but {where} is {actual.datatype} "
            f"{list(actual.shape)}"
        )

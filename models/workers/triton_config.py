"""The configuration that a model of Triton's Python backend completes, and what it writes and counts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger("model")


class Logger:
    """Writes into the model's log."""

    INFO: ClassVar = logging.INFO
    WARNING: ClassVar = logging.WARNING
    ERROR: ClassVar = logging.ERROR
    VERBOSE: ClassVar = logging.DEBUG

    @staticmethod
    def log(message: str, level: int = logging.INFO) -> None:
        """Write a message."""
        _log.log(level, "%s", message)

    @staticmethod
    def log_info(message: str) -> None:
        """Write a message."""
        _log.info("%s", message)

    @staticmethod
    def log_warn(message: str) -> None:
        """Write a warning."""
        _log.warning("%s", message)

    @staticmethod
    def log_error(message: str) -> None:
        """Write an error."""
        _log.error("%s", message)

    @staticmethod
    def log_verbose(message: str) -> None:
        """Write a detail, which is not shown."""
        _log.debug("%s", message)


class Metric:
    """A number that a model counts; it is shown nowhere here."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._value = 0.0

    def increment(self, value: float) -> None:
        """Add."""
        self._value += value

    def set(self, value: float) -> None:
        """Set."""
        self._value = value

    def observe(self, value: float) -> None:
        """Set to what was observed."""
        self._value = value

    def value(self) -> float:
        """Return it."""
        return self._value


class MetricFamily:
    """Metrics of one name."""

    COUNTER: ClassVar = 0
    GAUGE: ClassVar = 1
    HISTOGRAM: ClassVar = 2

    def __init__(self, name: str, description: str, kind: int, **_options: Any) -> None:
        """Name them."""
        self.name = name
        self.description = description
        self.kind = kind

    def Metric(self, labels: Mapping[str, str] | None = None, **_options: Any) -> Metric:  # noqa: N802 - Triton's name
        """Return a metric."""
        del labels
        return Metric()


class ModelConfig:
    """A configuration that a model completes (`auto_complete_config`)."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Hold what was configured; not how models make one."""
        self._config = config

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON would have it."""
        return self._config

    def add_input(self, input: Mapping[str, Any]) -> None:  # noqa: A002 - Triton's name
        """Add an input; one of its name must agree with it."""
        self._add("input", input)

    def add_output(self, output: Mapping[str, Any]) -> None:
        """Add an output; one of its name must agree with it."""
        self._add("output", output)

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Set the largest batch, unless a smaller one is configured."""
        configured = int(self._config.get("max_batch_size", 0))
        if configured > max_batch_size:
            raise ValueError(
                f"the configuration's max_batch_size is {configured}; the model allows {max_batch_size}"
            )
        if configured == 0:
            self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Allow requests to be joined, unless that is configured."""
        if "sequence_batching" not in self._config:
            self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy: Mapping[str, Any]) -> None:
        """Say whether the model is decoupled."""
        if set(transaction_policy) - {"decoupled"}:
            raise ValueError(f"a transaction policy has only 'decoupled', not {transaction_policy}")
        self._config["model_transaction_policy"] = dict(transaction_policy)

    def _add(self, what: str, tensor: Mapping[str, Any]) -> None:
        unknown = set(tensor) - {"name", "data_type", "dims", "optional"}
        missing = {"name", "data_type", "dims"} - set(tensor)
        if unknown or missing:
            raise ValueError(
                f"an {what} has name, data_type, dims and perhaps optional; {dict(tensor)} has not"
            )
        for each in self._config[what]:
            if each["name"] != tensor["name"]:
                continue
            for key in ("data_type", "dims"):
                if each.get(key) and each[key] != tensor[key]:
                    raise ValueError(
                        f"{what} {tensor['name']!r}: the configuration's {key} is {each[key]}; the model's "
                        f"is {tensor[key]}"
                    )
            each.update(tensor)
            return
        self._config[what].append(dict(tensor))

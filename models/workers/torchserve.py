"""What handlers import as `ts`: the context, errors, metrics and names of TorchServe, on this node.

The base handlers are in `meshnode.models.workers.torchserve_handlers`; importing those needs torch.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import types
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

log = logging.getLogger("ts")

_HANDLERS: Final = "meshnode.models.workers.torchserve_handlers"
_HANDLER_CLASSES: Final = {
    "base_handler": "BaseHandler",
    "vision_handler": "VisionHandler",
    "image_classifier": "ImageClassifier",
    "image_segmenter": "ImageSegmenter",
    "object_detector": "ObjectDetector",
}


class PredictionException(Exception):
    """A handler's refusal, with the HTTP status that its caller gets."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        """Refuse."""
        super().__init__(message)
        self.message = message
        self.error_code = error_code


class RequestProcessor:
    """Headers of one request, and of the answer to it."""

    def __init__(self, request_header: Mapping[str, str]) -> None:
        """Begin with the request's."""
        self._request = dict(request_header)
        self._answer: dict[str, str] = {}
        self._status = 200
        self._phrase = ""

    def get_request_property(self, key: str) -> str | None:
        """Return a header of the request."""
        return self._request.get(key)

    def get_request_properties(self) -> dict[str, str]:
        """Return all headers of the request."""
        return self._request

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        """Set the status of the answer."""
        self._status = int(code)
        self._phrase = reason_phrase or ""

    def get_response_status_code(self) -> int:
        """Return it."""
        return self._status

    def get_response_status_phrase(self) -> str:
        """Return the words beside it."""
        return self._phrase

    def add_response_property(self, key: str, value: str) -> None:
        """Set a header of the answer."""
        self._answer[key] = value

    def get_response_headers(self) -> dict[str, str]:
        """Return the headers of the answer."""
        return self._answer


class Metrics:
    """Takes what handlers measure, and writes it into the model's log."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith(("add_", "get_")):
            raise AttributeError(name)
        return functools.partial(self._take, name)

    def _take(self, name: str, *arguments: object, **named: object) -> Metrics:
        log.debug("%s %s %s", name, arguments, named or "")
        return self

    def add_or_update(self, *values: object) -> None:
        """Take a value of a metric that was added."""


class Context:
    """What a handler is told about where it runs, and how it says more than a body."""

    def __init__(
        self,
        *,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any],
        batch_size: int,
        gpu_id: int | None,
        model_yaml_config: dict[str, Any],
    ) -> None:
        """Begin for one opened archive."""
        self.model_name = model_name
        self.manifest = manifest
        self.model_yaml_config = model_yaml_config
        self.metrics = Metrics()
        self.request_ids: dict[int, str] = {}
        self.request_processor: list[RequestProcessor] = []
        self.system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": gpu_id,
            "batch_size": batch_size,
            "server_name": "meshnode",
            "server_version": "0",
            "limit_max_image_pixels": True,
        }

    def get_request_id(self, idx: int = 0) -> str | None:
        """Return the id of a request of the batch."""
        return self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> str | None:
        """Return a header of a request of the batch."""
        return self.request_processor[idx].get_request_property(key)

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        """Return all headers of a request of the batch."""
        return self.request_processor[idx].get_request_properties()

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the content type of an answer."""
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        """Return the content type of an answer."""
        return self.get_response_headers(idx).get("content-type")

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header of an answer."""
        self.request_processor[idx].add_response_property(key, value)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """Return the headers of an answer."""
        return self.request_processor[idx].get_response_headers()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the HTTP status of an answer."""
        self.request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set the HTTP status of all answers of the batch."""
        for each in self.request_processor:
            each.report_status(code, phrase)

    def get_response_status(self, idx: int) -> tuple[int, str]:
        """Return the HTTP status of an answer."""
        each = self.request_processor[idx]
        return each.get_response_status_code(), each.get_response_status_phrase()


def load_label_mapping(mapping_file_path: str, mapping: dict[str, Any] | None = None) -> Any:
    """Return the labels of `index_to_name.json`, or None if there is no such file."""
    path = Path(mapping_file_path)
    if not path.is_file():
        log.warning("there is no %s; classes keep their numbers", path.name)
        return mapping
    labels = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(labels, dict):
        raise TypeError("index_to_name.json must be an object of class number and name")
    return {key: (value[-1] if isinstance(value, list) else value) for key, value in labels.items()}


def map_class_to_label(
    probs: list[list[float]],
    mapping: dict[str, Any] | None = None,
    lbl_classes: list[list[int]] | None = None,
) -> list[dict[str, float]]:
    """Return each row's probabilities by label."""
    found = []
    for row, values in enumerate(probs):
        classes = lbl_classes[row] if lbl_classes else list(range(len(values)))
        found.append(
            {
                str((mapping or {}).get(str(kind), kind)): value
                for kind, value in zip(classes, values, strict=True)
            }
        )
    return found


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """Return the classes that a module defines itself."""
    return [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__
        and (parent_class is None or issubclass(kind, parent_class))
    ]


def get_yaml_config(yaml_file_path: str) -> Any:
    """Return a YAML file's content; needs PyYAML."""
    yaml = import_module("yaml")
    return yaml.safe_load(Path(yaml_file_path).read_text(encoding="utf-8"))


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function itself: the node measures how long a model runs."""
    return function


class Dimension:
    """A metric's dimension: a name and a value."""

    def __init__(self, name: str, value: str) -> None:
        """Name it."""
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"


def emit_metrics(metrics: object) -> None:
    """Write metrics into the model's log."""
    log.info("%s", metrics)


class _Lazy(types.ModuleType):
    """A module whose classes come with torch, which is imported when the first is asked for."""

    names: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name not in self.names:
            raise AttributeError(f"the stand-in {self.__name__} has no {name}")
        found = getattr(import_module(_HANDLERS), name)
        setattr(self, name, found)
        return found


def stand_ins() -> dict[str, ModuleType]:
    """Return the modules of `ts` that handlers import."""
    made: dict[str, ModuleType] = {}

    def add(name: str, **values: object) -> None:
        module = types.ModuleType(name)
        vars(module).update(values)
        made[name] = module

    add("ts", __version__="0.12.0", __path__=[])
    add("ts.context", Context=Context, RequestProcessor=RequestProcessor)
    add("ts.service", emit_metrics=emit_metrics)
    add("ts.utils", __path__=[])
    add(
        "ts.utils.util",
        PredictionException=PredictionException,
        load_label_mapping=load_label_mapping,
        map_class_to_label=map_class_to_label,
        list_classes_from_module=list_classes_from_module,
        get_yaml_config=get_yaml_config,
    )
    add("ts.handler_utils", __path__=[])
    add("ts.handler_utils.timer", timed=timed)
    add("ts.metrics", __path__=[])
    add("ts.metrics.dimension", Dimension=Dimension)
    add("ts.metrics.metrics_store", MetricsStore=Metrics)
    add("ts.metrics.metric_type_enum", MetricTypes=types.SimpleNamespace(
        COUNTER="counter", GAUGE="gauge", HISTOGRAM="histogram"
    ))  # fmt: skip
    add("ts.torch_handler", __path__=[])
    for file, kind in _HANDLER_CLASSES.items():
        lazy = _Lazy(f"ts.torch_handler.{file}")
        lazy.names = (*_HANDLER_CLASSES.values(), kind)
        made[lazy.__name__] = lazy
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    return made

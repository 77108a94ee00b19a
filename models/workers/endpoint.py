"""`endpoint.py` beside a `pipeline.py`: a FastAPI router whose routes the mesh answers.

The file is loaded as it is. What such files import of the server that they were written for is here:
`server.ipu_worker_group` (also `server.w`, `workers.workers`), `config.settings`, `ipu_worker`. A worker's
`feed(dict)` puts a request into this replica's queue and `get_result()` waits for its result; the pipeline
runs on one thread of its own, one request after the other.

    HTTP call ─> FastAPI app with the router ─> run_it(model_input) ─> feed ─> pipe ─> get_result
    JSON document ─> the only POST route if there is exactly one, else the pipeline itself
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import types
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.errors import InferenceFailed, MeshError, ModelError
from meshnode.limits import MAX_UNCOLLECTED_RESULTS
from meshnode.models.execution import Interface, Route, Spelling
from meshnode.models.http_calls import (
    BODY,
    CONTENT_TYPE,
    HTTP_TENSORS,
    HttpCall,
    HttpHead,
    decode_call,
)
from meshnode.models.repository.spellings import ENDPOINT_FILE
from meshnode.models.routes import check_routes, hidden_routes
from meshnode.models.runtimes.base import Described
from meshnode.models.workers import documents
from meshnode.models.workers.asgi import ask
from meshnode.models.workers.loading import (
    concurrency_of,
    device_of,
    load_module,
    offer,
    prepare,
    told,
)
from meshnode.models.workers.pipeline import Pipe, check_source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import ModuleType

    from meshnode.models.workers.adaptor import (
        Answer,
        Outcome,
        WorkerRequest,
        WorkerSurroundings,
    )

log = logging.getLogger(__name__)

CONCURRENCY: Final = 32
"""Requests that an endpoint works on at once; its functions wait for the pipeline most of the time."""

_JSON: Final = "application/json"
_EXTRA: Final = "pip install 'meshnode[endpoints]'"


class Worker:
    """The replica's queue as an endpoint sees it: `feed`, then `get_result` on the same thread."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.replicas = 1
        self._pipe: Pipe | None = None
        self._runner = ThreadPoolExecutor(1, "pipeline")
        self._ids = itertools.count(1)
        self._results: dict[int, Future[object]] = {}
        self._of_thread: dict[int, list[int]] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Worker of {self.model_name}: {len(self._results)} fed>"

    def start(self, pipe: Pipe | None = None) -> None:
        """Take the pipeline that runs; endpoints that start their workers have no effect."""
        self._pipe = pipe or self._pipe

    def stop(self) -> None:
        """Have no effect: the node decides when a model stops."""

    def close(self) -> None:
        """End the thread when what runs has ended."""
        self._runner.shutdown(wait=False, cancel_futures=True)

    def is_alive(self) -> bool:
        """Whether it can be fed."""
        return self._pipe is not None

    is_ready = is_alive

    def queue_size(self) -> int:
        """How many requests wait or run."""
        with self._lock:
            return sum(not each.done() for each in self._results.values())

    def feed(self, data_dict: object) -> int:
        """Queue a request, and return the id of its result."""
        future = self.submit(data_dict)
        with self._lock:
            number = next(self._ids)
            self._results[number] = future
            self._of_thread.setdefault(threading.get_ident(), []).append(number)
            while len(self._results) > MAX_UNCOLLECTED_RESULTS:
                self._forget(next(iter(self._results)))
        return number

    def get_result(self, number: int | None = None) -> Any:
        """Wait for a result: of this id, or of what this thread fed first and has not asked for.

        Raises:
            LookupError: if nothing was fed.
            Exception: what the pipeline raised.
        """
        with self._lock:
            waiting = self._of_thread.get(threading.get_ident(), [])
            wanted = number if number is not None else next(iter(waiting), None)
            future = self._results.get(wanted) if wanted is not None else None
            if future is None or wanted is None:
                raise LookupError("get_result() without a feed() before it")
            self._forget(wanted)
        return future.result()

    def submit(self, document: object) -> Future[object]:
        """Queue a request without an id."""
        return self._runner.submit(self._run, document)

    def _run(self, document: object) -> object:
        if self._pipe is None:
            raise InferenceFailed("the pipeline is not loaded yet")
        started = time.perf_counter()
        result = self._pipe.call(document)
        if isinstance(result, dict):
            result["model_latency"] = time.perf_counter() - started
        return result

    def _forget(self, number: int) -> None:
        self._results.pop(number, None)
        for thread, waiting in list(self._of_thread.items()):
            if number in waiting:
                waiting.remove(number)
                if not waiting:
                    del self._of_thread[thread]


class Workers(dict[str, Worker]):
    """All workers by model: a replica has one pipeline, so every name is its own."""

    def __init__(self, worker: Worker) -> None:
        super().__init__({worker.model_name: worker})
        self._worker = worker

    def __missing__(self, name: str) -> Worker:
        return self._worker

    def __contains__(self, name: object) -> bool:
        return True

    def get(self, name: str, default: object = None) -> Any:  # noqa: ARG002 - as dict
        """Return the worker, whatever its name."""
        return self[name]


class ModelConfig:
    """One entry of `settings.server_models`; equal to any text, since its endpoint is what is served."""

    def __init__(self, model: str, replicas: int = 1) -> None:
        self.model = model
        self.replicas = replicas

    def __repr__(self) -> str:
        return f"ModelConfig(model={self.model!r}, replicas={self.replicas})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str | ModelConfig)

    def __hash__(self) -> int:
        return 0

    def __str__(self) -> str:
        return self.model

    def get_name(self) -> str:
        """Return the model's name."""
        return self.model


class WorkerGroup:
    """What endpoints know as `ipu_worker_group`."""

    def __init__(self, worker: Worker) -> None:
        self.workers = Workers(worker)

    def __getitem__(self, name: str) -> Worker:
        return self.workers[name]

    def start(self) -> None:
        """Have no effect: the node starts models."""

    stop = start

    def is_ready(self) -> bool:
        """Whether the pipeline is compiled."""
        return all(worker.is_ready() for worker in self.workers.values())

    is_alive = is_ready


def stand_ins(worker: Worker) -> dict[str, ModuleType]:
    """Return the modules that endpoints import of the server that they were written for."""
    group = WorkerGroup(worker)
    server = types.ModuleType("server")
    config = types.ModuleType("config")
    ipu_worker = types.ModuleType("ipu_worker")
    workers = types.ModuleType("workers")
    models = [ModelConfig(worker.model_name)]
    settings = types.SimpleNamespace(server_models=models)
    vars(server).update(
        ipu_worker_group=group, w=group, workers=group.workers, models=models, settings=settings
    )
    vars(config).update(settings=settings, ModelConfig=ModelConfig, DEFAULT_REPLICA_NUMBER=1)
    vars(ipu_worker).update(
        IPUWorker=Worker, IPUWorkerGroup=lambda *_args, **_kwargs: group, ipu_worker_group=group
    )
    vars(workers).update(workers=group.workers, ipu_worker_group=group, w=group)
    return {"server": server, "config": config, "ipu_worker": ipu_worker, "workers": workers}


class EndpointAdaptor:
    """A pipeline that is asked through its author's FastAPI router."""

    asynchronous = True
    joins_rows = False

    def __init__(self, surroundings: WorkerSurroundings, folder: Path) -> None:
        self._opening = surroundings.opening
        self.device = device_of(self._opening)
        self.concurrency = concurrency_of(self._opening, CONCURRENCY)
        self._folder = folder
        self._entry = self._opening.entry.rpartition("/")[2]
        self._worker = Worker(self._opening.model)
        self._pipe: Pipe | None = None
        self._lifespan: AbstractAsyncContextManager[object] | None = None
        self._only_post = ""
        self._app: Any = None
        prepare(surroundings, folder)
        offer(folder, stand_ins(self._worker))

    def __repr__(self) -> str:
        return f"<EndpointAdaptor {self._opening.model} {self._worker}>"

    def describe(self) -> Described:
        """Load `endpoint.py` and say which routes it has; the pipeline is not loaded.

        Raises:
            ModelError: if it has no router, or a route that cannot be served.
        """
        check_source(self._folder / self._entry)
        app = self._application()
        routes = routes_of(app)
        if not routes:
            raise ModelError(f"{ENDPOINT_FILE} has no routes")
        check_routes(self._opening.model, routes, {})
        execution = msgspec.structs.replace(
            self._opening.execution,
            interface=Interface.HTTP,
            spelling=Spelling.PIPELINE,
            adaptive=False,
            decoupled=True,
            routes=routes,
            schema=_schema(app),
        )
        return Described(HTTP_TENSORS, HTTP_TENSORS, 0, execution)

    async def initialise(self) -> None:
        """Load and compile the pipeline, and run what the router does at its start."""
        self._app = self._application()
        routes = routes_of(self._app)
        if self._opening.instance == 0:  # said once, not by each copy, nor by who only describes it
            for route in hidden_routes(routes):
                log.warning(
                    "nobody reaches %s %s: the mesh answers such paths itself",
                    route.method, route.path,
                )  # fmt: skip
        posts = [route for route in routes if route.method == "POST"]
        if len(posts) == 1 and "{" not in posts[0].path:
            self._only_post = posts[0].path
        self._pipe = Pipe(self._folder, self._entry)
        self._pipe.compile()
        self._worker.start(self._pipe)
        self._lifespan = self._app.router.lifespan_context(self._app)
        try:
            await self._lifespan.__aenter__()
        except Exception as error:
            raise ModelError(f"{ENDPOINT_FILE} failed at its start: {told(error)}") from error

    async def execute(self, requests: Sequence[WorkerRequest]) -> Sequence[Outcome]:
        """Answer each in one part, if its answer is one."""
        return [await self._whole(request) for request in requests]

    async def stream(self, request: WorkerRequest) -> AsyncIterator[Answer]:
        """Answer an HTTP request, or a JSON document."""
        body = documents.content(request)
        call = decode_call(body, request.parameters)
        if call is None and self._only_post:
            call = HttpCall(
                "POST", self._only_post, "", (("content-type", _content_type(request)),), body
            )
        if call is None:
            yield await self._from_pipe(body)
            return
        head: HttpHead | None = None
        async for item in ask(self._app, call):
            if isinstance(item, HttpHead):
                head = item
                continue
            yield documents.answered(BODY, item, head)
            head = None
        if head is not None:  # it had no body
            yield documents.answered(BODY, b"", head)

    async def finalise(self) -> None:
        """Run what the router does at its end."""
        if self._lifespan is not None:
            await self._lifespan.__aexit__(None, None, None)
        self._worker.close()

    async def _whole(self, request: WorkerRequest) -> Outcome:
        try:
            parts = [part async for part in self.stream(request)]
        except Exception as error:  # noqa: BLE001 - it is this request's answer
            return error
        if len(parts) != 1:
            return InferenceFailed("the endpoint answered in several parts")
        return parts[0]

    async def _from_pipe(self, body: bytes) -> Answer:
        import asyncio

        assert self._pipe is not None
        document = self._pipe.types.accept(documents.read(body))
        value = document.model_dump() if self._pipe.types.request is not None else document
        try:
            result = await asyncio.wrap_future(self._worker.submit(value))
        except MeshError:
            raise
        except Exception as error:
            raise InferenceFailed(f"the pipeline raised {told(error)}") from error
        return documents.answered(
            BODY,
            documents.write(result),
            HttpHead(200, (("content-type", "application/json"),)),
        )

    def _application(self) -> Any:
        """Return a FastAPI application with the author's router."""
        try:
            from fastapi import FastAPI
        except ImportError:
            raise ModelError(f"{ENDPOINT_FILE} needs FastAPI: {_EXTRA}") from None
        module = load_module(self._folder, ENDPOINT_FILE)
        router = vars(module).get("router")
        if isinstance(router, FastAPI):
            return router
        app = vars(module).get("app")
        if router is None and isinstance(app, FastAPI):
            return app
        if router is None:
            raise ModelError(f"{ENDPOINT_FILE} has no `router`")
        made = FastAPI(title=self._opening.model, docs_url=None, redoc_url=None, openapi_url=None)
        made.include_router(router)
        return made


def routes_of(app: Any) -> tuple[Route, ...]:
    """Return the author's routes of an application, in their order."""
    return tuple(
        Route(method, path) for path, methods in _author_routes(app) for method in sorted(methods)
    )


def _author_routes(app: Any) -> Iterator[tuple[str, set[str]]]:
    """Yield path and methods of what was declared, not of what FastAPI adds itself (`/docs`)."""
    from fastapi import routing

    flat: Any = getattr(routing, "iter_route_contexts", iter)  # newer ones include routers lazily
    for each in flat(app.routes):
        original = getattr(each, "original_route", each)
        if isinstance(original, routing.APIRoute):
            yield each.path, set(each.methods or ()) - {"HEAD"}


def _schema(app: Any) -> str:
    try:
        whole = app.openapi()
    except Exception as error:  # noqa: BLE001 - a type that has no schema must not stop the model
        print(f"no schema of the routes: {told(error)}")  # noqa: T201 - the model's log
        return ""
    return documents.bounded(
        {name: whole[name] for name in ("paths", "components") if whole.get(name)}
    )


def _content_type(request: WorkerRequest) -> str:
    """Return the Content-Type of a document: JSON also where a client says nothing, or what curl says of all it sends."""
    said = str(request.parameters.get(CONTENT_TYPE, ""))
    kind = said.partition(";")[0].strip().lower()
    return _JSON if kind in ("", "application/x-www-form-urlencoded", "text/plain") else said

"""`MeshClient`: a mesh from a program that waits for its answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from meshnode.client import deploying, flows, native, publishing, streaming
from meshnode.client.administration import Administration
from meshnode.client.blocking_calls import Stream
from meshnode.client.calls import (
    Flow,
    names_of,
)
from meshnode.client.deployment_calls import DeploymentCalls
from meshnode.client.driving import (
    checked_timeout_s,
)
from meshnode.client.feedback_calls import FeedbackCalls
from meshnode.client.infer import InferResult, get_metadata, infer
from meshnode.client.job_calls import JobCalls
from meshnode.client.results import ModelInfo, read_as

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

    from meshnode.client.hints import Hints
    from meshnode.client.native import PlainResult
    from meshnode.client.results import (
        DeployProgress,
        MeshEvent,
        ModelMetadata,
        NodeInfo,
        NodeStatus,
    )
    from meshnode.client.tensors import InputTensor
    from meshnode.types import Scalar

T = TypeVar("T")


class MeshClient(JobCalls, DeploymentCalls, FeedbackCalls, Administration):
    """A mesh, through any of its gateways.

    Every method may be called from several threads at once; they share a pool of connections. A call
    that finds a gateway gone, frozen or overloaded goes on to the next one within its time. Close the
    client, or use it with `with`. Do not use one across `fork`: make it in the child.

    A client of a gateway sends its API key with every request, so use `https` where others can listen.
    Proxies of the environment (`HTTP_PROXY`) are not used, and redirections not followed.

    Every call raises, besides what it names itself:

    - `GatewayUnavailable`: no gateway could be reached, or all broke off; says each and why.
    - `DeadlineExceeded`: no answer in time.
    - `Unauthenticated`, `Forbidden`, `Throttled`: the API key is missing, wrong, lacks a scope, or
      too many wrong ones were sent.
    - `ConfigError`: a certificate is not trusted; on a local client, no daemon runs.
    - `ProtocolError`: what answered is no gateway of this version.
    - `UsageError`: the client was closed.
    """

    # Inference

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike | InputTensor] | ArrayLike | InputTensor,
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Scalar] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        idempotency_key: str | None = None,
        hints: Hints | None = None,
    ) -> InferResult:
        """Run a model on one input; any node of the mesh may serve it.

        Args:
            model: Public name of the model.
            inputs: A map from input name to NumPy array, nested lists, a single value or an
                `InputTensor`; or one of these alone for a model with one input. Arrays are sent with
                the type they have. Lists take the type that the model says (asked for once), and may
                leave out the batch dimension.
            version: A version, or None for the newest that is ready.
            outputs: Names of the outputs wanted; empty for all.
            parameters: Parameters for the model.
            timeout_s: Seconds until the result must be there, all tries included; the gateway is
                told. None for the client's.
            request_id: An id for the logs of every node involved; else the gateway makes one.
            idempotency_key: Text under which the mesh runs the same request once: a repetition of it, the client's own
                after a lost answer and yours, gets the answer that there was. Without one, a request whose answer is
                lost may run twice.
            hints: Where it may run, and how urgent it is; None for anywhere.

        Returns:
            The outputs as NumPy arrays, and how they came about.

        Raises:
            InvalidRequest: if the inputs are not what the model takes, or cannot be sent.
            ModelNotFound: if the mesh does not know the model or the version.
            NoReplica: if no replica can take the request now.
            Saturated: if all queues are full.
            InferenceFailed: if the model raised.
            TooLarge: if the request or the answer exceeds its limit.
        """
        flow = infer(
            self._cache,
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            timeout_s=self._seconds(timeout_s),
            idempotency_key=idempotency_key,
            hints=hints,
        )
        return self.run(flow, timeout_s=self._timeout_s if timeout_s is None else timeout_s)

    def stream(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike | InputTensor] | ArrayLike | InputTensor,
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Scalar] | None = None,
        timeout_s: float | None = None,
        total_s: float | None = None,
        request_id: str | None = None,
        resume: bool = True,
        idempotency_key: str | None = None,
        hints: Hints | None = None,
    ) -> Stream[InferResult]:
        """Run a model that answers in parts; each comes as soon as it is there.

        Where the connection breaks, the stream goes on after the last part that came, at the gateway that began
        it. Where that gateway is lost, it begins again at another one only if no part has come; else it is an
        error that says how many did: parts of two answers are never mixed.

        Args:
            model: Public name of the model.
            inputs: As for `infer`.
            version: A version, or None for the newest that is ready.
            outputs: Names of the outputs wanted; empty for all.
            parameters: Parameters for the model.
            timeout_s: Seconds until the first part must be there. None for the client's.
            total_s: Seconds until the last one; None for no limit.
            request_id: An id for the logs of every node involved; else the gateway makes one.
            resume: Whether the gateway keeps the stream a while for a client that lost its connection. Without it,
                the work stops as soon as the connection is closed.
            idempotency_key: As for `infer`; a repetition takes the stream over from its beginning, once nobody reads it.
            hints: As for `infer`.

        Returns:
            The parts, each as `infer` returns a whole answer. Close it, or use it with `with`, unless it is read
            to its end.

        Raises, when the parts are asked for:
            GatewayUnavailable: if the stream broke off and cannot be taken up again.
            MeshError: as `infer` does, also after some parts.
        """
        flow = streaming.stream(
            self._cache,
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            timeout_s=self._seconds(timeout_s),
            resume=resume,
            idempotency_key=idempotency_key,
            hints=hints,
        )
        return Stream(self, flow, total_s)

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Scalar] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        idempotency_key: str | None = None,
        hints: Hints | None = None,
    ) -> PlainResult:
        """Run a model on plain Python values and return plain ones; NumPy is not needed.

        Args:
            model: Public name of the model.
            inputs: By name: numbers or text, or nested lists of them; for a model of JSON documents
                `{"request": DOCUMENT}`.
            version: A version, or None for the newest that is ready.
            outputs: Names of the outputs wanted; empty for all.
            parameters: Parameters for the model.
            timeout_s: Seconds until the result must be there, all tries included. None for the client's.
            request_id: An id for the logs of every node involved; else the gateway makes one.
            idempotency_key: As for `infer`.
            hints: As for `infer`.

        Raises:
            MeshError: as `infer` does.
        """
        flow = native.predict(
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            timeout_s=self._seconds(timeout_s),
            idempotency_key=idempotency_key,
            hints=hints,
        )
        return self._ask(flow, timeout_s)

    def predict_stream(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Scalar] | None = None,
        timeout_s: float | None = None,
        total_s: float | None = None,
        request_id: str | None = None,
        resume: bool = True,
        idempotency_key: str | None = None,
        hints: Hints | None = None,
    ) -> Stream[PlainResult]:
        """Run a model that answers in parts on plain Python values; `predict` and `stream` say the rest."""
        flow = streaming.predict_stream(
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            timeout_s=self._seconds(timeout_s),
            resume=resume,
            idempotency_key=idempotency_key,
            hints=hints,
        )
        return Stream(self, flow, total_s)

    def metadata(
        self, model: str, version: int | None = None, *, timeout_s: float | None = None
    ) -> ModelMetadata:
        """Return what a model takes and gives.

        Raises:
            ModelNotFound: if the mesh does not know the model or the version.
        """
        return self._ask(get_metadata(model, version), timeout_s)

    # What there is

    def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Return the mesh's models and where they are served."""
        return self._ask(flows.models(), timeout_s)

    def model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Return one model of the mesh.

        Raises:
            ModelNotFound: if the mesh neither serves nor deploys it.
        """
        return self._ask(flows.model(name), timeout_s)

    def nodes(self, *, timeout_s: float | None = None) -> list[NodeInfo]:
        """Return the mesh's nodes, the one that answers first."""
        return self._ask(flows.nodes(), timeout_s)

    def status(self, *, timeout_s: float | None = None) -> NodeStatus:
        """Return the node that answers."""
        return self._ask(flows.status(), timeout_s)

    def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether some gateway is in its mesh and takes requests; False if it answers that it is not."""
        return self._ask(flows.ready(), timeout_s)

    def events(
        self,
        kinds: Sequence[Literal["member", "deployment", "model", "node"]] = (),
        *,
        total_s: float | None = None,
    ) -> Stream[MeshEvent]:
        """Return what happens in the mesh, as one gateway learns of it.

        Where the line breaks, it goes on after the last event, also at another gateway; what may have been missed
        is told as a `gap`.

        Args:
            kinds: Only these; empty for all.
            total_s: Seconds after which it ends with `DeadlineExceeded`; None for no limit.
        """
        return Stream(self, flows.events(kinds), total_s)

    # Deployments: an API key needs the scope `deploy`

    def deploy(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        replicas: int | None = None,
        on: Sequence[str] = (),
        wait: bool = True,
        timeout_s: float = 120.0,
        progress: Callable[[DeployProgress], object] | None = None,
        endpoint: str | None = None,
        tasks: Sequence[str] | None = None,
        cache: bool | None = None,
        autoscaling: Mapping[str, Any] | None = None,
        release: Mapping[str, Any] | None = None,
    ) -> ModelInfo:
        """Serve a model on the mesh; its files travel to the nodes that will serve it.

        Through a gateway the files are uploaded first, in pieces; when that gateway is lost, the upload
        begins again on another. A local client tells its daemon the path.

        Args:
            path: A model's folder (`DIR/1/model.onnx`), a bare model file (`.onnx`, `.pt`, `.pt2`, `.tflite`,
                `.mar`), or the `s3://`, `gs://` or `http(s)://` URL of one.
            name: Public name; else the folder's or file's.
            replicas: How many nodes shall serve it; else 1, or as many as `on` names.
            on: Nodes that shall serve it, by name or id.
            wait: Whether to wait until its replicas are ready.
            timeout_s: Seconds to wait for them, once the gateway has the files.
            progress: Called with every change, in the thread of the call.
            endpoint: A path under which every gateway offers it too, such as `/count-cars`; empty for none. None, here
                and below, leaves it to the model's `config.pbtxt`.
            tasks: What it does for clients that know only tasks, such as `("embedding:output=vector",)`.
            cache: Whether answers are kept and given again for equal requests.
            autoscaling: What the number of replicas follows, such as `{"min": 0, "max": 4, "concurrency": 2}`: the keys
                of docs/autoscaling.md. None leaves it as it is.
            release: How it takes the place of the version that serves now, such as `{"strategy": "canary"}`: the keys of
                docs/releases.md. None for directly.

        Returns:
            The model, ready or (without `wait`) as it is.

        Raises:
            ConfigError: if there is nothing at the path.
            ModelError: if it holds no model, several, or one that cannot be served.
            InvalidRequest: if a node is unknown, or the replicas do not fit.
            PeerError: if a replica failed, or the deployment was replaced or withdrawn meanwhile; or if
                all that could be placed is ready and no node can take the rest: it stays deployed.
            DeadlineExceeded: if it is not ready in time; it goes on in the background.
            GatewayUnavailable: if the gateway was lost; the message says if the deployment may have
                been made.
        """
        wish = deploying.Wish(
            str(path),
            name,
            replicas,
            names_of("on", on),
            endpoint=endpoint,
            tasks=None if tasks is None else names_of("tasks", tasks),
            cache=cache,
            autoscaling=autoscaling,
            release=release,
        )
        wait_s = checked_timeout_s(timeout_s) if wait else None
        flow = self.deployment(wish, wait_s, progress or deploying.ignore)
        return read_as(ModelInfo, self.run(flow))

    def deployment(
        self,
        wish: deploying.Wish,
        wait_s: float | None,
        progress: Callable[[DeployProgress], object],
    ) -> Flow[dict[str, Any]]:
        """Return a deployment as a flow to `run`, whose result is the model's JSON document.

        Args:
            wish: What shall be deployed.
            wait_s: Seconds to wait for the replicas; None not to wait.
            progress: Called with every change.
        """
        return deploying.deploy(
            wish,
            local=self._target.is_local,
            gateways=len(self._pools),
            progress=progress,
            clock=time.monotonic,
            wait_s=wait_s,
        )

    def publish(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        metrics: Mapping[str, float] | None = None,
        note: str = "",
        version: int | None = None,
        progress: Callable[[DeployProgress], object] | None = None,
        variant: str = "",
        replace: bool = False,
    ) -> dict[str, Any]:
        """Put a model into the mesh's store without serving it; `deploy` it later by its name.

        The node that takes it signs who published it and when, with what is said of it here.

        Args:
            path: A model's folder or a bare model file.
            name: Public name; else the folder's or file's.
            metrics: How good it was found to be, by name, such as `{"accuracy": 0.97}`.
            note: Free text.
            version: Its number; else its own, or the next one for a bare file.
            progress: Called with every change, in the thread of the call.
            variant: Which further form of a published version it is, such as `"int8"`.
            replace: Whether it takes the place of what was published under its name and number.

        Returns:
            `{"name", "versions"}`, with the description of each version.

        Raises:
            InvalidRequest: if something else was published under its name and number.
            ConfigError: if there is nothing at the path.
            ModelError: if it holds no model, several, or one that cannot be served.
            GatewayUnavailable: if the gateway was lost.
        """
        flow = self.publication(
            str(path), name, metrics, note, version, progress, variant=variant, replace=replace
        )
        return self.run(flow)

    def publication(
        self,
        path: str,
        name: str | None = None,
        metrics: Mapping[str, float] | None = None,
        note: str = "",
        version: int | None = None,
        progress: Callable[[DeployProgress], object] | None = None,
        *,
        variant: str = "",
        replace: bool = False,
    ) -> Flow[dict[str, Any]]:
        """Return a publication as a flow to `run`, whose result is what was published, as JSON."""
        return publishing.publish(
            publishing.Publication(path, name, metrics or {}, note, version, variant, replace),
            local=self._target.is_local,
            gateways=len(self._pools),
            progress=progress or deploying.ignore,
        )

    def wait_ready(
        self,
        name: str,
        *,
        replicas: int | None = None,
        version: int | None = None,
        timeout_s: float = 120.0,
        progress: Callable[[DeployProgress], object] | None = None,
    ) -> ModelInfo:
        """Wait until a model is served, also one that is not known yet.

        Args:
            name: Public name of the model.
            replicas: How many replicas must be ready; else as many as the deployment asks for.
            version: Of this version; else of each that is deployed.
            timeout_s: Seconds to wait.
            progress: Called with every change.

        Raises:
            PeerError: if a replica failed.
            DeadlineExceeded: with what is missing.
        """
        watch, wait_s = progress or deploying.ignore, checked_timeout_s(timeout_s)
        return self.run(
            deploying.wait_ready(name, replicas, version, watch, time.monotonic, wait_s)
        )

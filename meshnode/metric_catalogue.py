"""Every metric of a node, declared once: name, type, labels, meaning.

What counts makes its counter from the declaration (`Counter.of(REQUESTS)`), docs/metrics.md is
generated from this module, and a test compares both with the scrape of a real daemon. A new metric is
declared here, under its section's heading, and made where its truth is; only what has a true source is
shown, and every label has a bounded set of values.

Names follow Prometheus' conventions: base units last (`_seconds`, `_bytes`), `_total` on what only
grows, `process_*` as its client libraries have them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNITS: Final = ("seconds", "bytes", "celsius", "ratio", "info")


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: As Prometheus shows it, `_total` included.
        kind: Its type.
        help_text: What it tells, in one sentence.
        labels: Each label's name and, for people, its values.
        example: A query or an alert in PromQL, or empty.
        absent: Where or when there are no values, or empty.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help_text: str
    labels: Mapping[str, str] = field(default_factory=dict)
    example: str = ""
    absent: str = ""

    @property
    def family(self) -> str:
        """The name without a counter's `_total`, as OpenMetrics names the family."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name

    @property
    def unit(self) -> str:
        """The unit that the name ends in, or empty for a count."""
        last = self.family.rpartition("_")[2]
        return last if last in _UNITS and last != "info" else ""


_MODEL = "a model that the mesh knows; `other` for the rest"
_OUTCOME = "`ok`, `cancelled`, `internal`, or the code of an [error](errors.md)"
_OWN_MODEL = "a model that this node serves"
_VERSION = "its version"
_ACCELERATOR = "its place in the list that `meshnode node show` prints, from 0"
_MESSAGES = "the kinds of messages between cores, such as `gossip`, `digest`, `owner_deltas`"

# Requests

REQUESTS: Final = MetricSpec(
    "meshnode_requests_total",
    "counter",
    "Inference requests that this gateway answered, by model and outcome.",
    {"model": _MODEL, "outcome": _OUTCOME},
    'sum(rate(meshnode_requests_total{outcome!~"ok|cancelled|invalid_request"}[5m])) '
    "/ sum(rate(meshnode_requests_total[5m])) > 0.01",
)
REQUEST_DURATION: Final = MetricSpec(
    "meshnode_request_duration_seconds",
    "histogram",
    "Time from a decoded inference request to its answer, by model; failed ones are not in it.",
    {"model": _MODEL},
    "histogram_quantile(0.99, sum by (le, model) "
    "(rate(meshnode_request_duration_seconds_bucket[5m])))",
)
REQUESTS_IN_FLIGHT: Final = MetricSpec(
    "meshnode_requests_in_flight",
    "gauge",
    "Inference requests that this gateway is working on; models that run inline never show here, "
    "since nothing else runs meanwhile.",
)
ATTEMPTS: Final = MetricSpec(
    "meshnode_attempts_total",
    "counter",
    "Tries of inference requests on replicas, by where they went and outcome.",
    {"target": "`local`, `peer`", "outcome": _OUTCOME},
    'sum(rate(meshnode_attempts_total{outcome!="ok"}[5m])) by (outcome)',
)
RETRIES: Final = MetricSpec(
    "meshnode_retries_total",
    "counter",
    "Further tries that the retry budget granted.",
)
RETRIES_REFUSED: Final = MetricSpec(
    "meshnode_retries_refused_total",
    "counter",
    "Further tries that the retry budget refused, so that their requests failed.",
    example="increase(meshnode_retries_refused_total[10m]) > 0",
)
HEDGES: Final = MetricSpec(
    "meshnode_hedges_total",
    "counter",
    "Tries that were sent beside a slow one.",
)
HEDGES_REFUSED: Final = MetricSpec(
    "meshnode_hedges_refused_total",
    "counter",
    "Tries beside a slow one that the budget of hedges refused; the slow one went on alone.",
)
ADMISSION_REFUSED: Final = MetricSpec(
    "meshnode_admission_refused_total",
    "counter",
    "Requests that the gateway refused because their model had more in flight than its replicas answer in time.",
    example="rate(meshnode_admission_refused_total[5m]) > 1",
)
BREAKERS: Final = MetricSpec(
    "meshnode_breakers",
    "gauge",
    "Circuit breakers of this gateway, one per replica, by state.",
    {"state": "`closed`, `open`, `half-open`"},
    'meshnode_breakers{state="open"} > 0',
)
PEER_REQUESTS: Final = MetricSpec(
    "meshnode_peer_requests_total",
    "counter",
    "Inference requests of other nodes' gateways that this node worked on, by outcome.",
    {"outcome": _OUTCOME},
)
FORWARDED_CALLS: Final = MetricSpec(
    "meshnode_forwarded_calls_total",
    "counter",
    "Changes, and calls about jobs, that this gateway had another node answer, whose role allows them, by outcome.",
    {"outcome": f"`refused` where that node refused it, else {_OUTCOME}"},
)
CHECKUPS_ANSWERED: Final = MetricSpec(
    "meshnode_checkups_answered_total",
    "counter",
    "Questions of other nodes what this one sees of them, for `meshnode doctor`, by outcome.",
    {"outcome": _OUTCOME},
    'rate(meshnode_checkups_answered_total{outcome="saturated"}[5m]) > 0',
)
JOBS: Final = MetricSpec(
    "meshnode_jobs",
    "gauge",
    "Jobs that this node keeps, each of which another node keeps too, by status.",
    {"status": "`queued`, `running` (here or elsewhere), `succeeded`, `failed` or `cancelled`"},
    'meshnode_jobs{status="queued"} > 100',
)
JOBS_BYTES: Final = MetricSpec(
    "meshnode_jobs_bytes",
    "gauge",
    "What the requests and results of these jobs take on the disk.",
)
JOB_RUNS: Final = MetricSpec(
    "meshnode_job_runs_total",
    "counter",
    "Jobs that ran on this node to their end, by outcome.",
    {"outcome": "`succeeded` or `failed`"},
    'rate(meshnode_job_runs_total{outcome="failed"}[5m]) > 0',
)
JOB_WEBHOOKS: Final = MetricSpec(
    "meshnode_job_webhooks_total",
    "counter",
    "Webhooks of jobs that this node told, by outcome.",
    {"outcome": "`delivered`, or `failed` after all tries"},
    'increase(meshnode_job_webhooks_total{outcome="failed"}[1h]) > 0',
)
JOB_QUESTIONS: Final = MetricSpec(
    "meshnode_job_questions_total",
    "counter",
    "Questions of other nodes about jobs that this one answered, copies that it took included, by outcome.",
    {"outcome": _OUTCOME},
)
FORWARDED_CALLS_ANSWERED: Final = MetricSpec(
    "meshnode_forwarded_calls_answered_total",
    "counter",
    "Changes, and calls about jobs, that this node was asked for by other nodes' gateways, by outcome.",
    {"outcome": f"`http` for a path that is none, else {_OUTCOME}"},
    'rate(meshnode_forwarded_calls_answered_total{outcome="unauthenticated"}[5m]) > 0',
)

# HTTP

HTTP_RESPONSES: Final = MetricSpec(
    "meshnode_http_responses_total",
    "counter",
    "HTTP responses of the gateway and the control channel, by status.",
    {"status": "HTTP status codes"},
    'sum(rate(meshnode_http_responses_total{status=~"5.."}[5m])) by (status)',
)
GRPC_CALLS: Final = MetricSpec(
    "meshnode_grpc_calls_total",
    "counter",
    "Calls by gRPC that the gateway answered, by method and status.",
    {
        "method": "method of inference.GRPCInferenceService or grpc.health.v1.Health",
        "code": "gRPC status names",
    },
    'sum(rate(meshnode_grpc_calls_total{code!="OK"}[5m])) by (method, code)',
    absent="where gRPC is not offered, or was never asked",
)
HTTP_ERRORS: Final = MetricSpec(
    "meshnode_http_errors_total",
    "counter",
    "Requests of all kinds that were refused or failed, by code; a wrong or missing key is "
    "`unauthenticated`, too many of them `throttled`, a foreign Host or a missing scope `forbidden`.",
    {"code": "the code of an [error](errors.md)"},
    'sum(rate(meshnode_http_errors_total{code=~"unauthenticated|throttled"}[5m])) > 1',
)
HTTP_CACHE_ANSWERS: Final = MetricSpec(
    "meshnode_http_cache_answers_total",
    "counter",
    "Answers of models whose answers are kept, as this gateway's callers got them: a kept one (`hit`), a new "
    "one (`miss`), or a new one because the caller's Cache-Control wanted it (`bypass`).",
    {"outcome": "`hit`, `miss` or `bypass`"},
    'rate(meshnode_http_cache_answers_total{outcome="hit"}[5m])',
)
HTTP_IDEMPOTENT: Final = MetricSpec(
    "meshnode_http_idempotent_requests_total",
    "counter",
    "Requests with an Idempotency-Key: carried out (`new`), answered as before (`replayed`, from another node's "
    "memory `replayed_elsewhere`), or refused because the key came with another request (`mismatch`).",
    {"outcome": "`new`, `replayed`, `replayed_elsewhere` or `mismatch`"},
    'rate(meshnode_http_idempotent_requests_total{outcome="replayed"}[5m])',
)
MIRRORED_REQUESTS: Final = MetricSpec(
    "meshnode_mirrored_requests_total",
    "counter",
    "Requests that a release had run on its new version besides, and answers that were compared, by what came of it.",
    {
        "outcome": "`agreed`, `disagreed`; `kept_for_labels`; `failed` (the new version did not answer); `no_reference` "
        "(nothing to compare with); `dropped` (too many at once), `too_large` or `not_repeatable`: not mirrored"
    },
    'rate(meshnode_mirrored_requests_total{outcome="dropped"}[5m]) > 0',
)
HTTP_KEY_LIMITED: Final = MetricSpec(
    "meshnode_http_key_limited_total",
    "counter",
    "Requests that were refused because their API key's limit was used up, by which part of it.",
    {"limit": "`rate` or `concurrency`"},
    "sum(rate(meshnode_http_key_limited_total[5m])) by (limit) > 0",
)
HTTP_CONNECTIONS: Final = MetricSpec(
    "meshnode_http_connections",
    "gauge",
    "HTTP connections that stand, the control channel's included.",
)
HTTP_REQUEST_BODY_BYTES: Final = MetricSpec(
    "meshnode_http_request_body_bytes_total",
    "counter",
    "Bytes of HTTP request bodies that were read completely.",
)
HTTP_RESPONSE_BODY_BYTES: Final = MetricSpec(
    "meshnode_http_response_body_bytes_total",
    "counter",
    "Bytes of the bodies of HTTP responses.",
)
UPLOADS: Final = MetricSpec(
    "meshnode_uploads", "gauge", "Uploads of models that have begun and not ended."
)
UPLOADS_STAGED_BYTES: Final = MetricSpec(
    "meshnode_uploads_staged_bytes", "gauge", "Bytes of these that have arrived."
)

# Models

REPLICAS: Final = MetricSpec(
    "meshnode_replicas",
    "gauge",
    "Model versions on this node, by state.",
    {"state": "`fetching`, `loading`, `ready`, `paused`, `failed`, `unloading`"},
    'meshnode_replicas{state="failed"} > 0',
)
MODEL_SLOTS: Final = MetricSpec(
    "meshnode_model_slots",
    "gauge",
    "Requests that a model version runs at once on this node.",
    {"model": _OWN_MODEL, "version": _VERSION},
)
MODEL_REQUESTS: Final = MetricSpec(
    "meshnode_model_requests",
    "gauge",
    "Requests that a model version is running or has waiting on this node.",
    {"model": _OWN_MODEL, "version": _VERSION},
    "meshnode_model_requests / meshnode_model_slots > 4",
)
MODEL_SERVICE_TIME: Final = MetricSpec(
    "meshnode_model_service_time_seconds",
    "gauge",
    "Moving average of one request's run time on this node.",
    {"model": _OWN_MODEL, "version": _VERSION},
)
MODEL_LOAD_TIME: Final = MetricSpec(
    "meshnode_model_load_time_seconds",
    "gauge",
    "How long opening and warming up a model version took, its transfer not included.",
    {"model": _OWN_MODEL, "version": _VERSION},
)
MODEL_ANSWERS: Final = MetricSpec(
    "meshnode_model_answers_total",
    "counter",
    "Requests that a model version took on this node, by what became of them.",
    {
        "model": _OWN_MODEL,
        "version": _VERSION,
        "outcome": "`ok`, `failed` (late and cancelled ones too)",
    },
    'sum by (model) (rate(meshnode_model_answers_total{outcome="failed"}[5m]))',
)
MODEL_EXECUTIONS: Final = MetricSpec(
    "meshnode_model_executions_total",
    "counter",
    "Runs of a model version on this node; requests that were joined to a batch share one.",
    {"model": _OWN_MODEL, "version": _VERSION},
)
MODEL_ROWS: Final = MetricSpec(
    "meshnode_model_rows_total",
    "counter",
    "Rows that a model version executed on this node.",
    {"model": _OWN_MODEL, "version": _VERSION},
    "rate(meshnode_model_rows_total[5m]) / rate(meshnode_model_executions_total[5m])",
)
MODEL_QUEUE_TIME: Final = MetricSpec(
    "meshnode_model_queue_seconds_total",
    "counter",
    "Time that requests of a model version waited on this node before they ran.",
    {"model": _OWN_MODEL, "version": _VERSION},
    "rate(meshnode_model_queue_seconds_total[5m]) > 10",
)
MODEL_COMPUTE_TIME: Final = MetricSpec(
    "meshnode_model_compute_seconds_total",
    "counter",
    "Time of a model version's runs on this node: joining requests, the model itself, and cutting its "
    "outputs.",
    {"model": _OWN_MODEL, "version": _VERSION, "phase": "`input`, `infer`, `output`"},
)
MODEL_PROCESS_MEMORY: Final = MetricSpec(
    "meshnode_model_process_memory_bytes",
    "gauge",
    "Resident memory of the processes of a model version that has its own (Python, PyTorch), with what they "
    "started.",
    {"model": _OWN_MODEL, "version": _VERSION},
)
MODEL_PROCESS_RESTARTS: Final = MetricSpec(
    "meshnode_model_process_restarts_total",
    "counter",
    "How often such processes were started again, after they died or were ended; the log says why.",
    {"model": _OWN_MODEL, "version": _VERSION},
    "rate(meshnode_model_process_restarts_total[15m]) > 0",
)
RESPONSE_CACHE_REQUESTS: Final = MetricSpec(
    "meshnode_response_cache_requests_total",
    "counter",
    "Requests for models with a response cache: answered from it (`hit`), by the run of an equal request "
    "at the same time (`shared`), or by a run of their own (`miss`).",
    {"outcome": "`hit`, `shared`, `miss`"},
    'rate(meshnode_response_cache_requests_total{outcome="hit"}[5m])',
)
RESPONSE_CACHE_BYTES: Final = MetricSpec(
    "meshnode_response_cache_bytes", "gauge", "Memory that kept answers take."
)
RESPONSE_CACHE_ENTRIES: Final = MetricSpec(
    "meshnode_response_cache_entries", "gauge", "Answers that are kept."
)
RESPONSE_CACHE_EVICTIONS: Final = MetricSpec(
    "meshnode_response_cache_evictions_total",
    "counter",
    "Answers that went for want of room before their time was over.",
    example="rate(meshnode_response_cache_evictions_total[5m]) > 100",
)
MEMORY_PRESSURE: Final = MetricSpec(
    "meshnode_memory_pressure",
    "gauge",
    "How short of memory this node is: 0 for enough; each step halves the rows of a batch.",
    example="meshnode_memory_pressure > 0",
)

# Mesh

MEMBERS: Final = MetricSpec(
    "meshnode_members",
    "gauge",
    "Members that this node knows, itself included, by state.",
    {"state": "`alive`, `suspect`, `dead`, `left`"},
    'meshnode_members{state="alive"} < 3',
)
MEMBERSHIP_HEALTH: Final = MetricSpec(
    "meshnode_membership_health",
    "gauge",
    "How much this node doubts itself: 0 if it is well, up to 8 if its own probes, timers or helpers show "
    "that it or its network is slow. It probes so much more patiently.",
    example="avg_over_time(meshnode_membership_health[10m]) > 2",
)
PROBES: Final = MetricSpec(
    "meshnode_probes_total",
    "counter",
    "Probes of other members by outcome: `answered` by the member, `helped` by another one that reached "
    "it, `failed`, or `void` since this node slept meanwhile.",
    {"outcome": "`answered`, `helped`, `failed`, `void`"},
    'rate(meshnode_probes_total{outcome="failed"}[5m]) > 0.1',
)
SUSPICIONS: Final = MetricSpec(
    "meshnode_suspicions_total",
    "counter",
    "Suspicions of members: `begun`, `confirmed` by one more accuser, `refuted` by the suspect, and those "
    "against this node that it `answered`.",
    {"step": "`begun`, `confirmed`, `refuted`, `answered`"},
    'rate(meshnode_suspicions_total{step="answered"}[10m]) > 0.05',
)
EVENTS: Final = MetricSpec(
    "meshnode_events_total",
    "counter",
    "What happened to members and state, as the log tells it.",
    {"kind": "the first word of the log's line, such as `member.dead`, `desired.changed`"},
    'increase(meshnode_events_total{kind="member.dead"}[15m]) > 3',
)
DEPLOYMENT_REPLICAS: Final = MetricSpec(
    "meshnode_deployment_replicas",
    "gauge",
    "Replicas of each deployment, as this node knows it: how many are wanted now, and how many nodes serve it.",
    {"model": "a deployed model", "what": "`wanted`, `ready`"},
    'meshnode_deployment_replicas{what="ready"} < ignoring(what) meshnode_deployment_replicas{what="wanted"}',
    "a deployment that is paused",
)
DEPLOYMENTS_STEWARDED: Final = MetricSpec(
    "meshnode_deployments_stewarded",
    "gauge",
    "Autoscaled deployments whose number of replicas this node decides.",
    example="sum(meshnode_deployments_stewarded)",
)
LINKS: Final = MetricSpec("meshnode_links", "gauge", "Peers that a link stands to.")
LINKS_REFUSED: Final = MetricSpec(
    "meshnode_links_refused_total", "counter", "Incoming links that failed their hello."
)
LINKS_TRIED: Final = MetricSpec(
    "meshnode_links_tried_total",
    "counter",
    "Incoming hellos that only asked whether they would succeed, for `meshnode doctor`, and would.",
)
LINKS_THROTTLED: Final = MetricSpec(
    "meshnode_links_throttled_total",
    "counter",
    "Incoming connections that were closed unheard, because their source opens too many.",
    example="rate(meshnode_links_throttled_total[5m]) > 0",
)
LINKS_RELAYED: Final = MetricSpec(
    "meshnode_links_relayed",
    "gauge",
    "Links of this node that go through another one, because neither end can dial the other.",
    example="meshnode_links_relayed > 0",
)
RELAY_SEARCHES: Final = MetricSpec(
    "meshnode_relay_searches_total",
    "counter",
    "Searches of this node for somebody that relays to a peer, by outcome.",
    {
        "outcome": "`found`, or `failed` if nobody did; and `replaced`, when a direct link took a relayed one's place"
    },
    'rate(meshnode_relay_searches_total{outcome="failed"}[5m]) > 0',
)
RELAYED_PAIRS: Final = MetricSpec(
    "meshnode_relayed_pairs",
    "gauge",
    "Pairs of other nodes that this one relays between.",
    example="meshnode_relayed_pairs",
)
RELAYED_BYTES: Final = MetricSpec(
    "meshnode_relayed_bytes_total",
    "counter",
    "What this node has passed on for other nodes, in bytes.",
    example="rate(meshnode_relayed_bytes_total[5m])",
)
PATHS_MOVED: Final = MetricSpec(
    "meshnode_paths_moved_total",
    "counter",
    "Members that were found to take datagrams elsewhere than their records say, each time that such a "
    "place answered: behind a router, or on another network than before.",
)
JOIN_REQUESTS: Final = MetricSpec(
    "meshnode_join_requests_total",
    "counter",
    "Devices that asked this node to admit them without an invite, and what became of them.",
    {"event": "`asked`, and of those `refused`, `approved`, `expired`, `withdrawn`"},
    'increase(meshnode_join_requests_total{event="refused"}[10m]) > 10',
)
JOIN_REQUESTS_WAITING: Final = MetricSpec(
    "meshnode_join_requests_waiting",
    "gauge",
    "Devices that wait for `meshnode approve` on this node.",
)
JOIN_CODES_WRONG: Final = MetricSpec(
    "meshnode_join_codes_wrong_total",
    "counter",
    "Codes that were typed on this node and fit no device that waits: mistyped, or somebody stands "
    "between the device and this node.",
)
LINK_RTT: Final = MetricSpec(
    "meshnode_link_rtt_seconds",
    "gauge",
    "Smoothed round trip of the link to a peer.",
    {"peer": "its name", "peer_id": "its NodeId; at most 256 peers"},
    "meshnode_link_rtt_seconds > 0.5",
    "until a link's first ping is answered",
)
DATAGRAMS_SENT: Final = MetricSpec(
    "meshnode_datagrams_sent_total", "counter", "Datagrams handed to the network."
)
DATAGRAMS_SENT_BYTES: Final = MetricSpec(
    "meshnode_datagrams_sent_bytes_total", "counter", "Bytes of these, UDP's headers not included."
)
DATAGRAMS_RECEIVED: Final = MetricSpec(
    "meshnode_datagrams_received_total", "counter", "Datagrams of members that were accepted."
)
DATAGRAMS_RECEIVED_BYTES: Final = MetricSpec(
    "meshnode_datagrams_received_bytes_total",
    "counter",
    "Bytes of these, UDP's headers not included.",
)
DATAGRAMS_DROPPED: Final = MetricSpec(
    "meshnode_datagrams_dropped_total",
    "counter",
    "Datagrams and notes that were refused or could not be sent, by reason.",
    {"reason": "why, such as `forged`, `replayed`, `no_address`"},
)
NOTES_SENT: Final = MetricSpec(
    "meshnode_notes_sent_total",
    "counter",
    "One-way messages to peers over links: gossip, synchronisation, state.",
    {"kind": _MESSAGES},
)
NOTES_RECEIVED: Final = MetricSpec(
    "meshnode_notes_received_total",
    "counter",
    "One-way messages of peers over links.",
    {"kind": f"{_MESSAGES}; `other` for unknown ones"},
    "sum(rate(meshnode_notes_received_total[5m])) by (kind)",
)
DESIRED_ENTRIES: Final = MetricSpec(
    "meshnode_desired_entries",
    "gauge",
    "Entries of the desired state: deployments, keys, and what proves their authors.",
)
DESIRED_BYTES: Final = MetricSpec(
    "meshnode_desired_bytes",
    "gauge",
    "Size of the desired state with its history.",
)

# Node

BUILD: Final = MetricSpec(
    "meshnode_build_info",
    "gauge",
    "1; its labels say what runs.",
    {"version": "of meshnode", "python": "of Python", "os": "`linux`, `darwin`, `windows`"},
    "count by (version) (meshnode_build_info)",
)
READY: Final = MetricSpec(
    "meshnode_ready",
    "gauge",
    "1 while `/readyz` answers 200, else 0.",
    example="meshnode_ready == 0",
)
MEMORY_AVAILABLE: Final = MetricSpec(
    "meshnode_memory_available_bytes",
    "gauge",
    "Memory of the machine that programs could still take without swapping.",
)
PAUSED: Final = MetricSpec(
    "meshnode_paused",
    "gauge",
    "1 while this node serves no models because of its owner's limits, else 0.",
    example="meshnode_paused == 1",
)
TEMPERATURE: Final = MetricSpec(
    "meshnode_temperature_celsius",
    "gauge",
    "Temperature of the processor.",
    example="meshnode_temperature_celsius > 85",
    absent="where the machine does not tell it",
)
BATTERY: Final = MetricSpec(
    "meshnode_battery_ratio",
    "gauge",
    "Charge of the battery, 0 to 1.",
    absent="where there is none",
)
ACCELERATOR_UTILISATION: Final = MetricSpec(
    "meshnode_accelerator_utilisation_ratio",
    "gauge",
    "How busy an accelerator is, 0 to 1.",
    {"accelerator": _ACCELERATOR},
    absent="for accelerators that do not tell",
)
ACCELERATOR_MEMORY: Final = MetricSpec(
    "meshnode_accelerator_memory_free_bytes",
    "gauge",
    "Free memory of an accelerator.",
    {"accelerator": _ACCELERATOR},
    absent="for accelerators that do not tell",
)
LOG_LINES: Final = MetricSpec(
    "meshnode_log_lines_total",
    "counter",
    "Lines that the daemon logged, by level.",
    {"level": "`debug`, `info`, `warning`, `error`, `critical`"},
    'increase(meshnode_log_lines_total{level="error"}[10m]) > 0',
)
LOG_LINES_LOST: Final = MetricSpec(
    "meshnode_log_lines_lost_total",
    "counter",
    "Lines that could not be written to the log file, as on a full disk.",
    example="increase(meshnode_log_lines_lost_total[10m]) > 0",
)

# Process

PROCESS_CPU: Final = MetricSpec(
    "process_cpu_seconds_total", "counter", "CPU time of the daemon, user and system."
)
PROCESS_RESIDENT: Final = MetricSpec(
    "process_resident_memory_bytes", "gauge", "Memory of the daemon that is in RAM."
)
PROCESS_VIRTUAL: Final = MetricSpec(
    "process_virtual_memory_bytes", "gauge", "Address space of the daemon."
)
PROCESS_START: Final = MetricSpec(
    "process_start_time_seconds",
    "gauge",
    "When the daemon was started, in seconds since 1970.",
    example="time() - process_start_time_seconds < 300",
)
PROCESS_OPEN_FDS: Final = MetricSpec(
    "process_open_fds",
    "gauge",
    "File descriptors that the daemon has open.",
    example="process_open_fds / process_max_fds > 0.8",
    absent="on Windows",
)
PROCESS_MAX_FDS: Final = MetricSpec(
    "process_max_fds", "gauge", "File descriptors that it may open.", absent="on Windows"
)


def all_metrics() -> tuple[MetricSpec, ...]:
    """Return every metric, in the order of this module."""
    return tuple(value for value in globals().values() if isinstance(value, MetricSpec))

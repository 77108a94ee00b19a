"""All limits of meshnode, each with its reason.

What a stranger, a peer or a client may make a node hold, send, wait for or do ends here: bodies,
headers, streams, queues, tables, names, files and times. `meshnode config show --limits` and
docs/limits.md show them. Sizes that the protocol fixes (a nonce, a frame's header) stand beside the
protocol; settings that an algorithm is tuned by stand beside the algorithm.

A limit's unit comes last in its name: `_BYTES`, `_S`, `_MS`, `_LENGTH` (characters), else a count.

The file is longer than others because one place is its purpose: whoever asks what bounds a node reads
this list and no code. It holds no statement besides the constants.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024

# Names

MAX_NAME_LENGTH: Final = 63
"""Node, region and zone names: a DNS label."""

MAX_HOST_LENGTH: Final = 253
"""A host name: the longest that DNS can carry (RFC 1035)."""

MAX_MODEL_NAME_LENGTH: Final = 128
"""A model's name: a file system's 255 with room for a prefix and a version beside it."""

MAX_REQUEST_ID_LENGTH: Final = 128
"""An `X-Request-Id` that is taken over: a UUID has 36, the longest tracing ids under a hundred."""

# HTTP gateway

MAX_BODY_BYTES: Final = 64 * MIB
"""An HTTP request body or one response part: a batch of 100 images as float32, with room."""

MAX_BODIES_BYTES: Final = 8 * MAX_BODY_BYTES
"""Bodies that did not arrive in one piece, together: half a gigabyte of a gateway's memory. Large
answers that wait for their readers may take as much again, and so may what a link's peer sends."""

BODIES_MEMORY_SHARE: Final = 0.25
"""Share of --max-memory that such bodies may take at most, and that answers and a link may: a daemon
takes a third of a small limit for itself, and its models need the rest."""

MAX_HEADER_BYTES: Final = 16 * KIB
"""All headers of an HTTP request together: twice what nginx and Node.js accept."""

MAX_HEADER_LINE_BYTES: Final = 8190
"""The request line, and each header: aiohttp's default, and Apache's."""

MAX_HEADERS: Final = 64
"""Headers of one request: browsers send about twenty."""

MAX_HTTP_CONNECTIONS: Final = 4096
"""Connections at once: each costs about 20 KB, and a client needs one or a few."""

KEEP_ALIVE_S: Final = 75.0
"""An idle connection's life (nginx' default), and the time for a request's headers."""

LINGER_S: Final = 5.0
"""How long a refused body is still read and dropped, so that the client sees the refusal."""

BODY_GRACE_S: Final = 10.0
"""Seconds for a body's first bytes; after them it must keep the pace of `MIN_BODY_BYTES_PER_S`."""

MIN_BODY_BYTES_PER_S: Final = 16 * KIB
"""Slower than any link over which inference makes sense; a full body then has over an hour."""

MAX_REQUESTS_IN_FLIGHT: Final = 4096
"""Requests that a gateway works on at once: four links' worth of streams (`MAX_STREAMS_PER_LINK`).
Beyond it waiting only makes everything late, so more are refused as `Saturated`."""

DEFAULT_REQUEST_TIMEOUT_S: Final = 30.0
"""Deadline of a request that names none: most models answer in a second, and people wait no longer."""

MAX_REQUEST_TIMEOUT_S: Final = 3600.0
"""Longest deadline; a longer wish is cut to it, so that a forgotten request ends some day."""

MAX_REQUEST_TENSORS: Final = 256
"""Inputs of a request, and outputs: the largest exported graphs have a few dozen."""

MAX_REQUEST_PARAMETERS: Final = 64
"""Parameters of one request: Triton's own come to a dozen."""

MAX_REQUEST_TEXT_LENGTH: Final = 16 * 1024
"""Characters of all names, ids and parameters of a request: they cross a link in one message."""

MAX_REQUEST_TEXTS: Final = 2048
"""Texts that one request asks vectors or completions for: what OpenAI takes."""

MAX_REQUEST_CHOICES: Final = 128
"""Answers that one request asks for the same text: what OpenAI takes."""

MAX_TOLD_MEMBER_LENGTH: Final = 80
"""Characters of a member's name that an error says again: longer ones are no mistake in writing."""

MAX_REQUEST_MESSAGES: Final = 4096
"""Messages of one conversation; longer ones are longer than what any model reads."""

MAX_STOP_TEXTS: Final = 16
"""Texts at which an answer ends: OpenAI takes 4, other servers more."""

MAX_STOP_LENGTH: Final = 1024
"""Characters of one of them: so much of an answer may be held back until it is clear."""

ROWS_OF_TEXTS: Final = 64
"""Texts in one inference of a model whose batches have no limit of their own: more only make the others wait."""

FAN_OUT: Final = 8
"""Inferences that one request has running at once: enough to fill a batch, too few to crowd out others."""

MAX_TENSOR_RANK: Final = 32
"""Dimensions of a tensor: what numpy 1 allows, and far more than any model has."""

MAX_TENSOR_ELEMENTS: Final = MAX_BODY_BYTES
"""Elements of a tensor: each takes at least one byte of a body."""

MIN_COMPRESSED_BYTES: Final = 1024
"""Smaller answers are not compressed: they fit one packet anyway."""

MAX_COMPRESSED_BYTES: Final = 8 * MIB
"""Larger answers are not compressed: it would hold the event loop for more than a tenth of a second."""

MAX_REMEMBERED_PATHS: Final = 1024
"""Matches of model paths that are kept; a mesh that asks for more forgets and goes on."""

MAX_REMEMBERED_HOSTS: Final = 64
"""Spellings of a valid `Host` header that are kept: there are a handful in use."""

STREAM_RESUME_S: Final = 60.0
"""How long a streamed answer whose reader is gone waits for it. Where only the gateway's side of a connection was closed,
its client learns of that by silence (`CLIENT_STREAM_SILENCE_S`), and then has a whole call's time
(`DEFAULT_REQUEST_TIMEOUT_S`) for coming back. So long a model may work for nobody, if its client did not say that it
will not come back; it counts for the client's key."""

STREAM_HEARTBEAT_S: Final = 10.0
"""Between signs of life on a quiet stream of events: proxies cut connections that are silent for 30 s or more."""

MAX_STREAM_KEPT_BYTES: Final = MIB
"""Events of one streamed answer that are kept, to be sent or to be sent again: minutes of text. A model whose
reader is slower waits; a single part may be larger."""

MAX_STREAMS_KEPT_BYTES: Final = 64 * MIB
"""Events of all streamed answers together; beyond it none is kept that was sent."""

STREAM_ALIVE_S: Final = 0.5
"""Between signs of life of a node that works on a streamed answer and has no part of it yet: 30 bytes each."""

STREAM_STALL_S: Final = 2.5
"""A stream that brings neither a part nor a sign of life for so long has stalled, and goes on elsewhere or ends with an
error. Five signs are due in it; a node whose whole loop stands still is found out sooner, by its link (`LinkConfig`)."""

STREAM_LATE_S: Final = 0.5
"""A gateway that looks for a sign of life so much later than it meant to was itself asleep, and waits anew."""

STREAM_PAUSE_S: Final = 300.0
"""The longest that a model may take from one part of a streamed answer to the next, and the reader to take one, unless the
request gave its first part more: five minutes, as for calls whose forms name no deadline (`MODEL_CALL_TIMEOUT_S`). A
model that hangs in mid-stream still tells signs of life; its place is free again after that."""

MAX_STREAM_CONTINUATIONS: Final = 3
"""How often in a row a streamed answer is continued on another node before anything new has come."""

MAX_DELIVERED_TEXT_LENGTH: Final = 64 * KIB
"""Characters of an answer that are told to the node that continues it; where more came, it runs anew from its beginning."""

MAX_KEPT_ANSWER_BYTES: Final = 2 * MIB
"""Parts of one streamed answer that the node keeps which makes it, for a gateway that takes it up: what waits at the
gateway that is lost (`MAX_STREAM_KEPT_BYTES`), and as much again on its way there."""

MAX_KEPT_ANSWERS_BYTES: Final = 64 * MIB
"""Parts of all streamed answers that a node keeps; beyond it those sent are let go, the oldest first."""

MAX_KEPT_ANSWERS: Final = 1024
"""Streamed answers that a node keeps at once; of more, those of clients that are long gone are let go."""

MAX_EVENT_STREAMS: Final = 1024
"""Streamed answers at once, those that wait for their readers included: the oldest of these makes room."""

MAX_KEPT_EVENTS: Final = 1024
"""Events of the mesh that a node can tell again, a few hundred bytes each: hours of a quiet mesh."""

MAX_EVENT_READERS: Final = 256
"""Programs that follow a node's events at once: each has a connection and a task."""

MAX_DESCRIBED_MODELS: Final = 200
"""Models that the API's description shows, the first by name: a page of more helps nobody, and takes seconds."""

MAX_DESCRIBED_DEPTH: Final = 64
"""How deep a schema that a model states about itself is told; what lies deeper may be anything."""

MAX_REPOSITORY_PATH_LENGTH: Final = 4096
"""A model repository's path in a request: PATH_MAX of Linux."""

HTTP_CLOSE_GRACE_S: Final = 1.0
"""Seconds that the last HTTP answers have to be written; running requests finished before."""

# Forms and uploads

MAX_FORM_PARTS: Final = 64
"""Fields and files of one form: a model has a handful of inputs."""

MAX_FORM_HEADER_BYTES: Final = 8 * KIB
"""Headers of one part of a form: its name, its file's name and its type, each of a few hundred bytes."""

MAX_UPLOAD_INPUTS: Final = 16
"""Inputs of one model that take uploaded files; each with as many media types at most."""

# gRPC

MAX_GRPC_MESSAGE_BYTES: Final = MAX_BODY_BYTES + 64 * KIB
"""A gRPC message: tensors as in an HTTP body, and their names and parameters."""

MAX_GRPC_CALLS: Final = MAX_REQUESTS_IN_FLIGHT
"""gRPC calls at once, streams included; more are refused as RESOURCE_EXHAUSTED."""

MAX_GRPC_CALLS_PER_CONNECTION: Final = 1024
"""Calls that one gRPC connection has open at once; a client waits with more, as HTTP/2 says."""

MAX_GRPC_READS: Final = 64
"""Messages with tensors or files of gRPC calls that are read at once: how large one is shows when it is here. Small
ones are read in no time, so a place is soon free; of large ones no more than this many are in memory before they are
counted."""

MAX_GRPC_SMALL_READS: Final = 256
"""Messages of all other gRPC calls that are read at once: names and numbers, which come with the call itself. They
have places of their own, so that a balancer is told that a node lives however many tensors are on their way."""

MAX_GRPC_READS_PER_CALLER: Final = 16
"""Messages of one caller (its key, or its connection if it has none) that are read at once: one that opens calls and
sends nothing holds so many places, and others have the rest."""

GRPC_MESSAGE_TIMEOUT_S: Final = 60.0
"""How long the message of a gRPC call may take to arrive: at its full size a megabyte per second."""

GRPC_SMALL_MESSAGE_TIMEOUT_S: Final = 5.0
"""How long a message without tensors or files may take: it fits into a packet or two."""

MAX_GRPC_STREAMS: Final = 256
"""gRPC streams of inferences at once; a client needs one, and each may be sending a large message."""

MAX_GRPC_STREAMS_PER_CALLER: Final = MAX_GRPC_STREAMS // 4
"""Of those, how many one API key may have open, and all programs of this machine without a key together; as many
watches of the node's health: one caller does not lock out the others."""

GRPC_STREAM_IDLE_S: Final = 300.0
"""A gRPC stream on which nothing runs and no request comes is ended after this: a person who talks to a model through
it has left; a client opens another."""

MAX_GRPC_STREAM_REQUESTS: Final = 64
"""Requests of one gRPC stream that are worked on at once; further ones are not read until one is answered."""

GRPC_KEEPALIVE_S: Final = 75.0
"""A gRPC connection that is silent for as long is asked whether it lives, as an idle HTTP one is closed."""

GRPC_KEEPALIVE_TIMEOUT_S: Final = 20.0
"""How long such a connection has to answer before it is closed: gRPC's own default."""

GRPC_IDLE_S: Final = 600.0
"""A gRPC connection without calls is closed after this; a client opens another with its next call."""

MIN_GRPC_PING_INTERVAL_S: Final = 5.0
"""A client that pings more often without calls is sent away: phones ping every half a minute, at most."""

HEALTH_WATCH_INTERVAL_S: Final = 1.0
"""How often the state is looked at for who watches it (grpc.health.v1): a balancer wants to know within seconds."""

MAX_SHARED_MEMORY_REGIONS: Final = 1024
"""Regions of shared memory that clients have registered: each holds an open file; load generators use a few per
model."""

MAX_SHARED_MEMORY_OFFSET: Final = 2**62
"""Bytes within a region: beyond any memory, and below what a file offset of 64 bits can say."""

MAX_SHARED_MEMORY_NAME_LENGTH: Final = 255
"""Characters of a region's name and of its key: NAME_MAX of Linux."""

# Callers of the HTTP gateway

MAX_KEY_LENGTH: Final = 256
"""Characters of an API key in a header: ours have 74; a longer one is wrong without being looked at."""

MAX_KEY_FAILURES: Final = 10
"""Calls with a wrong key that one source makes at once: a person who tries what is in the clipboard."""

KEY_FAILURE_REFILL_S: Final = 6.0
"""Seconds until one more wrong key is looked at: ten a minute. No rate finds 256 bits; this keeps
the guessing cheap for the gateway and short in its log."""

MAX_KEY_LOG_LINES: Final = 3
"""Log lines about callers without a valid key, per address within `KEY_LOG_WINDOW_S`: enough to see who
it is and what is wrong."""

KEY_LOG_WINDOW_S: Final = 3600.0
"""A health check that lacks a key costs `MAX_KEY_LOG_LINES` lines of log an hour, not one a second."""

MAX_THROTTLED_SOURCES: Final = 4096
"""Addresses (IPv6: networks of /64) whose wrong keys are counted each; all others share one count."""

MAX_API_KEYS: Final = 1024
"""API keys of a mesh that are valid: one for each device and program of a large household or team."""

MAX_API_KEY_ENTRIES: Final = 2 * MAX_API_KEYS
"""API keys that a mesh remembers, expired and revoked ones included: half of what the desired state
holds (`MAX_MODELS` keys), so that deployments keep the other half. A revoked key without an expiry is
never forgotten, or a node that was away could bring it back."""

API_KEY_FORGET_S: Final = 30 * 86_400
"""How long after its expiry a key's entry may make room for a new one. An expired key opens nothing,
revoked or not, so nothing is lost; the month is for clocks that are wrong."""

MAX_KEY_TTL_S: Final = 10 * 365 * 86_400
"""Life of an API key that expires: ten years; for longer, let it not expire."""

MAX_KEY_RATE_REQUESTS: Final = 1_000_000
"""Requests per second, minute, hour or day that a key's limit may allow: more than a gateway answers in
half a minute."""

MAX_KEY_CONCURRENCY: Final = MAX_REQUESTS_IN_FLIGHT
"""Requests at once that a key's limit may allow: as many as a gateway works on; more would be no limit."""

MAX_KEY_SHARE: Final = 100
"""What a key may have of an overloaded gateway beside 1 of another: with more, the others have next to nothing."""

MAX_LIMITED_KEYS: Final = MAX_API_KEY_ENTRIES
"""Keys with a limit whose requests are counted; beyond it, those that rest are dropped from the count."""

CORS_PREFLIGHT_AGE_S: Final = 600
"""Seconds for which a browser may remember that pages of an origin may ask: Chromium takes two hours at most,
and an owner who closes the gateway again waits ten minutes."""

MAX_CORS_ORIGINS: Final = 64
"""Origins whose pages may use a gateway: as many as names that it may be asked under."""

MAX_IDEMPOTENCY_KEY_LENGTH: Final = 255
"""Characters of an `Idempotency-Key`: a UUID has 36; Stripe's limit, which clients know."""

IDEMPOTENCY_TTL_S: Final = 24 * 3600.0
"""Seconds for which an answer is kept for requests with the same `Idempotency-Key`: a client that has not
repeated itself after a day has given up."""

MAX_IDEMPOTENCY_KEYS: Final = 16_384
"""Answers that are kept for requests with an `Idempotency-Key`; the oldest of the caller with the most goes first."""

MAX_IDEMPOTENT_RUNS: Final = MAX_REQUESTS_IN_FLIGHT
"""Requests with an `Idempotency-Key` that run at once, those whose clients hung up included: clients that send a
key with everything must not get less of a gateway than others."""

MAX_IDEMPOTENT_RUNS_PER_CALLER: Final = MAX_IDEMPOTENT_RUNS // 4
"""Of those, how many one API key may have running at a gateway, or one gateway at the home of its keys: who sends
requests and hangs up leaves room for others."""

MAX_IDEMPOTENT_ANSWER_BYTES: Final = 4 * MIB
"""The largest answer that is kept for a repetition; one request cannot take the room of all others."""

MAX_SEALED_BYTES: Final = MAX_IDEMPOTENT_ANSWER_BYTES + MAX_HEADER_BYTES
"""The largest such answer as it is kept: its body, with room for its headers and the seal."""

MAX_IDEMPOTENT_BYTES: Final = 64 * MIB
"""All answers that are kept for repetitions, together: less than what one link may hold."""

MAX_KEPT_HEADERS: Final = 32
"""Headers of an answer that is kept for repetitions and crosses a link: ours have ten at most."""

LOAD_PROBE_TIMEOUT_S: Final = 1.0
"""A probe of a replica's load is given up then: its answer would be old itself."""

MAX_LIFE_SIGN_S: Final = 60.0
"""The longest pause between signs of life that a peer may ask for: it would find out a stalled stream no sooner."""

ONCE_HOME_TIMEOUT_S: Final = 5.0
"""Seconds for the home of an `Idempotency-Key` to hear what a request was answered; its caller waits meanwhile,
and has its answer at this gateway in any case."""

MAX_CACHE_CONTROL_LENGTH: Final = 256
"""Characters of a request's `Cache-Control` that are read: all directives that mean something have sixty."""

FORWARD_TIMEOUT_S: Final = 120.0
"""Seconds for a call that another node answers for this gateway: as long as a client gives a gateway for
the longest of them, a deployment (`CLIENT_PUBLISH_TIMEOUT_S`)."""

LOAD_WAIT_S: Final = 100.0
"""Seconds that a request to load a model waits until it is ready: less than the answer to a passed-on call
may take (`FORWARD_TIMEOUT_S`), so that the caller hears why."""

UNLOAD_WAIT_S: Final = 10.0
"""Seconds that a request to unload waits until no replica serves: a replica goes a second after it was told."""

LOAD_POLL_S: Final = 0.05
"""How often a request to load looks how far it is: small models load in as long."""

MAX_URL_LENGTH: Final = 2048
"""Characters of a URL that a caller names: what browsers and proxies take."""

MODEL_DOWNLOAD_TIMEOUT_S: Final = 100.0
"""Seconds that a model may take to come from a URL that a caller named: as long as `LOAD_WAIT_S`; what is larger
is uploaded, or published from a node that has it."""

MAX_MODEL_REDIRECTS: Final = 5
"""Redirects of a URL from which a model is registered: release pages need two or three."""

STATISTICS_TIMEOUT_S: Final = 2.0
"""Seconds that a node has to say what its models have done: load generators ask around each of their
windows of seconds, and a node that is slower counts with what it said last."""

MAX_STATISTICS_ASKED: Final = 64
"""Nodes that are asked for their statistics at once: a mesh of a thousand is asked in some tens of round trips."""

MAX_STATISTICS_VERSIONS: Final = 4096
"""Versions of which one answer tells: more than a node can serve, and some MiB at most."""

MAX_FORWARD_DIALS: Final = 2
"""Nodes without a link that a gateway dials in order to pass a call on: each may cost seconds of the
caller's time, and a node that may change the mesh is mostly linked."""

MAX_NODES_NAMED: Final = 8
"""Nodes that a sentence names: enough to find one of them."""

MAX_FORWARDED_CALLS: Final = 32
"""Calls that a node answers for other gateways at once: changes are rare, and each may hold a piece of
an upload (`UPLOAD_PIECE_BYTES`) in memory, 256 MiB in all."""

MAX_FORWARDED_CALLS_PER_PEER: Final = MAX_FORWARDED_CALLS // 4
"""The same for one asking node: however much it asks, three others find room."""

MAX_FORWARDED_ANSWER_BYTES: Final = 4 * MIB
"""An answer that another node gives for this gateway: the longest describes a mesh of `MAX_MEMBERS`
nodes."""

MAX_FORWARDED_HEADER_LENGTH: Final = 256
"""Characters of a header of such an answer; ours have some dozen."""

MAX_REMEMBERED_UPLOADS: Final = 256
"""Uploads of which a gateway remembers at which node they are: far more than all nodes that may change
a mesh of some dozen take at once (`MAX_UPLOADS`). The oldest is forgotten; it goes on at no node then,
and begins again."""

MAX_UPLOADS: Final = 8
"""Uploads at once to one node: some people's and a build server's."""

MAX_UPLOADS_PER_KEY: Final = MAX_UPLOADS // 2
"""Uploads at once of one caller: however many it begins, others have as many places left."""

UPLOAD_ROOM_BYTES: Final = 64 * MIB
"""Room on the disk that an upload keeps for bytes that are still to come: eight pieces. What has not
arrived takes no more of it, so that nobody has the disk to themselves by announcing a large file."""

UPLOAD_PIECE_BYTES: Final = 8 * MIB
"""A piece of an uploaded file: in memory while it arrives; at 1 Mbit/s a minute of work to repeat."""

UPLOAD_IDLE_S: Final = 3600.0
"""An upload without a piece for so long is forgotten: long enough to carry a laptop home."""

UPLOAD_SWEEP_S: Final = 60.0
"""How often forgotten uploads are looked for."""

UPLOAD_RESERVE_BYTES: Final = 512 * MIB
"""Room on the disk that uploads leave alone: for the node's own state and the system's."""

MAX_UPLOAD_DEPTH: Final = 16
"""Folders in an uploaded file's path: models have two or three."""

MAX_TLS_FILE_BYTES: Final = MIB
"""A certificate with its chain, or a key, in PEM: a few kilobytes."""

TLS_HANDSHAKE_TIMEOUT_S: Final = 10.0
"""Seconds for a client's TLS handshake: several round trips by satellite, and no slow loris."""

TLS_EXPIRY_WARNING_S: Final = 14 * 86_400.0
"""How long before a certificate's end its owner is warned: what renews by itself does so 30 days before,
so by then it has failed for two weeks, and two are left to mend it."""

TLS_EXPIRY_REPEAT_S: Final = 86_400.0
"""How often that is said again: daily, so that a log of one day shows it."""

TLS_POLL_S: Final = 60.0
"""How often the certificate's files are looked at: renewals come weeks before the old one ends."""

# URLs that callers name

MAX_OUTBOUND_URL_LENGTH: Final = 2048
"""Characters of a URL that a caller names, for a webhook or as a model's source: what browsers take, too."""

MAX_OUTBOUND_NETWORKS: Final = 64
"""Networks that an owner allows such URLs to lead to besides public addresses."""


# Jobs

JOB_COPIES: Final = 2
"""Live nodes that keep a job at any time: it outlives any one of them, and the copies heal after each loss."""

MAX_JOBS: Final = 10_000
"""Jobs that a node keeps, finished ones included: some seconds to look through at the start, 40 MiB of memory."""

MAX_JOBS_PER_CALLER: Final = MAX_JOBS // 4
"""The same for one API key (or all programs without one): three others find room."""

MAX_JOBS_BYTES: Final = 4 * 1024 * MIB
"""Requests and results that a node keeps on its disk for jobs; more are refused, and go to another node."""

MAX_JOB_RESULT_BYTES: Final = MAX_BODY_BYTES
"""A job's result: as much as a request may have, and one part of a link."""

MAX_JOBS_RUNNING: Final = 8
"""Jobs that a node runs at once: enough for batches, few enough to leave room to callers who wait. Each may
hold a request and a result in memory."""

JOB_RESULT_S: Final = 86_400
"""Seconds that a finished job and its result are kept: a client that was away over night still finds them."""

MAX_JOB_AGE_S: Final = 86_400
"""Seconds until a job that has not ended fails: what waits for longer is not waited for any more."""

JOB_PATIENCE_S: Final = 3600.0
"""Seconds that a job waits for a replica of its model to be there or to have room, from when it was accepted."""

JOB_UNKNOWN_S: Final = 10.0
"""Seconds that a job waits for its model to be known: a node that has just started has not heard of all."""

JOB_RETRY_FIRST_S: Final = 0.5
"""Pause before a job whose model is busy or away asks again; it doubles each time."""

JOB_RETRY_MAX_S: Final = 15.0
"""The longest such pause."""

JOB_TIMEOUT_S: Final = 3600.0
"""Seconds that the model has for a job whose request names no time of its own: nobody waits with a connection."""

JOB_ACCEPT_TIMEOUT_S: Final = 5.0
"""Seconds for a second live node to have a job on its disk before its caller is told that it was not accepted."""

JOB_ASK_TIMEOUT_S: Final = 3.0
"""Seconds that another node has to say what it knows of a job."""

JOB_SEND_TIMEOUT_S: Final = 60.0
"""Seconds to hand a copy of a job, 64 MiB at most, to another node."""

JOB_UNABLE_S: Final = 5.0
"""How long a node that did not take a copy is passed over: by then a restarted one is back."""

MAX_JOB_PASSED: Final = 16
"""Nodes that may give a job back because they cannot run it, before it fails: by then it is the job's fault."""

JOB_REVIEW_S: Final = 1.0
"""How often a node looks whether what it keeps has expired, or is to be sent, run or told again."""

JOB_PROGRESS_S: Final = 0.5
"""How often a change of progress is written down and told to the other copy."""

JOB_EVENTS_POLL_S: Final = 0.25
"""How often a gateway asks for a job's state while a client follows its events."""

JOB_EVENTS_ELSEWHERE_POLL_S: Final = 1.0
"""The same where an operator's node is asked for the job, because this one's role does not let it see it: each
question takes one of the places for passed-on calls there (`MAX_FORWARDED_CALLS_PER_PEER`) for some milliseconds."""

JOB_HEARTBEAT_S: Final = 15.0
"""How often such a stream says that it lives: proxies close what is silent for a minute or less."""

JOB_WAITING_STREAMS: Final = 64
"""Copies of jobs that a node sends at once: each holds a body in memory."""

MAX_JOB_WATCHERS: Final = 256
"""Clients that follow jobs' events at one gateway; each costs a question per `JOB_EVENTS_POLL_S`."""

MAX_JOB_WATCHERS_PER_CALLER: Final = MAX_JOB_WATCHERS // 4
"""Of those, how many come with one API key: no program keeps the others from following theirs."""

MAX_JOBS_LISTED: Final = 1000
"""Jobs on one page of a list."""

MAX_JOB_NODES_ASKED: Final = 64
"""Nodes that are asked for one job that none of its first holders knows, or at once for a list."""

JOB_FIRST_ASKED: Final = 3
"""Nodes asked for a job first: those that keep it, and one that may be about to."""

MAX_JOB_HEADERS_BYTES: Final = 8 * KIB
"""Headers that are kept of a job's call, or of its answer."""

MAX_WEBHOOK_SECRET_LENGTH: Final = 256
"""Characters of the secret that signs webhooks; 32 random bytes have 44."""

WEBHOOK_TIMEOUT_S: Final = 15.0
"""Seconds that a webhook's receiver has to answer, as the Standard Webhooks' guide recommends."""

MAX_WEBHOOK_ANSWER_BYTES: Final = 64 * KIB
"""What is read of its answer: only the status counts."""

MAX_JOB_FIELD_LENGTH: Final = 512
"""Characters of a job's names (of its model, its key, the node that took it) as another node tells them."""

MAX_WEBHOOKS_RUNNING: Final = 16
"""Webhooks that a node sends at once: a slow receiver holds up few others."""


# Links

MAX_LINKS_UNAUTHENTICATED: Final = 64
"""Connections that have not finished their hello; each may hold one handshake of memory."""

TWIN_ANSWER_S: Final = 1.0
"""How long a node that says hello with another boot waits while its former run is asked for a sign of
life: most round trips several times over, and within the time of a hello."""

MAX_HANDSHAKES_PER_SOURCE: Final = 256
"""Connections that one source (IPv6: one /64) may open at once: all nodes behind one router that come
back after a power cut, each a few times."""

HANDSHAKE_REFILL_S: Final = 0.1
"""Seconds until one more of its connections is taken: ten a second take a hundredth of a processor."""

MAX_HANDSHAKE_SOURCES: Final = 4096
"""Sources of connections that are counted each; all others share one count."""

LISTEN_BACKLOG: Final = 128
"""Connections that the kernel completes before they are taken: above what a burst of joins brings."""

CONNECT_TIMEOUT_S: Final = 3.0
"""Seconds for TCP to one address: a SYN and one retransmission; the next address is tried then."""

DIAL_STAGGER_S: Final = 0.3
"""How long one address may take to answer before the next is tried beside it: RFC 8305 has 0.25, and a
round trip to another continent takes that long."""

HANDSHAKE_TIMEOUT_S: Final = 5.0
"""TLS and hello together: several round trips at 600 ms (a satellite), and no slow loris."""

ADDRESS_TIMEOUT_S: Final = CONNECT_TIMEOUT_S + HANDSHAKE_TIMEOUT_S
"""Seconds for one address: TCP, TLS and hello."""

DIAL_TIMEOUT_S: Final = 12.0
"""Seconds for all addresses of a dial; less than membership waits for its outcome."""

MAX_RESOLVED_ADDRESSES: Final = 8
"""Addresses of one name that are tried, the IP versions in turn: four of each."""

LINK_CLOSE_TIMEOUT_S: Final = 1.0
"""A peer that reads nothing would keep a closing connection open for ever."""

REPLACED_LINK_GRACE_S: Final = 30.0
"""Seconds in which a duplicate link may finish what runs on it: the default request deadline."""

MAX_SPARE_LINKS: Final = 2
"""Further links to one peer, each finishing or about to be parted with; more is a peer's mistake."""

MAX_RELAYED_LINKS: Final = 64
"""Pairs of nodes that one node relays between: it holds up to a window (1 MiB) of each, both ways."""

MAX_RELAYED_LINKS_PER_NODE: Final = 16
"""Of these, how many one node may be an end of: a few of them cannot take the relay for themselves."""

RELAY_PAIR_BYTES_PER_S: Final = 32 * MIB
"""What one pair may send through a relay, both ways together: a quarter of a gigabit, more than most
uplinks; requests feel nothing of it, and a large model's files do not fill the relay's network."""

RELAY_BYTES_PER_S: Final = 64 * MIB
"""What all pairs may together: half of a gigabit, so that the relay's own requests have the other half."""

RELAY_BURST_S: Final = 0.25
"""A pair may run ahead of its rate by what it may send in so long: a picture or an answer goes at once."""

RELAY_BEGIN_S: Final = 5.0
"""How long a relay that said that it would keeps the place free: it was one of several that were asked."""

MAX_RELAYS_ASKED: Final = 4
"""Nodes that are asked at once to relay to a peer: the nearest few, so that the best of them is known."""

RELAY_ASK_TIMEOUT_S: Final = 2.0
"""How long their answers may take: a few round trips; a frozen one among them costs no more than that."""

RELAY_ANSWERS_S: Final = 0.25
"""How long after the first that would the others are waited for: a farther one is no better."""

RELAY_AFTER_S: Final = 1.0
"""How long a needed peer is without a link before a relay is looked for, where no dial has failed yet:
three round trips to another continent."""

RELAY_STAGGER_S: Final = 0.25
"""How long one relay that would is waited for before the next one is tried beside it, at least: as between addresses (RFC
8305, section 5)."""

MAX_RELAY_STAGGER_S: Final = 1.0
"""And at most, however far away it is: one that passes nothing on costs a second."""

RELAY_HELLO_S: Final = 1.0
"""A hello through a relay that takes longer than this, and than `RELAY_HELLO_RTTS` round trips, counts as failed, and others
are asked: a busy small device takes half as long. If nobody else is there it may go on for `HANDSHAKE_TIMEOUT_S`."""

RELAY_HELLO_RTTS: Final = 8.0
"""Twice the round trips that TLS and a hello take."""

RELAY_DISTRUST_S: Final = 30.0
"""How long a relay through which a link failed comes last, the first time; it doubles: one that was only restarted, or whose
peer was gone, is soon as good as before, and one that does harm costs requests a second in half a minute at most."""

MAX_RELAY_DISTRUST_S: Final = 900.0
"""The longest: a relay that is always bad is tried four times an hour where there is another."""

MAX_RELAY_FAULTS: Final = 1024
"""Relays and pairs of relay and peer that have failed and are remembered: all relays of a few hundred peers."""

NEW_RELAY_S: Final = 3.0
"""How long a request whose relay was lost waits for the way through another one, if no other replica can be asked:
as long as the other relays may take to answer, and a hello."""

RELAY_RETRY_S: Final = 2.0
"""The first pause after no relay was found; it doubles."""

MAX_RELAY_RETRY_S: Final = 30.0
"""The longest: as for dialling."""

DIRECT_RETRY_S: Final = 15.0
"""After so long the peer of a relayed link is dialled directly again; it doubles."""

MAX_DIRECT_RETRY_S: Final = 600.0
"""The longest pause: a router's rule that somebody just changed is found within ten minutes, and a
dial of a dead address costs a few packets."""

RELAY_REVIEW_S: Final = 10.0
"""How often it is looked whether another relay would be much nearer: estimates take some probes to settle."""

RELAYED_LINK_GRACE_S: Final = 600.0
"""How long what runs on a relayed link may go on when a direct one has taken its place: the relay loses
nothing by it, and a long stream ends where it began."""

RELAY_LOOK_S: Final = 1.0
"""How often a node looks whether a peer needs a relay or a direct link, besides when a link changes."""

MAX_STREAMS_PER_LINK: Final = 1024
"""Streams that a peer may have open at once on one link; more than a gateway's 64 x 16 clients."""

MAX_REFUSED_STREAMS: Final = 10_000
"""Refused opens in a row after which a peer floods: ten times what it may have open at once."""

MAX_META_BYTES: Final = 65_535
"""The message part of a link frame (its length field has 16 bits); state travels in pieces."""

MAX_FRAME_DATA_BYTES: Final = 256 * KIB
"""Data of one link frame: small enough that a large tensor never delays a small one for long."""

MAX_FRAME_BYTES: Final = MAX_META_BYTES + MAX_FRAME_DATA_BYTES
"""What may follow a frame's header, in frames of unknown types too."""

MAX_PART_BYTES: Final = MAX_BODY_BYTES + MIB
"""Data of one part of a stream, either way: a whole HTTP body with room for what a dialect adds."""

MAX_LINK_BUFFERED_BYTES: Final = 4 * MAX_PART_BYTES
"""Data of a peer's parts that are reassembled or wait to be consumed: four of the largest size, which
a small device can still hold."""

MAX_STREAM_QUEUED_BYTES: Final = MAX_PART_BYTES
"""Bytes that wait for credit on one stream: a part of the largest size, so that one always fits."""

MAX_LINK_READY_BYTES: Final = 16 * MIB
"""Frames that are ready while the transport is full: far above what a healthy socket holds."""

MAX_ANSWER_FRAMES: Final = 10_000
"""Frames caused by a peer that sends but does not read; it is cut off there."""

MAX_WINDOW_BYTES: Final = 2**31 - 1
"""Credit that one side may ever hold on one stream (HTTP/2's bound): more is a peer's mistake."""

MAX_WAITING_PARTS: Final = 4096
"""Parts of one answer that wait for a slow reader. Credit bounds their data, this their number: a
token of a language model is one small part, and such an answer has a few thousand."""

MAX_RESET_CODE_LENGTH: Final = 64
"""Characters of a reset's code: codes are single words."""

MAX_RESET_MESSAGE_LENGTH: Final = 1024
"""Characters of a reset's message: a sentence for a person."""

MAX_SENT_MESSAGE_LENGTH: Final = 2000
"""Characters of an error's text that are sent to the node that asked: a screen of text."""

MAX_PEER_MESSAGE_LENGTH: Final = 500
"""Characters of a peer's error message that are kept: it goes to logs and to clients."""

MAX_PEER_TENSOR_RANK: Final = 64
"""Dimensions of a tensor that a peer sends: frameworks stop at 32 or 64."""

MAX_PEER_TIMEOUT_S: Final = 24 * 3600.0
"""The longest time that a peer may ask for; a longer one, or one that is no number, is an attack."""

MAX_EARLY_NOTES: Final = 256
"""Notes kept from links that come up before the node is there; anti-entropy brings what is lost."""

# Logs, traces and metrics

MAX_LOG_KINDS: Final = 256
"""Kinds of repeated log lines that are counted: they come from code, not from the network; more
would be a mistake."""

MAX_LOG_LINES: Final = 5
"""Log lines of one kind within `LOG_WINDOW_S`: enough to see what it is about."""

LOG_WINDOW_S: Final = 60.0
"""A flood costs `MAX_LOG_LINES` lines of log a minute."""

MAX_REQUEST_LOG_LINES: Final = 100
"""Log lines about failed and slow requests of one kind within `LOG_WINDOW_S`: enough to follow a fault
request by request, and a mesh that is overrun writes a few megabytes of log a day."""

SLOW_REQUEST_S: Final = 1.0
"""A request that takes longer is logged at level info: beyond what a person waits for gladly."""

MAX_LOG_MESSAGE_LENGTH: Final = 4096
"""Characters of one message in the log: twice the longest sentence that nodes send each other."""

MAX_LOG_FIELD_LENGTH: Final = 512
"""Characters of one field in a line of the log: ids and names have far fewer."""

MAX_LOG_FIELDS: Final = 32
"""Fields of one line of the log: twice as many as have a name."""

MAX_LOG_EXCEPTION_LENGTH: Final = 16 * 1024
"""Characters of a traceback in the log: some two hundred frames; the middle is left out."""

MAX_LOG_FILE_BYTES: Final = 8 * MIB
"""The log file, before it is put aside and a new one begun: some 40,000 lines."""

MAX_LOG_FILES: Final = 4
"""Log files that were put aside: with the current one 40 MiB, little even for a memory card."""

LOG_RETRY_S: Final = 30.0
"""How long the log file is left alone after it could not be written: a full disk stays full a while."""

MAX_ACCESS_LOG_FILE_BYTES: Final = 64 * MIB
"""The access log, before it is put aside and a new one begun: some 200,000 requests."""

MAX_DECISION_LOG_FILE_BYTES: Final = 32 * MIB
"""The decision log, before it is put aside and a new one begun: of 20 candidates each some 5,000 decisions."""

MAX_ACCESS_LOG_BUFFER_BYTES: Final = 4 * MIB
"""Lines of the access log that wait for the disk; beyond it lines are lost, counted, and a line says so:
requests never wait for a log."""

ACCESS_LOG_FLUSH_S: Final = 0.5
"""How long a line of the access log waits for others before they are written together."""

MAX_ACCESS_LOG_TEXT_LENGTH: Final = 512
"""Characters of a path or user agent in the access log; longer ones are cut."""

MAX_TRACEPARENT_LENGTH: Final = 256
"""A `traceparent` header: version 00 has 55 characters, a later one may add to them."""

MAX_METRIC_PEERS: Final = 256
"""Peers that have a time series of their own; each costs Prometheus some kilobytes."""

# Datagrams

MAX_DATAGRAM_BYTES: Final = 1400
"""A UDP payload with encryption: fits an Ethernet frame less IPv6, UDP and a tunnel's header."""

MAX_FORMER_BOOTS: Final = 8
"""Former boots remembered per peer. An older one could only come from a process that still runs."""

MAX_BAD_DATAGRAMS: Final = 200
"""Datagrams that do not open which one source (IPv6: one /64) may send at once: a mesh behind one
router that restarts sends as many before the records have gone round."""

BAD_DATAGRAM_REFILL_S: Final = 0.02
"""Seconds until one more is looked at: fifty a second cost a thousandth of a processor. Members at their
known address are not kept out by them, whoever sends in their name."""

MAX_DATAGRAM_SOURCES: Final = 4096
"""Sources of such datagrams that are counted each; all others share one count."""

MAX_NAMES: Final = 1024
"""Host names of members whose addresses are remembered for datagrams: a mesh of a thousand, all by name."""

MAX_NAME_LOOKUPS: Final = 8
"""Names that are looked up at a time: each takes a thread while a name server is silent."""

NAME_LIFETIME_S: Final = 300.0
"""How long a looked-up name is good: dynamic DNS of homes changes within minutes."""

PATH_TOKEN_BYTES: Final = 8
"""What proves that a path was answered: beside the seal, enough that nobody guesses it."""

PATH_ANSWER_S: Final = 2.0
"""Seconds for the answer to a path's challenge: a round trip by satellite, with room. The next challenge
to the same place waits twice as long, and so on."""

MAX_PATH_ANSWER_S: Final = 64.0
"""Longest wait between challenges to a place that never answers."""

PATH_LIFETIME_S: Final = 120.0
"""How long an answered path is used without hearing from there: routers keep a mapping that was answered
for two minutes (RFC 4787, REQ-5), and after it the place may be somebody else's."""

PATH_KEEPALIVE_S: Final = 20.0
"""Behind a router, silence of this length to a linked peer sends it a datagram: the shortest-lived
mappings in use last 30 s, and keepalives are looked for every `PATH_CHECK_S`."""

PATH_CHECK_S: Final = 5.0
"""How often that is looked for; with the one above below 30 s."""

# Membership

MAX_MEMBERS: Final = 8192
"""Members that a node's tables hold, dead ones included: eight times a mesh of a thousand."""

MAX_LABELS: Final = 32
"""Labels of one node: a few for its place and hardware, and a person's own."""

MAX_MEMBER_RECORD_BYTES: Final = 16 * KIB
"""One member's record, admission chain included: three fit a note; 1,000 members cost 16 MiB at most."""

MAX_MEMBER_ADDRESSES: Final = 16
"""Addresses of one member: a few interfaces with IPv4 and IPv6 each, all dialled in order."""

MAX_CAPABILITY_DEPTH: Final = 8
"""Nesting of capabilities: lists of objects, with room; a decoder's stack is not a resource to give away."""

MAX_CAPABILITIES_BYTES: Final = 4 * KIB
"""A node's capabilities in its record: a quarter of it, so that eight accelerators fit with detail."""

MAX_CAPABILITY_TEXT_LENGTH: Final = 200
"""A name or sentence in capabilities: the longest processor names have about sixty characters."""

MAX_CAPABILITY_ITEMS: Final = 32
"""Entries of a list in capabilities: the largest machines have sixteen accelerators."""

MIN_CAPABILITIES_INTERVAL_S: Final = 30.0
"""Between changes of a record's capabilities, pausing apart: each is signed and told to every node."""

MAX_PERSISTED_MEMBERS: Final = 256
"""Records kept on disk to rejoin by: any one that answers knows all the others. In a larger mesh each node
keeps other ones, so that some node knows whoever is still there."""

MAX_LOST_MEMBERS: Final = 64
"""Dead members that the table has forgotten and that are still dialled now and then: any one that answers
knows all of its side of a partition. At one in some 30 s each gets its turn within about half an hour."""

MAX_COORDINATE_S: Final = 10.0
"""Any number of a network coordinate, and any RTT that moves one: a geostationary satellite's RTT is
0.6 s; beyond ten seconds a probe has long failed."""

MAX_RELAYED_PROBES: Final = 256
"""Probes carried out for others at once; beyond that a helper stays silent and another one helps."""

MAX_RECORDS_AWAITED: Final = 4096
"""Records asked for and not yet received: half the largest table, a few dozen bytes each."""

MAX_RECORD_TRIES: Final = 3
"""Peers that are asked for one record: where all of them lack it, it is hardly anywhere yet."""

MAX_LOCAL_HEALTH: Final = 8
"""The worst that a node thinks of itself (Lifeguard's S): a probe then takes nine times as long, 9 s on a
LAN."""

MAX_RECORDS_REQUESTED: Final = 1024
"""NodeIds in one `RecordRequest`: 22 KiB, and at most as many records in answer."""

MAX_ENTRIES_PER_DIGEST: Final = 1000
"""An entry has at most 53 bytes: 53,000 of a note's 65,535."""

MAX_TWINS: Final = 256
"""Nodes whose key was seen to run twice that are remembered: there should be none."""

MAX_TWINS_OUTBID: Final = 4
"""Other processes with this node's key that it outbids, once each: two twins would do so for ever."""

MAX_COORDINATE_LENGTH: Final = 16
"""Numbers of a network coordinate on the wire: eight dimensions, height, adjustment and error, with room."""

MAX_SEEDS: Final = 8
"""Addresses kept to look for the mesh at: those of two or three invites. All are dialled at once."""

# State

MAX_OWNER_VALUE_BYTES: Final = 16 * KIB
"""One value that a node publishes: a capability record or a model's metadata; four fit one note."""

MAX_OWNER_KEYS: Final = 4096
"""Live keys of one owner: one per model that the mesh can hold (`MAX_MODELS`)."""

MAX_OWNER_KEY_LENGTH: Final = 256
"""Characters of a published key: a prefix, a model's name (128) and a version."""

MAX_OWNER_STATE_BYTES: Final = 8 * MIB
"""All keys and values of one owner: 2 KiB for each of `MAX_OWNER_KEYS`. They count only together, so
a receiver gathers all of them before it can check the owner's signature."""

MAX_GATHERED_OWNER_BYTES: Final = 4 * MAX_OWNER_STATE_BYTES
"""Pieces of large states that wait for their last one, from all peers together; the oldest give way."""

MAX_OWNER_VERSION: Final = 2**53
"""Versions and epochs: what JSON and every language represent exactly; no node counts so far."""

MAX_OWNER_DIGESTS_PER_NOTE: Final = 700
"""Marks in one note: 85 bytes each at most."""

MAX_DESIRED_VALUE_BYTES: Final = 48 * KIB
"""One value of the desired state: with its signature and key it fits one note."""

MAX_DESIRED_KEY_LENGTH: Final = 256
"""Characters of a desired key: a prefix and a public model name (128)."""

MAX_ADMISSION_KEYS: Final = 2 * MAX_MEMBERS
"""Nodes whose admissions the desired state has: all members, and as many that are gone. They have room
of their own, so that a mesh that is full of deployments still counts the uses of invites."""

MAX_STATEMENT_KEYS: Final = 4 * MAX_MEMBERS
"""Keys of evictions and roles: one of each for everybody whose admission finds room. They have room of
their own, so that a mesh that is full of deployments and of made-up admissions can still evict."""

MAX_ENTRIES_KEPT: Final = 1000
"""Entries of an evicted author that stay, those that its keys have now first: with 18 bytes each they leave
more than half of a value to the members that stay."""

ENTRY_DIGEST_BYTES: Final = 16
"""Of the hash by which an eviction names an entry. Its author may look for two entries with the same one,
of which it shows the harmless one: of 8 bytes a laptop finds two within hours, of 16 nobody does."""

MAX_STATEMENTS_PER_AUTHOR: Final = 16
"""Statements of one author about one node that are kept, the first by their stamps: roles are changed a
few times, evictions never."""

MAX_ADMISSIONS_TOTAL_BYTES: Final = 8 * MIB
"""All admissions that this node's own may reach: one takes about a kilobyte, and `MAX_MEMBERS` fit.
Peers' are taken up to twice that."""

MAX_STATEMENTS_TOTAL_BYTES: Final = 16 * MIB
"""All evictions and roles that this node's own may reach: one takes a few hundred bytes, and those of a
member that let many in some ten kilobytes. Peers' are taken up to twice that."""

MAX_ADMISSIONS_BYTES_PER_OPERATOR: Final = 2 * MIB
"""Admissions in the desired state that rest on one operator, or on those that it let in: some two
thousand, so that none fills that room alone with nodes that it has made up."""

MAX_ADMISSIONS_BYTES_OF_OPERATORS: Final = 6 * MIB
"""The same of all operators together: the rest is kept for whom admins alone let in, so that an admin
can always state its admission, without which its evictions could not be checked."""

MAX_MEMBERS_PER_OPERATOR: Final = MAX_MEMBERS // 4
"""Members that rest on one operator, and on those that it let in: they are made as easily as keys. An
admin has no such bound: its invites admit a whole mesh, and it could evict everybody anyhow."""

MAX_MEMBERS_OF_OPERATORS: Final = 3 * MAX_MEMBERS // 4
"""The same of all operators together: the rest is kept for whom admins alone let in."""

MAX_KEPT_PER_STATEMENT: Final = 512
"""Those who stay, named by one eviction: with a chain and the entries that stay they fit a value. Further
ones are named by further parts of it; `MAX_STATEMENTS_PER_AUTHOR` parts have room for `MAX_MEMBERS`."""

MAX_EVIDENCE_BYTES: Final = 40 * KIB
"""What shows a revoked node that it is one: fits a handshake beside a chain (`MAX_HELLO_BYTES`)."""

MAX_DESIRED_DIGESTS_PER_NOTE: Final = 60
"""Keys in one note: 1,040 bytes each where every character is one of four bytes."""

MAX_DESIRED_TOTAL_BYTES: Final = 16 * MIB
"""All values that count now, as far as this node's own writes may take them: the whole map is rewritten on each
change and lies in every node's memory. Peers' writes are taken up to twice that."""

MAX_REFUSALS_REMEMBERED: Final = 1024
"""(key, author) pairs whose refusal was told; forgetting one repeats an event."""

MAX_STAMP_COUNTER: Final = 2**32 - 1
"""Stamps within one millisecond. A peer's counter beyond it is no stamp, and ours never gets there."""

MAX_STAMP_WALL_MS: Final = 2**53
"""A stamp's wall clock: what every language represents exactly; the year 287,396."""

MAX_DEPLOYMENT_REPLICAS: Final = 1024
"""Replicas of one deployment; also how many nodes it can be pinned to: one on each
node of a mesh of a thousand."""

MAX_DEPLOYMENT_VERSIONS: Final = 32
"""Versions that one deployment serves side by side: far above a rollout's two or three."""

MAX_SEQUENCE_MOVES: Final = 32
"""Sequences that a node which is emptied gives away at once: a round trip each, and their states in memory."""

SEQUENCE_MOVE_TIMEOUT_S: Final = 5.0
"""How long one of them may take; its requests wait that long at most before it goes on where it was."""

MAX_CONSTRAINTS: Final = 16
"""Regions, and labels, that one deployment asks for."""

MAX_CONSTRAINT_TEXT_LENGTH: Final = 128
"""Characters of one of these words."""

MAX_STANDBY_REPLICAS: Final = 16
"""Replicas of one deployment that are warmed for the case that others fail."""

MAX_STABLE_WINDOW_S: Final = 3600.0
"""The window over which autoscaling averages what is needed: an hour, one look a second, is 3,600 numbers."""

MAX_SCALING_DELAY_S: Final = 3600.0
"""Autoscaling's delays: who wants fewer changes than one an hour sets the number of replicas by hand."""

MAX_IDLE_S: Final = 7 * 86_400.0
"""How long an autoscaled model may be left alone before its last replica goes: a week; else it is not to sleep at all."""

MAX_SCALING_TARGET: Final = 1_000_000.0
"""A target of autoscaling, requests or milliseconds: more than any device does."""

MAX_STEWARD_REASON_LENGTH: Final = 400
"""Characters in which a steward says why it decided so."""

MAX_STEWARD_EPOCH: Final = 2**53
"""How often a deployment's steward may have changed: a liar cannot claim a change that nobody can follow, since of two
words of this epoch that of the better-placed node counts."""

MAX_RELEASE_STEPS: Final = 20
"""Steps of a release."""

MAX_RELEASE_GATES: Final = 16
"""Gates of a release; also values of a header that decide who gets the new version."""

MAX_GATE_NAME_LENGTH: Final = 128
"""Characters of the name of a gate's metric, and of the header that splits requests."""

MAX_RELEASE_REASON_LENGTH: Final = 400
"""Characters of why a release goes on, waits or is undone."""

MAX_RELEASE_URL_LENGTH: Final = 2048
"""Characters of the address whose answers a new version is compared with."""

MAX_KEPT_DECISIONS: Final = 32
"""Decisions about one release that a node can tell again: a few of each of its steps."""

MAX_RELEASES_REMEMBERED: Final = 256
"""Deployments whose release decisions a node can tell again, those of which it heard last: 3 MB with the longest reasons."""

MAX_RELEASE_S: Final = 30 * 86_400.0
"""Seconds that a step of a release may take, or wait for answers, or keep the old version: 30 days."""

MAX_RELEASE_LOOKS: Final = 2**32
"""Times that a release's gates are tried: each takes a fifth more answers than the one before, so that no release sees
a thousand."""

MAX_RELEASE_FEEDBACK_GATES: Final = 8
"""Gates of a release on metrics of people's feedback: a gateway tells of so many (`MAX_EVIDENCE_METRICS`)."""

MAX_EVIDENCE_CLASSES: Final = 7
"""Classes of devices that a gateway tells apart in what it has seen of a release; devices of further ones share one
class. With all figures at their greatest, two versions on seven classes take 14 KB of `MAX_OWNER_VALUE_BYTES`."""

MAX_EVIDENCE_BUCKETS: Final = 64
"""Buckets of run times of one version on one class of devices: four octaves at 4.4 %, or more of them more coarsely."""

MAX_EVIDENCE_METRICS: Final = 8
"""Metrics of people's feedback of which a gateway tells; those with a gate come first."""

MAX_EVIDENCE_COUNT: Final = 2**32 - 1
"""What a gateway counts of a step of a release: 4 bytes; it stops there."""

MAX_EVIDENCE_DEVICE_BYTES: Final = 64
"""Of a class of devices, as evidence names it: longer words end with a digest."""

MAX_CLUSTER_VALUES: Final = 64
"""Values of an attribute of comparisons among which disagreements are looked for; further ones count as one."""

MAX_CLUSTERS: Final = 10
"""Kinds of requests that are shown as those on which two versions disagree: the clearest come first."""

MAX_MEASURED: Final = 1e9
"""Amount of a metric of people's feedback: what is greater is counted as so much, since one absurd number would hide
all others."""

MAX_MIRRORS_IN_FLIGHT: Final = 32
"""Requests of one gateway that run on a new version besides, for comparison, at once; more are not mirrored, and counted."""

MAX_MIRRORED_BYTES: Final = 8 * MIB
"""Bytes of the inputs and the answer of a request that is mirrored: both are copied, and what is larger is not."""

MAX_MIRRORS_BYTES: Final = 64 * MIB
"""Bytes of all requests that are being mirrored, with their answers."""

MIRROR_TIMEOUT_S: Final = 60.0
"""Seconds that a mirrored request has at most, however patient its client was: nobody waits for it."""

COMPARED_AT_ONCE_BYTES: Final = 256 * KIB
"""Bytes of an answer that are compared on the event loop, in well under a millisecond; more are compared in a thread."""

MAX_REFERENCE_ANSWER_BYTES: Final = 8 * MIB
"""Bytes of what the address answers that a new version is compared with."""

MAX_DISAGREEMENTS: Final = 50
"""Disagreements of two versions that a gateway keeps as examples, for each model."""

MAX_DISAGREEMENT_BYTES: Final = 8 * KIB
"""Bytes of JSON of one such example: of larger tensors their beginning is kept."""

MAX_COMPARISONS_KEPT: Final = 4096
"""Comparisons of one release of which a gateway keeps what they were about, without content, to find where disagreements
cluster: enough to see one in a hundred."""

MAX_REFERENCE_WARNINGS: Final = 16
"""Reasons for which answers of one release cannot be compared that a gateway logs, each once."""

MAX_LABELLED_INPUTS_BYTES: Final = 4 * KIB
"""Bytes of the inputs that are remembered with an answer, to be shown where its label disagrees; larger ones are not."""

REMEMBERED_ANSWER_S: Final = 86_400.0
"""Seconds for which feedback about an answer is taken: people judge what they see today."""

MAX_REMEMBERED_ANSWERS: Final = 50_000
"""Answers of models in a release that a gateway remembers for feedback, some 20 MB; older ones are forgotten first."""

MAX_LABELLED_ANSWER_BYTES: Final = 64 * KIB
"""Bytes of an answer that is remembered whole, where people say later what would have been right."""

MAX_LABELLED_ANSWERS_BYTES: Final = 32 * MIB
"""Bytes of all answers that are remembered whole; the oldest are forgotten first."""

MAX_FEEDBACK_METRICS: Final = 16
"""Metrics of one feedback: as many as a release has gates."""

MAX_FEEDBACK_BYTES: Final = 64 * KIB
"""Bytes of the body of a feedback, its label included."""

MAX_FEEDBACK_VALUE: Final = 1e9
"""Amount of a metric of a feedback: sums of squares stay finite."""

MAX_GATEWAYS_ASKED: Final = 64
"""Gateways that are asked whether they gave an answer, or which disagreements they saw; those first that saw a release."""

GATEWAY_ASKED_TIMEOUT_S: Final = 3.0
"""Seconds that another gateway has for that."""

MAX_DEMAND_MODELS: Final = 48
"""Autoscaled models of which a gateway tells how many requests came: with the longest names 7 KB of its load, which
then names half as many replicas where both do not fit."""

MAX_WAITING_MODELS: Final = 64
"""Models at zero for which a gateway tells that requests wait: those that have waited longest."""

MAX_FAILING_TOLD: Final = 32
"""Versions that a node tells to keep failing on it: more at once is the node's own fault, and eight waste enough."""

MAX_FAILING_WHY_LENGTH: Final = 160
"""Characters of each one's reason: all of them fit `MAX_OWNER_VALUE_BYTES` beside the files that are told."""

MAX_FILES_TOLD: Final = 512
"""Versions of which a node tells that their files are on its disk, 8 bytes and 2 for each."""

MAX_ENVIRONMENT_VARIABLES: Final = 64
"""Variables that one deployment sets for its models' code."""

MAX_ENVIRONMENT_BYTES: Final = 8 * KIB
"""All of these together: the deployment's manifests are to fit beside them."""

MAX_ORIGIN_TEXT_LENGTH: Final = 256
"""Characters of one word about how a revision of a deployment came about, such as who asked for it."""

MAX_FORMER_DEPLOYMENTS: Final = 255
"""Former revisions of one deployment that are kept: with a change on every working day, those of a year. Where two
nodes differ in a deployment they send each other all of them."""

MAX_FORMER_REVISIONS_BYTES: Final = 8 * MIB
"""Former revisions of all keys of the desired state together, the youngest first: some four thousand of a usual
deployment. The oldest give way; no write is refused for them."""

MAX_REMOVED_DEPLOYMENTS: Final = 256
"""Names whose deployment was deleted and can be restored, the last deleted first; the oldest are forgotten."""

MAX_DEPLOYMENT_FILE_BYTES: Final = MIB
"""A file of deployments: some thousand of them."""

MAX_DEPLOYMENTS_PER_FILE: Final = 256
"""Deployments of one file: a person still finds theirs."""

MAX_YAML_NODES: Final = 100_000
"""Values of a YAML document, those counted again that an alias repeats: a few lines of aliases would otherwise
become billions."""

MAX_YAML_NUMBER_LENGTH: Final = 40
"""Characters of a whole number in YAML: Python refuses to read thousands, and no key takes more than 19."""

MAX_YAML_DEPTH: Final = 32
"""How deep values of a YAML document are nested; a deployment needs three."""

# Trust

MAX_INVITE_TTL_S: Final = 30 * 24 * 3600
"""An invite is a key to the mesh: long enough to post a device, too short to be forgotten for years."""

MAX_INVITE_USES: Final = 4096
"""Devices that one invite may be limited to; for more, do not limit it."""

MAX_EVICTION_REASON_LENGTH: Final = 200
"""Characters of why a node was evicted: a sentence for its owner's log."""

MAX_INVITE_LENGTH: Final = 4096
"""Characters of a pasted invite: one with four host names of the greatest length has 1,600."""

MAX_INVITE_SEEDS: Final = 4
"""Addresses in an invite: two of each IP family; the line must stay short enough to copy."""

MAX_CHAIN_RECORDS: Final = 32
"""Fifteen invitations in a row, each by the newest member; at most 64 signatures (3 ms) to check."""

MAX_CHAIN_BYTES: Final = 16 * KIB
"""32 records of some 300 bytes, with room for fields to come; fits one note of a link."""

MAX_HELLO_BYTES: Final = 64 * KIB
"""All frames that one side takes in a handshake: two chains of the greatest length, with room."""

MAX_REFUSAL_LENGTH: Final = 400
"""Characters of a peer's refusal that are shown: two sentences."""

MAX_CLOCK_SKEW_S: Final = 300
"""How much two honest clocks may differ (Kerberos allows the same): small devices set theirs late."""

MAX_RECORD_WALL_S: Final = 253_402_300_799
"""A time in a trust record: the end of the year 9999, the last that a date can print."""

JOIN_REQUEST_TTL_S: Final = 300.0
"""How long a device that asks to join waits for a person to type its code: a walk through a house. The
longer, the more tries an attacker has at one code (`meshnode.trust.pairing`)."""

MAX_JOIN_REQUESTS: Final = 16
"""Devices that wait for an approval at once; each is a TLS connection of some 100 KiB."""

MAX_JOIN_REQUESTS_PER_SOURCE: Final = 4
"""Likewise from one address: several devices behind one router, but not all places."""

JOIN_REQUEST_BURST: Final = 16
"""Requests to join that are answered at once, from everywhere together, before they have to wait."""

JOIN_REQUEST_REFILL_S: Final = 20.0
"""Then one more each so many seconds: 31 in the five minutes of a code, and each is one try in a million
at it. A group that sets up more devices at a time uses invites."""

JOIN_REQUEST_SOURCE_BURST: Final = 8
"""Likewise from one address, so that a single one cannot use up what there is for all."""

JOIN_REQUEST_SOURCE_REFILL_S: Final = 60.0
"""Then one more each so many seconds."""

MAX_JOIN_SOURCES: Final = 256
"""Addresses whose requests are counted apart; those beyond share one count."""

MAX_WRONG_CODES: Final = 5
"""Codes without a device that may be typed before one has to wait: typing errors, not guesses."""

WRONG_CODE_REFILL_S: Final = 30.0
"""After that one more each so many seconds."""

JOIN_REMINDER_S: Final = 10.0
"""How often a waiting device hears that it is waited for still: often enough for a router that forgets
silent connections after half a minute."""

JOIN_SILENCE_S: Final = 35.0
"""A device that has heard no such thing for three times as long, and a little, takes the member for gone."""

# Models

MAX_MODELS: Final = 4096
"""Models that a mesh's tables hold; each costs a few hundred bytes on every node."""

MAX_BAKED_INDEX_BYTES: Final = 64 * MIB
"""What a baked folder says of its models: 16 KiB for each of `MAX_MODELS`, several times what one takes."""

MAX_COMPILED_GRAPH_BYTES: Final = 1536 * MIB
"""Files of an ONNX model whose optimised graph is kept: it is one file with all weights in it, and such a file may
have 2 GiB (protobuf)."""

MAX_MODEL_FILE_BYTES: Final = 64 * 1024 * MIB
"""One file of a model: more than any device of the mesh can hold in memory."""

MAX_MODEL_FILES: Final = 4096
"""Files of a version's folder: TensorRT-LLM's largest engines have a few hundred."""

MAX_MODEL_CONFIG_BYTES: Final = MIB
"""Text of one `config.pbtxt`: the longest ones known (ensembles) have a few tens of kilobytes."""

MAX_BATCH_ROWS: Final = 1 << 20
"""`max_batch_size` of a model: a million rows of a few numbers are tens of megabytes, a request's size."""

MAX_MODEL_TENSORS: Final = 1024
"""Inputs, outputs and states of a model: a language model's key-value caches have some hundred."""

MAX_EXECUTION_ENTRIES: Final = 256
"""Entries of one list in a model's settings (parameters, warm-ups, routes): they travel with its manifest."""

MAX_ENSEMBLE_STEPS: Final = 128
"""Models that one ensemble calls: published ones have five."""

MAX_PARAMETER_LENGTH: Final = 4096
"""Characters of a parameter's name or value in `config.pbtxt`: a path, or a short JSON text."""

MAX_PRIORITY_LEVELS: Final = 1024
"""Priority levels of one model's queue: each has a queue of its own."""

MAX_METADATA_BYTES: Final = 64 * KIB
"""A `metadata.json`: a few numbers and a note."""

MAX_UNPACKED_RATIO: Final = 200
"""Unpacked bytes for each byte of an archive: weights shrink by half at most, texts to a tenth; a zip bomb
claims thousands."""

MIN_UNPACKED_BYTES: Final = 64 * MIB
"""An archive may unpack to this much whatever its own size: small ones are mostly text, which shrinks well."""

MAX_SOURCE_FILES: Final = 65_536
"""Files of a bucket or web server that are looked at for one repository: sixteen versions of each of `MAX_MODELS`."""

MODELS_POLL_S: Final = 2.0
"""How often a node's own folder of models is looked at: a look costs a stat of each file, and who puts a new
version there expects it to serve within a few seconds."""

MAX_MODELS_POLL_S: Final = 86_400.0
"""At least once a day; 0 for never."""

SOURCE_POLL_S: Final = 60.0
"""A bucket or web server is asked at most this often whether its models have changed: listing costs money."""

MAX_LISTED_PAGES: Final = 1000
"""Folders of a web server that are listed for one repository."""

MAX_PATH_COMPONENT_LENGTH: Final = 255
"""One component of a model file's path: what common file systems allow."""

BLOB_CHUNK_BYTES: Final = MIB
"""A model file travels in chunks of this size, so that a broken transfer resumes near its end."""

BLOB_IDLE_TIMEOUT_S: Final = 10.0
"""Seconds without a chunk after which a transfer is given up and resumed from another holder."""

MAX_BLOBS_SENT: Final = 64
"""Files and chunks that are sent at once, each with up to three chunks in memory; more wait their turn."""

MAX_CHUNKS_ASKED: Final = 3
"""Chunks that are asked of one node at once: one on its way, one being read there, one asked for."""

MAX_CHUNKS_UNDER_WAY: Final = 24
"""Chunks that a node asks for at once, of all nodes together: 24 MiB in memory at the most."""

MAX_FILE_SOURCES: Final = 16
"""Nodes that a version's files are fetched from at once: enough for any link, and each costs a watch."""

MAX_FILES_ASKED: Final = 1024
"""Files whose state is asked of a node at once: 32 KiB of hashes."""

FILES_WAIT_S: Final = 2.0
"""Seconds that a node waits for news of its files before it answers that there are none: half of what a
slow link's answer may take, and one message each two seconds where nothing happens."""

FETCH_STALL_S: Final = 20.0
"""Seconds without a single chunk after which a fetch is given up, to be tried again from what is here:
twice the silence after which a single node is given up."""

MAX_VERSION: Final = 10**18 - 1
"""The highest number of a model's version: eighteen digits, as a folder's name and a path of a gateway take."""

MAX_NOTE_LENGTH: Final = 500
"""Characters of a note about a published version: it travels with each of its descriptions."""

MAX_PROVENANCE_METRICS: Final = 16
"""Metrics of a published version: accuracy, loss and a few of their kind."""

MAX_FETCHES_TOLD: Final = 16
"""Fetches that a node tells its mesh of; more are mostly of one deployment, and its first ones say enough."""

DISK_RESERVE_BYTES: Final = 1024 * MIB
"""Room on the disk that model files leave free: for the node's own state, logs and the system."""

DISK_RESERVE_SHARE: Final = 0.05
"""The same on small disks: no more than this share of them."""

UNUSED_BLOBS_SHARE: Final = 0.1
"""Of the disk that files which nobody wants may take, where the owner has set no `max_disk`: enough to
roll back to what was served before, and little enough not to be noticed."""

MAX_WAITING_RUNS: Final = 256
"""Requests that may wait per version: at 10 ms each, 2.5 s of work; more would wait past any
patience, and another node can take them."""

MAX_QUEUE_SIZE: Final = 16_384
"""Requests that may wait where a model's configuration asks for a longer queue: some 10 MB without their
tensors."""

MAX_ADAPTIVE_ROWS: Final = 64
"""Rows that are joined where nothing is configured: processors gain nothing by more, and the rows of one
batch wait for one another."""

MAX_ADAPTIVE_ROW_BYTES: Final = 4 * MIB
"""A row that is joined where nothing is configured: 64 of them take 256 MB once more, and larger ones keep a
processor busy alone."""

MAX_COUNTED_BATCH_SIZES: Final = 256
"""Batch sizes whose executions are counted apart, per version; others count with the next power of two."""

MAX_SEQUENCES: Final = 4096
"""Sequences of one version that run or wait for a slot: each may hold a state in memory."""

STREAM_PARTS_AHEAD: Final = 16
"""Parts of a streamed answer that are made before their reader has taken them: a slow reader slows the
model, and a fast one never waits."""

RESPONSE_CACHE_BYTES: Final = 64 * 1024**2
"""Answers kept for versions that ask for a response cache: a few hundred thousand of small models, a
hundred images; a twentieth of what a small device has to spare."""

MIN_RESPONSE_CACHE_BYTES: Final = 1024**2
"""Less would keep hardly an answer, and look like a cache."""

MAX_RESPONSE_CACHE_ENTRIES: Final = 100_000
"""Answers kept, however small: each costs some 500 bytes besides its tensors, so 50 MB at most."""

RESPONSE_CACHE_TIME_S: Final = 3600.0
"""An hour: an answer is the same for ever as long as the files are, but one that nobody asked for in that
time holds memory that others could use."""

MAX_CACHED_SHARE: Final = 0.25
"""Of the response cache's bytes that a single answer may take: one larger would drop all others."""

MAX_PROFILE_SIZES: Final = 16
"""Batch sizes in a replica's profile: powers of two up to 32,768 rows."""

MAX_PROFILE_BATCH: Final = 1024
"""Rows measured at most where a version states no limit: larger batches bring no model more throughput."""

MAX_SHOWN_LENGTH: Final = 120
"""Characters of a device's or a batching's description in a replica's advert: a line for people."""

MAX_WARM_UP_RUNS: Final = 10_000
"""Requests of all configured warm-ups of one version; more is a mistake in its configuration."""

MAX_INSTANCES: Final = 64
"""Instances of one version on one node: each may hold its weights again."""

MAX_TASKS: Final = 8
"""Tasks that a model is offered for: there are three."""

MAX_TASK_TEXT_LENGTH: Final = 4096
"""Characters of one task's mapping: names and a chat template."""

INLINE_TICK_S: Final = 0.05
"""A run on the event loop that two looks this far apart find still running is ended and made in a thread:
a hundred times what is expected of such a run, and hardly felt by a peer's failure detector."""

RUN_END_GRACE_S: Final = 2.0
"""Seconds after its last caller is gone in which a run in this process is to end; longer than one operation
of a large model. Past that its place counts as lost, until it ends after all."""

UNLOAD_DRAIN_S: Final = 60.0
"""Seconds in which a version that is unloaded ends its requests before its runs are ended: the default
deadline of a request, and room."""

UNLOAD_PATIENCE_S: Final = 5.0
"""Seconds that the look at a folder waits for versions that are unloaded; then it goes on, and so do they."""

CLOSE_DRAIN_S: Final = 5.0
"""The same when the whole node stops: service managers kill it after 10 to 90 seconds."""

SHRINK_FROM_S: Final = 0.01
"""Runs that are shorter cannot have taken much memory: 10 ms fill some 50 MB at most."""

SHRINK_EVERY_S: Final = 2.0
"""Memory of unusually large runs is given back this often at most: taking it again costs about 0.2 s per GB."""

MAX_ONNX_GRAPH_DEPTH: Final = 32
"""Graphs within graphs of an ONNX file that are looked through: branches and loops; people write three."""

MAX_ONNX_NODE_BYTES: Final = 4096
"""A name in an ONNX file that is looked through: exporters write paths of modules, some hundred characters."""

MAX_VARIANTS: Final = 8
"""Variants of one version in a deployment: fp32, fp16, int8 and a few more; each is a manifest of its own."""

PRESSURE_SHARE: Final = 0.08
"""Share of free memory below which batches shrink: the system begins to swap or to kill soon after."""

PRESSURE_RELIEF_SHARE: Final = 0.12
"""Share of free memory above which they grow again; apart from `PRESSURE_SHARE`, so that it does not flap."""

PRESSURE_STEADY_S: Final = 30.0
"""Seconds of relief before each step back: memory that a batch freed is taken again by the next."""

MAX_PRESSURE: Final = 6
"""Steps of memory pressure; each halves the rows of a batch, so that the last allows a 64th."""

MAX_IMAGE_PIXELS: Final = 50_000_000
"""A decoded picture: the largest phone cameras' ordinary mode; 150 MB as RGB. A few kilobytes of PNG
can claim far more (a decompression bomb)."""

SMALL_PICTURE_PIXELS: Final = 2_000_000
"""A picture up to this size is decoded in some ten milliseconds, and never waits for a larger one: those take seconds
where they are made to."""

MAX_WAITING_PICTURES: Final = 32
"""Pictures of each kind, small and large, that wait at a gateway to be decoded; at a second and a half for the slowest
that are taken, some of 32 would come too late for their callers already."""

MAX_CALLER_WAITING_PICTURES: Final = 8
"""Of these, one caller's (an API key's; all without a key are one), so that no caller fills the queue alone."""

MAX_RUNTIME_MESSAGE_LENGTH: Final = 300
"""Characters of a runtime's message that a person reads in a table or an answer: a few lines."""

ENSEMBLE_LOOK_S: Final = 0.5
"""Seconds between two looks at whether all models of an ensemble are there: a lookup in a table for each, and
gossip takes as long."""

MAX_ENSEMBLE_REQUESTS: Final = 256
"""Requests of one ensemble at once on a node: each holds its tensors between the steps, whose own queues
are limited besides."""

LITERT_TRIAL_TIMEOUT_S: Final = 60.0
"""Seconds in which a TensorFlow Lite file is opened and run once in a process of its own: large ones take
seconds on a small board; what hangs there would hang a loading thread of the node for ever."""

MAX_LITERT_FILE_BYTES: Final = (1 << 31) - 1
"""A `.tflite` file is read into memory; places in it are numbers of 31 bits."""

MAX_LITERT_ERRORS_LENGTH: Final = 64 * 1024
"""Characters of errors that an interpreter of such a file keeps before it is opened again: some hundred errors."""

MAX_REASON_BYTES: Final = 500
"""Bytes of a replica's reason: enough for a library's error message, little beside a manifest."""

MAX_CALL_TEXT_BYTES: Final = 48 * 1024
"""Path, query and headers of an HTTP request that a model's own route answers: three times what the
gateway takes, for what JSON escapes, and less than a link's message holds."""

MODEL_CALL_TIMEOUT_S: Final = 300.0
"""Deadline of a JSON document and of a request to a model's own route, whose forms have no place for one:
five minutes, as browsers wait; who hangs up earlier stops the work."""

MAX_ACCEPT_LENGTH: Final = 200
"""Characters of an Accept or Content-Type header that a model is told with a document: browsers send 130."""

MAX_ROUTES: Final = 64
"""HTTP routes of one model: an endpoint has a few, and its node tells all of them to the mesh."""

MAX_TABLE_ROUTES: Final = 1024
"""Paths of all models' routes that a gateway knows; a path with parameters is compared with each, 0.3 µs apiece."""

MAX_ROUTE_LENGTH: Final = 200
"""Characters of a route's path, likewise."""

MAX_SCHEMA_BYTES: Final = 8 * KIB
"""JSON schemas of a model's requests and answers, as its node tells them to the mesh: half of what a
value may have. Longer ones are left out."""

MAX_ARCHIVE_BYTES: Final = 32 * 1024 * MIB
"""What a `.mar` archive unpacks to: the weights of a model that a large accelerator holds."""

RETURNED_FILE_PART_BYTES: Final = 256 * KIB
"""A file that a predictor returns travels in parts of this size: one frame of a link."""

MAX_RETURNED_FILE_BYTES: Final = 4 * 1024 * MIB
"""The largest file that a predictor may return: an hour of video."""

MAX_SOURCE_BYTES: Final = 4 * MIB
"""A Python file that is read to find out how a model is written: the longest known have 100 KB."""

# Worker processes of models

WORKER_SHARED_BYTES: Final = 1024 * MIB
"""Address space for the tensors between a node and one worker process: a few batches of the largest images
or audio. Only pages that tensors touch are memory."""

WORKER_SHARED_EAGER_BYTES: Final = 128 * MIB
"""The same where a system counts such memory as taken at once (Windows)."""

WORKER_IDLE_SHARED_BYTES: Final = 32 * MIB
"""Touched pages of that memory that an idle worker keeps, so that its next tensors find warm ones."""

WORKER_INLINE_BYTES: Final = 16 * 1024
"""Tensors of a request up to this size go in its message: two copies of it through a socket cost less than
taking and giving back shared memory."""

MAX_WORKER_MESSAGE_BYTES: Final = 4 * MIB
"""One message between a node and a worker process; tensors are not in it, so it is long only where a model
has thousands of tensors or parameters."""

MAX_WORKER_ERROR_LENGTH: Final = 4000
"""Characters of what a model says of a failure: the reasons of a validation may fill a page."""

WARM_UP_TIMEOUT_S: Final = 600.0
"""A single warm-up request: a first run may compile for minutes, and one that takes longer hangs."""

ROW_CHECK_S: Final = 5.0
"""For trying whether a model's requests may be joined, before it serves: short models need a tenth of a second,
and one of a second per run gains little from being joined, so that fewer trials are enough."""

MAX_TRIAL_INPUT_BYTES: Final = 64 * 2**20
"""An input made of zeros for the first trial of a file that is not trusted yet: it says how large, and may lie."""

MAX_SIGNATURE_TRIALS: Final = 200
"""Inputs that are tried on a TorchScript model without a configuration: some tens of sizes and types of up to
three inputs; a model that none of them fits needs a configuration."""

MAX_WORKER_PROCESSES: Final = 128
"""Processes that a worker may have forked: data loaders start one per core; more is a fork bomb."""

MAX_MODEL_LINKS: Final = 10_000
"""Links in a model's folder that are followed for what its process may read: a dataset of as many files."""

WORKER_KEEPER_S: Final = 1.0
"""Seconds between two looks of a worker's keeper at whether its node is still there: a killed node leaves a
model that much longer."""

WORKER_BURIAL_S: Final = 10.0
"""Seconds that what a worker has started is killed for, again and again, before it is given up: a process
that waits for a device may take that long to die."""

MAX_WORKER_UNREAD_BYTES: Final = 32 * MIB
"""Messages that a worker has not read: 1024 requests of 16 KiB wait for one that is busy; one that asks
without reading the answers fills its node's memory."""

WORKER_MESSAGES_PER_S: Final = 10_000.0
"""Messages per second that are read from each socket of a worker, for long; further ones wait. Ten times what
quick models say, and a fifth of a core."""

MAX_UNCOLLECTED_RESULTS: Final = 1024
"""Results that an endpoint fed its pipeline for and never asked for; the oldest are forgotten beyond it."""

MAX_DOCUMENT_REASONS: Final = 5
"""Reasons why a JSON document does not fit its type that an error names: enough to correct it."""

MAX_WORKER_CONCURRENCY: Final = 1024
"""Requests that one worker may work on at once, if its model asks for that: coroutines that mostly wait."""

WORKER_MEMORY_SHARE: Final = 0.8
"""Of the machine's memory that a worker process may take unless told otherwise; beyond, the system swaps."""

WORKER_MEMORY_SLACK_BYTES: Final = 1024 * MIB
"""How far above its limit a worker can ever reserve memory: libraries reserve more than they touch, and what
they touch is watched. Above this an allocation fails inside the model, before the machine is in need."""

WORKER_DISK_SHARE: Final = 0.25
"""Of the disk that one model's temporary files and cache may take unless told otherwise: weights of a large
language model fit an ordinary disk, and one mistake does not fill it."""

WORKER_DISK_WATCH_S: Final = 5.0
"""Seconds between two looks at what a worker has written: a fast disk takes some gigabytes meanwhile."""

MAX_WORKER_FILES: Final = 250_000
"""Files in a worker's temporary folder and its cache: ten times what an unpacked framework has, and to count
them takes a second."""

CACHE_SWEEP_S: Final = 600.0
"""Seconds between two looks for cache folders of versions that are gone: they cost room, not time."""

WORKER_START_TIMEOUT_S: Final = 900.0
"""Seconds until a worker process is ready: compiling a large model takes minutes on a small device."""

WORKER_STOP_GRACE_S: Final = 5.0
"""Seconds that a model has to finish when it is closed; what it has not done then is lost."""

WORKER_CANCEL_GRACE_S: Final = 10.0
"""Seconds that a cancelled request may run on: starting a process anew costs as much or more."""

WORKER_CANCEL_FACTOR: Final = 4.0
"""A cancelled request may also run on for this many times the longest run that was seen to end well."""

WORKER_SILENCE_S: Final = 60.0
"""Seconds without a sign of life after which a worker is hung: one call into a library that holds Python's
lock, such as reading a large pickle, takes tens of seconds on a slow disk."""

WORKER_WATCH_S: Final = 1.0
"""Seconds between two looks at a worker's memory; at 1 GB/s a leak takes 1 GB in between, which the slack allows."""

WORKER_STOPPED_LOOKS: Final = 2
"""Looks in a row at which a worker is found stopped (SIGSTOP) until it counts as hung: what it streams has stalled, and
is to go on elsewhere within `STREAM_STALL_S`; one look may fall into a pause that ends by itself."""

WORKER_PING_S: Final = 5.0
"""Seconds between two signs of life that a worker is asked for."""

WORKER_RESTART_FIRST_S: Final = 0.5
"""Seconds before a worker is started again for the first time: most crashes are single ones."""

WORKER_RESTART_MAX_S: Final = 60.0
"""Seconds at most: one start a minute of a model that always crashes costs little and repairs itself soon."""

WORKER_STEADY_S: Final = 120.0
"""Seconds that a worker must last for its next restart to be quick again."""

WORKER_STREAM_CREDITS: Final = 16
"""Parts of a stream that are on their way from a worker: enough for tokens never to wait, little memory."""

WORKER_LOG_LINES_PER_S: Final = 50
"""Lines per second that a model may write to the log, for long; more are counted and left out."""

WORKER_LOG_BURST_LINES: Final = 500
"""Lines that it may write at once: a long traceback, a library's start-up."""

MAX_WORKER_LOG_LINE_LENGTH: Final = 2000
"""Characters of a line that a model prints; the rest is cut."""

MAX_WORKER_CALLS: Final = 64
"""Requests to other models that one worker has open at once."""

# Converting and optimising models

CONVERT_TIMEOUT_S: Final = 1800.0
"""One step of `meshnode convert` or `optimize`, unless `--timeout` says otherwise: large models take minutes."""

MAX_CONVERT_MEMORY_SHARE: Final = 0.75
"""Share of the machine's memory that such a step may take: a framework, the model and its result, beside a node."""

MAX_CONVERT_LOG_BYTES: Final = 64 * MIB
"""What a step may print: frameworks print kilobytes; a model's code that prints on and on fills a disk."""

MAX_CONVERT_PROGRESS_BYTES: Final = 64 * KIB
"""One line that a step tells, and the end of its log that an error quotes from: names of tensors, not data."""

MAX_NAMES_LOOKED_AT: Final = 2000
"""Names of an archive that tell what a saved model is: frameworks write the telling ones among the first."""

MAX_SAMPLE_FILE_BYTES: Final = 1024 * MIB
"""A sample or calibration set: a thousand pictures as float32 are 600 MB; more says no more about a model."""

MAX_ANSWERS_BYTES: Final = 4 * MAX_SAMPLE_FILE_BYTES
"""What a model may answer to a sample: models with pictures for answers give about what they take."""

MAX_SAMPLE_ROWS: Final = 4096
"""Rows of a sample that are compared; the first ones count."""

MAX_SAMPLE_ELEMENTS: Final = 64 * MIB
"""Elements of one tensor of a made-up sample: 256 MB as float32; a greater shape is a mistake."""

# Routing

MIN_CONCURRENCY: Final = 4.0
"""Requests of one model that an overloaded gateway has in flight at least: with fewer it would not learn that
the overload is over."""

MAX_ADMITTED_MODELS: Final = 4096
"""Models of which a gateway counts what is in flight; of more, those at rest are forgotten. A thousand take 1 MB."""

MAX_RETRY_AFTER_S: Final = 60
"""Seconds after which a refused caller is told to come back at the latest: a longer backlog is a guess, and by
then others have come and gone."""

MAX_TABLE_REPLICAS: Final = 65_536
"""All replicas that a table holds: sixteen of each of `MAX_MODELS`, some 50 MB of memory."""

MAX_REPLICAS_PER_NODE: Final = MAX_MODELS
"""Replicas of one node: one version of each model, so that no node fills the table alone."""

MAX_LOAD_MODELS: Final = 96
"""Replicas in one `NodeLoad`: with the longest names (some 160 bytes each) they fit a value."""

MAX_CLAIMED_REQUESTS: Final = 1_000_000
"""Requests or slots that one replica may claim; more is a lie or a fault."""

MAX_DEVICE_CLASSES: Final = 64
"""Kinds of devices of which a gateway learns apart what a request's size costs, for each model version: a mesh has a
handful. Devices of further kinds share one."""

MAX_CLAIMED_SERVICE_MS: Final = 3_600_000.0
"""Time of one run that a replica may claim: an hour, beyond any deadline."""

MAX_CLAIMED_COST: Final = 1e9
"""Cost of an hour that a node may claim, in whatever unit: beyond any machine in any currency."""

MAX_CLAIMED_CPUS: Final = 65_536
"""Processors that a node may claim for itself; placement counts fewer."""

MAX_CLAIMED_MEMORY_BYTES: Final = 2**63 - 1
"""Free memory that a node may claim: what fits a signed number of 64 bits."""

MAX_PLACEMENT_CPUS: Final = 4096.0
"""CPUs that count in placement: the largest machines' order; a larger claim draws no more."""

MAX_FAILED_NODES: Final = 8
"""Nodes, besides twice the replicas wanted, on which a deployment may have failed before no further ones are tried:
half of a mixed mesh may lack something, but eight in a row do so by chance once in 256 times."""

MAX_CANDIDATES_SCORED: Final = 32
"""Candidates scored per request: some 60 us, and enough that the best of them is a good one."""

MAX_DECISIONS_KEPT: Final = 256
"""Decisions that a gateway keeps with all that they were made from: of 20 candidates each some 2 MB."""

MAX_CANDIDATES_RECORDED_PER_S: Final = 1000.0
"""Candidates whose beliefs are written down for later: some ten microseconds each, so a hundredth of a core."""

EXPLAINED_DRAWS: Final = 512
"""Draws from which the odds of more candidates than are scored at once are guessed: to some 2 %, in 50 ms."""

MAX_TRIED_SHOWN: Final = 8
"""Nodes in the routing header: a request has three attempts; a header line stays far below 8 KiB."""

MAX_REMEMBERED_SEQUENCES: Final = 16 * MAX_SEQUENCES
"""Sequences whose replica a gateway remembers: sixteen full replicas', 20 MB of memory; of more, those
that were silent longest are forgotten, and found again as long as the replicas stay the same."""

SEQUENCE_SLACK_S: Final = 60.0
"""How much longer than its replica a gateway remembers a silent sequence: clocks start with the answer there."""

MAX_HINT_HEADER_LENGTH: Final = 1024
"""A header that says where a request may run: eight labels of the greatest length."""

MAX_SESSION_LENGTH: Final = 128
"""The word of `Mesh-Session`: a UUID has 36, the longest tracing ids under a hundred."""

MAX_PROBES_IN_FLIGHT: Final = 64
"""Questions for a replica's load that a gateway waits for at once: as many as the candidates that it scores."""

MAX_COLD_WAIT_S: Final = 60.0
"""For a model that is being fetched or loaded: what a client would wait for; longer loads answer at once that they
take time."""

COLD_GRACE_S: Final = 2.0
"""For a replica that is only announced, a link that is dialled again, and what a new gateway has not heard yet: each
takes about a second."""

MAX_WAITING_FOR_REPLICAS: Final = 1024
"""Requests that wait for a replica at one gateway; their bodies are bounded with all others."""

MAX_RANKINGS: Final = 64
"""Rules of where requests may run whose candidates a gateway keeps ranked, per model version: a mesh has some ten
regions and a few labels; each entry names every replica once."""

MAX_REMEMBERED_SESSIONS: Final = 16_384
"""Sessions whose replica a gateway remembers: 4 MB; those not heard of longest are forgotten."""

MAX_REMEMBERED_PREFIXES: Final = 16_384
"""Beginnings of inputs of which a gateway remembers who has seen them: 4 MB."""

MAX_PREFIX_HOLDERS: Final = 8
"""Replicas remembered per beginning: enough for one that every request has, and a look at each costs little."""

# Client and command line

MAX_CLIENT_ANSWER_BYTES: Final = 8 * MAX_BODY_BYTES
"""An answer that a client reads: a tensor of `MAX_BODY_BYTES` takes up to about 5 times as much as
JSON numbers."""

MAX_CLIENT_GATEWAYS: Final = 64
"""Gateways that one client knows: a few are enough to survive the loss of any; each failed call may
try them all."""

MAX_CLIENT_CONNECTIONS: Final = 64
"""Connections of one client to one gateway at once, so that a program's threads wait for one another
instead of filling the gateway's table (`MAX_HTTP_CONNECTIONS`)."""

CLIENT_IDLE_S: Final = 60.0
"""How long a client keeps an idle connection: less than the gateway does (`KEEP_ALIVE_S`), so that it
rarely meets one that is being closed."""

CLIENT_CONNECT_TIMEOUT_S: Final = 5.0
"""Seconds for connecting to a gateway, TLS included: three round trips over a satellite and a lost
packet."""

MAX_CLIENT_TIMEOUT_S: Final = 7 * 86_400.0
"""The longest time that a call may be given: a week; longer is a mistake, and some systems' timers end at
seven of them."""

CLIENT_PROBE_TIMEOUT_S: Final = 1.0
"""How long a client waits for a silent gateway's sign of life: a connection and one small answer, also
over a satellite."""

CLIENT_PROGRESS_BYTES: Final = 1024
"""So much of an answer is progress; a gateway that trickles less is asked for a sign of life, which costs
nothing where it is only the line that is slow."""

CLIENT_PIECE_TIMEOUT_S: Final = 120.0
"""Seconds for one piece of an upload: 8 MiB (`UPLOAD_PIECE_BYTES`) at half a megabit per second."""

CLIENT_PUBLISH_TIMEOUT_S: Final = 120.0
"""Seconds, at least, for taking a deployment: the node hashes all files before it answers, some 60 GB in
this time."""

DAEMON_ANSWER_TIMEOUT_S: Final = 10.0
"""Seconds that a command waits for what a daemon answers from its own tables: it has it at hand, and
longer means that it hangs."""

MAX_CLIENT_SILENCE_S: Final = 5.0
"""The latest that a client of several gateways asks a silent one for a sign of life, where models take
long: a call with the usual 30 s can still go elsewhere."""

MAX_CLIENT_BACKOFF_S: Final = 30.0
"""The longest that a gateway which failed stays behind the others: a rebooted machine is back by then,
and until then it is asked only when all others failed too."""

MAX_TRIES_PER_GATEWAY: Final = 3
"""How often one call asks one gateway: more would only add load to what is overloaded."""

CLIENT_STREAM_SILENCE_S: Final = 25.0
"""After so many seconds without a byte a client counts a stream as broken and asks to go on with it: two heartbeats
(`STREAM_HEARTBEAT_S`) are due in it and another half of one, whatever the model does."""

CLIENT_STREAM_LOOK_S: Final = 1.0
"""How long a stream may bring nothing until a client of several gateways asks for a sign of life on another connection
(`CLIENT_PROBE_TIMEOUT_S`): a frozen gateway is left within two seconds. Of a stream with such pauses it asks ever less
often (`MAX_CLIENT_SILENCE_S`)."""

MAX_STREAM_RESUMES: Final = 3
"""How often in a row a client goes on with a stream that breaks before anything new has come: a line that carries
not one event in three tries carries none."""

MAX_KEY_FILE_BYTES: Final = 4096
"""A file with an API key: one line of under a hundred characters."""

MAX_CACHED_MODELS: Final = 256
"""Models whose inputs a client remembers; a program that asks more of them forgets the oldest."""

MAX_SENTENCE_LENGTH: Final = 2000
"""Characters of a daemon's error that a client shows: a screen; longer is a trace, not a sentence."""

MAX_DATA_NESTING: Final = 32
"""Dimensions of data on the command line: NumPy allows 64, no model has ten."""

MAX_DURATION_S: Final = 3650 * 86_400
"""A duration in an option: ten years; longer is a typing error, and dates stay valid."""

# Settings

MAX_SETTINGS_FILE_BYTES: Final = 256 * KIB
"""A TOML or `.env` file of settings: all of them with comments take a tenth of it."""

MAX_SETTING_LENGTH: Final = 4096
"""Characters of one setting's text: PATH_MAX of Linux, the longest that any of them needs."""

MAX_ADVERTISED: Final = 16
"""Addresses that a node advertises: as many as one member's record carries."""

MAX_ALLOWED_HOSTS: Final = 64
"""Names under which one gateway is reached from outside: a proxy has a handful."""

MAX_MDNS_INTERFACES: Final = 64
"""Addresses that mDNS is limited to: more than a machine with containers has."""

MIN_DISK_LIMIT_BYTES: Final = 64 * MIB
"""The least that an owner may give to model files: less holds no model that anybody would share."""

MIN_MEMORY_LIMIT_BYTES: Final = 64 * MIB
"""Least memory that a node may be limited to: an idle one takes about as much."""

MAX_CPUS: Final = 4096
"""Most processors that a node can be limited to: above any machine's."""

MIN_TEMPERATURE_LIMIT_C: Final = 30.0
"""Lowest temperature limit: below it, a machine in a warm room would never serve."""

MAX_TEMPERATURE_LIMIT_C: Final = 110.0
"""Highest temperature limit: above it every processor throttles or stops by itself."""

MAX_MEMBERSHIP_TIME_S: Final = 30 * 86_400
"""Any one time of membership: a month; longer is a typing error."""

MAX_MEMBERSHIP_COUNT: Final = 1024
"""Any one count or factor of membership: far above what is sane, so that nothing overflows."""

# Hardware

SPEED_PROBE_S: Final = 2.0
"""All measurements of the speed probe together: enough for steady figures, seldom felt by an owner."""

PROBE_COPY_BYTES: Final = 64 * MIB
"""The block that the probe copies, which it holds twice: larger than the caches of most processors."""

MIN_PROBE_COPY_BYTES: Final = 8 * MIB
"""The least that is worth copying; where memory is too short for it, the speed is not measured."""

PROBE_PROCESS_BYTES: Final = 72 * MIB
"""What the probe's process takes besides: Python, NumPy and ONNX Runtime take 56 MiB, and its buffers."""

PROBE_THREAD_BYTES: Final = 2 * MIB
"""Likewise for each processor that multiplies: three matrices and a stack."""

SPEED_PROBE_TIMEOUT_S: Final = 60.0
"""Seconds for the probe's process: a small board imports ONNX Runtime from its memory card in twenty."""

MAX_PROBE_OUTPUT_BYTES: Final = 64 * KIB
"""What is read of the probe's output: its one line has a few hundred bytes."""

MAX_PROBE_WRITE_BYTES: Final = 64 * MIB
"""What the probe writes to the data folder, once per change of the machine: flash wears by writing."""

MAX_HARDWARE_FILE_BYTES: Final = 64 * KIB
"""The kept result of the probe; a larger file is not ours."""

SYSCTL_TIMEOUT_S: Final = 2.0
"""How long macOS may take to name its processor: `sysctl` answers in milliseconds."""

# Local network (mDNS)

MAX_MDNS_ANNOUNCEMENTS: Final = 1024
"""Announcements kept, the oldest making room: a flood must not fill the memory or keep others out."""

MAX_MDNS_LOOKUPS: Final = 32
"""Names that are being looked up, each with a few packets; what comes in between is heard again,
since announcements repeat."""

MAX_MDNS_ADDRESSES: Final = 8
"""Addresses taken of one announcement: a machine has a few interfaces."""

ADDRESS_POLL_S: Final = 5.0
"""How often a node looks whether its machine's addresses have changed: a laptop that changed networks
is found again before its peers give up its links, for a third of a millisecond each time."""

MAX_MDNS_DIALS: Final = 8
"""Members without a link that are dialled at a time, in turn: anyone may announce any number of names."""

MDNS_RESOLVE_TIMEOUT_MS: Final = 1500
"""Looking up one announcement: asking a machine on the same network takes far less."""

MDNS_GOODBYE_TIMEOUT_S: Final = 1.0
"""Taking back our announcement: a goodbye is three packets in a quarter of a second."""

# Doctor

MAX_TRIALS_AT_ONCE: Final = 8
"""Addresses that are tried at once: those of one node, so that a firewall's silence is waited for once."""

CHECKUP_KNOCKS: Final = 6
"""Datagrams each way of a checkup: at 30 % loss all of them are lost once in a thousand times."""

CHECKUP_KNOCK_INTERVAL_S: Final = 0.15
"""Between two of them: a burst of loss, such as Wi-Fi's, is over by the next or the one after."""

CHECKUP_WAIT_S: Final = 1.5
"""How long datagrams of a checkup are waited for: all of them, and a round trip by satellite."""

CHECKUP_LAST_S: Final = 0.5
"""How much later than an answer over the link a datagram may come that was sent before it."""

CHECKUP_TIMEOUT_S: Final = 2 * CHECKUP_WAIT_S + ADDRESS_TIMEOUT_S
"""How long the whole answer may take: the datagrams, and dialling back where nothing answers."""

MAX_CHECKUPS: Final = 4
"""Checkups of other nodes that are answered at once: each dials that node's addresses."""

CHECKUP_PAUSE_S: Final = 1.0
"""Between two checkups for one node: who asks faster wants dialling, not an answer."""

DOCTOR_LISTEN_S: Final = 2.0
"""How long mDNS is listened to: questions are repeated within a second."""

DOCTOR_ANSWER_TIMEOUT_S: Final = 2 * CHECKUP_TIMEOUT_S + DOCTOR_LISTEN_S
"""Seconds that the command waits for one node's examination: dialling, a checkup, and mDNS."""

TWIN_REMEMBERED_S: Final = 600.0
"""How long after the last sign of it the doctor says that a key runs twice: twins meet every few seconds."""

MAX_DOCTOR_PEERS: Final = 32
"""Nodes that `meshnode doctor` examines by itself, those that are missing first; others by their name."""

# Starting and stopping

DETACH_TIMEOUT_S: Final = 30.0
"""How long a daemon in the background that calls itself ready may take to answer its starter."""

DRAIN_LIMIT_S: Final = 30.0
"""How long running requests may take to finish when the node stops: the default deadline."""

SERVICE_STOP_TIMEOUT_S: Final = round(DRAIN_LIMIT_S) + 15
"""How long a supervisor waits before it kills: the daemon needs `DRAIN_LIMIT_S`, then closes."""

SERVICE_START_TIMEOUT_S: Final = 180
"""How long a start may take before it counts as failed: a rejoin tries several addresses in turn."""

PROBE_TIMEOUT_S: Final = 3.0
"""How long a health check from inside a container waits for its node: less than the five seconds after which
orchestrators give the check up, so that it says why it failed."""

SERVICE_TOOL_TIMEOUT_S: Final = 90.0
"""How long `systemctl` and its like may take: starting waits until the node is a member."""

HTTP_GOODBYE_LIMIT_S: Final = 2.0
"""How long a leaving node waits for its gateway to be quiet before it tells the mesh: most requests
have ended by then; the others go on while it leaves, and may still be sent to other nodes."""

# Sleep

WAKE_LOOK_S: Final = 1.0
"""How often a node looks whether it slept: it wakes as often for its probes anyway."""

SLEPT_S: Final = 3.0
"""A look that comes so much too late followed a sleep: less than any peer waits before it holds this node for dead, and
more than a busy machine keeps a loop waiting."""

WAKE_PROOF_S: Final = 5.0
"""How long a peer may stay silent after this node slept before the link to it is parted with: a wireless network is there
again within three seconds mostly, and a link that stands saves a hello."""

# Draining

MAX_DRAIN_REASONS: Final = 32
"""Sentences of a node that say what keeps it from being empty: more than people read, and its value stays small."""

MAX_DRAIN_REASONS_BYTES: Final = 6 * KIB
"""Bytes of all such sentences of one kind: with both kinds, a report fits `MAX_OWNER_VALUE_BYTES`."""

DRAIN_WAIT_S: Final = 600
"""How long what began on a node may go on there while it is drained, unless its operator says otherwise: most
conversations and streams end within ten minutes, and who waits for a node to be empty wants to see an end."""

MAX_DRAIN_WAIT_S: Final = 7 * 86_400
"""How long it may be told to go on: as long as a job may take, and more would be a node that is not drained."""

DRAIN_LOOK_S: Final = 0.25
"""How often a node that is drained looks what is left of it: a person waits, and a look costs little."""

DRAIN_TELL_S: Final = 1.0
"""How often it tells the mesh of a change that only moves numbers: what it says is signed, and goes to all."""

DRAIN_HAND_OVER_S: Final = 30.0
"""How long jobs that were stopped because they took too long may take to reach other nodes, before the node says that it
is empty all the same: they are kept by a second node anyway."""

# Simulator

MAX_SCENARIO_BYTES: Final = 4 * MIB
"""A scenario's file, its arrivals included: 100,000 of them, or 20,000 lines written by a program."""

MAX_TRACE_BYTES: Final = 16 * MIB
"""A file of arrivals: half a million lines of a time and a gateway's name."""

MAX_TRACE_ARRIVALS: Final = 500_000
"""Requests of a trace: more take minutes to play, and as many objects as a laptop's memory holds."""

MAX_SCENARIO_MISTAKES: Final = 20
"""Mistakes that are told at once: who made more has made one many times, or read the wrong file."""

MAX_SCENARIO_MISTAKES_SOUGHT: Final = 200
"""After so many mistakes the rest of a scenario is not looked through: each costs the search for a near name."""

MAX_SCENARIO_REQUESTS: Final = 2_000_000
"""Requests that all loads of a scenario may make: a run keeps them all, a gigabyte or two, and takes half an
hour at a millisecond each."""

MAX_SEED: Final = 2**63 - 1
"""The greatest seed: a whole number of a TOML file has 64 bits with its sign."""

MAX_SIMULATED_CORES: Final = 5000
"""Nodes at depth A: what fits into 16 GB; a core that knows 5,000 others takes about 2 MB."""

MAX_SIMULATED_DAEMONS: Final = 100
"""Nodes at depth B: whole daemons in one process; the time that they take grows with their links."""

MAX_SIMULATED_PROCESSES: Final = 30
"""Nodes at depth C: processes of 70 MB on one machine, which share its processors."""

MAX_CLOCK_JUMP_S: Final = 50 * 31_557_600.0
"""Seconds by which a fault sets a clock, fifty years: from worlds' 2025 back to 1975, which is after the start
of Unix time, where a machine begins whose clock has no battery."""

# Disk

MAX_STATE_FILE_BYTES: Final = 64 * MIB
"""A file of saved state: far more than `MAX_MEMBERS` records; a larger file is not ours."""

MAX_CONTROL_FILE_BYTES: Final = 4096
"""The file that says where a daemon listens: one path, or one address with its token."""

MAX_SOCKET_PATH_BYTES: Final = 103
"""Encoded length of a Unix socket's path: 104 bytes on macOS and the BSDs, less the final NUL."""

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

MAX_REPOSITORY_PATH_LENGTH: Final = 4096
"""A model repository's path in a request: PATH_MAX of Linux."""

HTTP_CLOSE_GRACE_S: Final = 1.0
"""Seconds that the last HTTP answers have to be written; running requests finished before."""

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

FORWARD_TIMEOUT_S: Final = 120.0
"""Seconds for a call that another node answers for this gateway: as long as a client gives a gateway for
the longest of them, a deployment (`CLIENT_PUBLISH_TIMEOUT_S`)."""

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
"""All revisions that this node's own writes may reach: the whole map is rewritten on each change and
lies in every node's memory. Peers' writes are taken up to twice that."""

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

MAX_MODEL_FILE_BYTES: Final = 64 * 1024 * MIB
"""One file of a model: more than any device of the mesh can hold in memory."""

MAX_MODEL_FILES: Final = 4096
"""Files of a version's folder: TensorRT-LLM's largest engines have a few hundred."""

MAX_MODEL_CONFIG_BYTES: Final = MIB
"""Text of one `config.pbtxt`: the longest ones known (ensembles) have a few tens of kilobytes."""

MAX_PATH_COMPONENT_LENGTH: Final = 255
"""One component of a model file's path: what common file systems allow."""

BLOB_CHUNK_BYTES: Final = MIB
"""A model file travels in chunks of this size, so that a broken transfer resumes near its end."""

BLOB_IDLE_TIMEOUT_S: Final = 10.0
"""Seconds without a chunk after which a transfer is given up and resumed from another holder."""

MAX_BLOBS_SENT: Final = 32
"""Files that are sent at once, each with up to three chunks in memory; more peers wait their turn."""

MAX_WAITING_RUNS: Final = 256
"""Requests that may wait per version: at 10 ms each, 2.5 s of work; more would wait past any
patience, and another node can take them."""

MAX_IMAGE_PIXELS: Final = 50_000_000
"""A decoded picture: the largest phone cameras' ordinary mode; 150 MB as RGB. A few kilobytes of PNG
can claim far more (a decompression bomb)."""

MAX_RUNTIME_MESSAGE_LENGTH: Final = 300
"""Characters of a runtime's message that a person reads in a table or an answer: a few lines."""

MAX_REASON_BYTES: Final = 500
"""Bytes of a replica's reason: enough for a library's error message, little beside a manifest."""

# Routing

MAX_TABLE_REPLICAS: Final = 65_536
"""All replicas that a table holds: sixteen of each of `MAX_MODELS`, some 50 MB of memory."""

MAX_REPLICAS_PER_NODE: Final = MAX_MODELS
"""Replicas of one node: one version of each model, so that no node fills the table alone."""

MAX_LOAD_MODELS: Final = 96
"""Replicas in one `NodeLoad`: with the longest names (some 160 bytes each) they fit a value."""

MAX_CLAIMED_REQUESTS: Final = 1_000_000
"""Requests or slots that one replica may claim; more is a lie or a fault."""

MAX_CLAIMED_SERVICE_MS: Final = 3_600_000.0
"""Time of one run that a replica may claim: an hour, beyond any deadline."""

MAX_CLAIMED_CPUS: Final = 65_536
"""Processors that a node may claim for itself; placement counts fewer."""

MAX_CLAIMED_MEMORY_BYTES: Final = 2**63 - 1
"""Free memory that a node may claim: what fits a signed number of 64 bits."""

MAX_PLACEMENT_CPUS: Final = 4096.0
"""CPUs that count in placement: the largest machines' order; a larger claim draws no more."""

MAX_CANDIDATES_SCORED: Final = 64
"""Candidates scored per request: some 40 us, and enough that the best of them is a good one."""

MAX_TRIED_SHOWN: Final = 8
"""Nodes in the routing header: a request has three attempts; a header line stays far below 8 KiB."""

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

SERVICE_TOOL_TIMEOUT_S: Final = 90.0
"""How long `systemctl` and its like may take: starting waits until the node is a member."""

HTTP_GOODBYE_LIMIT_S: Final = 2.0
"""How long a leaving node waits for its gateway to be quiet before it tells the mesh: most requests
have ended by then; the others go on while it leaves, and may still be sent to other nodes."""

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

"""Every bound on size and time. Imports nothing.

A bound is checked before the bytes are read. Its comment names the attack or the accident that it stops.
"""

from __future__ import annotations

from typing import Final

MiB: Final = 1 << 20

# --- frames and messages
MAX_FRAME_BYTES: Final = 8 * MiB  # one activation or one answer: bounds the memory that a peer can occupy
MAX_MESSAGE_BYTES: Final = 64 * 1024  # one session control message (JSON)
WINDOW: Final = 8  # frames in flight in one session, unless the client asks for another window
MAX_WINDOW: Final = 64  # frames in flight in one session
MAX_INFLIGHT_BYTES: Final = 16 * MiB  # bytes in flight in one session, on either side
#: TCP_NOTSENT_LOWAT: unsent bytes that the kernel may hold. Frames behind them can still be dropped or coded again.
UNSENT_BYTES: Final = 16 * 1024

# --- requests and documents
MAX_REQUEST_BYTES: Final = 4 * MiB  # a plan request, a profile
MAX_PLAN_BYTES: Final = 4 * MiB  # a plan with labels and runners-up
MAX_PICTURE_BYTES: Final = 16 * MiB  # a plot of trade-off curves
MAX_PROBE_BYTES: Final = 4 * MiB  # one link measurement
MAX_IMAGE_BYTES: Final = 32 * MiB  # an encoded image handed to the agent
MAX_IMAGE_PIXELS: Final = 64_000_000  # a decompression bomb
MAX_TEXT_BYTES: Final = 64 * 1024  # a text: the tokenizer reads all of it before it is cut to length
MAX_RESIZE: Final = 8192  # pixels of the short side of a resized image
MAX_MEASURED: Final = 200  # measured times in one plan request
MAX_LABELS: Final = 100_000
MAX_LADDER: Final = 16  # codecs of one plan: each has tables and is tried before the first frame
MAX_NAME: Final = 100  # a model, layer, or tensor name
MAX_PARTS: Final = 64  # outputs of one model
MAX_CANDIDATES: Final = 2_000  # boxes of one frame before overlapping ones are removed: bounds the time of that
MAX_BOXES: Final = 1_000  # boxes of one answer
MAX_POINTS: Final = 256  # key points of one box
MAX_ANCHORS: Final = 100_000  # of one detector: they travel with its plan
MAX_CLASS: Final = 65_535  # of a box or a pixel

# --- segments
MAX_SEGMENT_BYTES: Final = 512 * MiB
MAX_INFLATION: Final = (
    64  # size of a segment's constants over size of its file: a small download must not fill the memory
)
SMALL_BLOB: Final = 16 * MiB  # constants below this size are exempt from MAX_INFLATION
MAX_HEADER_BYTES: Final = 8 * MiB  # a segment's JSON header
MAX_TOKENIZER_BYTES: Final = 16 * MiB  # a tokenizer file, which a library parses
MAX_ARENA_BYTES: Final = 512 * MiB  # activations of one head
MAX_THREADS: Final = 64  # of one head
MAX_OPS: Final = 4_096
MAX_TENSORS: Final = 8_192
MAX_CONSTANTS: Final = 16_384  # arrays of weights, biases, multipliers and tables in one head
MAX_DIM: Final = 1 << 20  # one side of one tensor
MAX_ELEMENTS: Final = 1 << 28  # elements of one tensor
MAX_CHANNELS: Final = 1 << 16  # ranges of one codec; each may have a table of 256 bytes
MAX_TABLES: Final = 64  # frequency tables of one codec
MAX_BASIS: Final = 1 << 20  # elements of one codec's change of basis: bounds the work for each row of a frame
MAX_MACS: Final = 1 << 40  # multiply-accumulates of one head: a segment must not hang the board

# --- models and calibration
MAX_MODEL_BYTES: Final = 2048 * MiB  # an ONNX file
MAX_CALIBRATION_SAMPLES: Final = 10_000
CALIBRATION_CACHE_BYTES: Final = 2048 * MiB  # cache of calibrations; the least recently used entries are removed first

# --- times, in seconds
HEARTBEAT: Final = 2.0  # between two pings of an idle session
SILENCE: Final = 6.0  # a link without a byte for this long is dead, even if TCP still reports it open
CONNECT_TIMEOUT: Final = 10.0
REQUEST_TIMEOUT: Final = 60.0
FIRST_CONNECT: Final = 2.0  # a command's first connection, while a person waits; TCP resends a lost packet after 1 s
FIRST_ANSWER: Final = 10.0  # the answer to that first request
FRAME_AGE: Final = 10.0  # an unanswered frame fails after this time; a demand may set less
BACKOFF_FIRST: Final = 0.1
BACKOFF_MAX: Final = 10.0
REFUSED_AGAIN: Final = (
    60.0  # between two attempts of a service that the server refused: a person must fix the server first
)
TLS_LOOK: Final = 3.0  # one more connection that finds out why TLS failed
PLAN_LIFETIME: Final = 3600.0
CLOSE_TIMEOUT: Final = 2.0

# --- the agent's queue and local HTTP API
MAX_QUEUED_FRAMES: Final = 32  # frames without an answer; the next one is refused
MAX_QUEUED_BYTES: Final = 64 * MiB  # the same in bytes of input: 32 large photos fill the memory of a small board
MAX_CONFIG_BYTES: Final = 64 * 1024
MAX_CA_BYTES: Final = 4 * MiB  # a file of CA certificates
MAX_PATH: Final = 4096  # characters of a file name
MAX_SOURCE_FILES: Final = 1_000_000  # files that one folder or glob may match
MAX_TIMINGS_BYTES: Final = 64 * 1024  # the file of measured times
FRAMES_AHEAD: Final = 2  # frames between the agent's queue and the link: one in the head, one encoded and next to send
LEARNING_TIME: Final = 60.0  # after a new plan: frame times of this period tell whether its prediction is right
MEDIAN_FRAMES: Final = 5  # fewer frames give no median
MEDIAN_WINDOW: Final = 50  # a median covers the last frames, at most this many
MISMATCH_REPLANS: Final = 2  # plans requested because frame times differ from the prediction, until one expires
MISMATCH_SHARE: Final = 0.1  # frame times differ from the prediction if they are off by more than this share of it
MISMATCH_MS: Final = 1.0  # and by more than this
SENDING_AGE: Final = 3600.0  # measured sending times expire: a plan that sends nothing would never correct them
MAX_DRY_RUNS: Final = 16  # models whose operator times an agent keeps
MAX_DRY_RUNS_BYTES: Final = 4 * MiB
CACHED_SEGMENTS: Final = 8  # the most recently used are kept
CACHED_PROFILES: Final = 4  # one for each build of the kernels; the newest are kept
BODY_TIMEOUT: Final = 30.0  # a client that trickles its request body
HEAD_STUCK: Final = 60.0  # a frame in the head for longer has hung it, and the watchdog restarts the agent
RUNNING_AGENT: Final = 1.0  # `infer` asks the agent on this machine; one that does not answer in this time is not used
DRAIN_TIMEOUT: Final = 5.0  # for frames in flight after a request to stop
POWER_PERIOD: Final = 0.2  # between two readings of a power sensor; some sensors need a process for each
REPLAN_LEAST: Final = 60.0  # least time that a plan is kept: a board's clock may be years off
LINK_PERIOD: Final = 0.5  # between two checks of the link

# --- chains of boards
MAX_STAGES: Final = 8  # boards of one chain
MAX_UPSTREAM: Final = 16  # sessions of one stage: one for each plan in use, and reconnections
STAGE_PLANS: Final = 2  # plans of one stage: the active one and its successor, each with a head in memory
STAGE_LINK_AGE: Final = 60.0  # a stage reuses a link measurement for this long: measuring loads the link

# --- the service and the device profile
SERVICE_TIMEOUT: Final = 60.0  # one call of systemctl or journalctl: longer than the unit's stop timeout
SERVICE_START: Final = (
    2400.0  # `service install` waits this long for readiness: both commands of the unit, and the profile
)
UPGRADE_READY: Final = 300.0  # default time that a new version may take until it is ready
SERVICE_LOOK: Final = 0.5  # between two checks of the service
SERVICE_TOLD: Final = 15.0  # between two messages that say what it waits for
MAX_KERNEL_ROWS: Final = 1000  # measurements in one profile
LOW_MEMORY: Final = 256 * MiB  # with less available memory the kernel may kill an agent with a large head
COMPILE_MEMORY: Final = 640 * MiB  # `edge-agent warm` peaks at 505 MiB when it compiles, at 174 MiB when it does not
DOCTOR_TIMEOUT: Final = 3.0  # `edge-agent doctor` waits this long for the server
TOOL_TIMEOUT: Final = 2.0  # one call of a program such as vcgencmd
PROBE_TIMEOUT: Final = 60.0  # a child process that imports and runs the kernels, from a slow SD card
LOW_DISK: Final = 256 * MiB  # segments, measurements and compiled kernels need less; a full card stops everything
CERTIFICATE_DAYS: Final = 14  # a certificate that expires sooner is reported
HOT_C: Final = 80.0  # a Raspberry Pi lowers its clock from here on, a Jetson a little later
JOURNAL_LINES: Final = 200  # of the service in a doctor's bundle
JOURNAL_TIMEOUT: Final = 10.0  # a journal of months on an SD card
WARMUP_TIMEOUT: Final = 600.0  # a child process that compiles every kernel on a slow board

# --- edge-agent bench
BENCH_EXPORT: Final = 1800.0  # seconds to make the files of a model for other runtimes
BENCH_TURN: Final = 600.0  # seconds until a process answers: it loads a model, or runs it some times
MAX_BENCH_BYTES: Final = 64 * MiB  # a result file

# --- the server
MAX_PLANS: Final = 10_000  # plans in the store; the oldest are removed first
PLAN_GRACE: Final = 600.0  # an expired plan still accepts streams for this long, while its successor is made
MAX_PATTERN_BYTES: Final = 16 * MiB  # patterns of one bundle in the store; each process computes larger tables itself
KEPT_PATTERNS: Final = 128  # bundles whose patterns the store keeps; the oldest are removed first
STORE_BUSY: Final = 5.0  # wait for another process that locks the database
LEFTOVER_AGE: Final = 86_400.0  # older unfinished files belong to a process that was killed, and are removed
MAX_STREAMS: Final = 256  # sessions of one server process
MAX_TAILS: Final = 8  # loaded tails; the least recently used is unloaded
TAIL_QUEUE: Final = 256  # frames of all sessions that may wait for a tail
LOG_LINES: Final = 100  # access log lines in one `LOG_PERIOD`; more are only counted: a flood must not fill the disk
LOG_PERIOD: Final = 60.0
DRAIN: Final = 5.0  # for open sessions when a server stops
OPENSSL_TIMEOUT: Final = 60.0  # `openssl` that makes a certificate: a machine without entropy may block it

# --- the link
HEARTBEAT_LEAST: Final = 0.05  # least heartbeat that a peer can ask for
STALL: Final = 15.0  # a download without a byte for this long is aborted and resumed
FETCH_TRIES: Final = 5  # broken connections in a row, without a byte in between, before a download fails
PROBE_TIME: Final = 0.2  # a link measurement grows until one transfer takes this long
SESSION_WORKERS: Final = 2  # frames of one session in the tail: one computes, one is ready

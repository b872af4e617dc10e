"""Every bound on size and time, in one place. Imports nothing.

A bound is checked before the bytes it bounds are read. Each names the attack or the accident it stops.
"""

from __future__ import annotations

from typing import Final

MiB: Final = 1 << 20

# --- frames and messages
MAX_FRAME_BYTES: Final = 8 * MiB  # one activation or one answer; a peer cannot make us hold more
MAX_MESSAGE_BYTES: Final = 64 * 1024  # one session control message (JSON)
MAX_WINDOW: Final = 64  # frames in flight in one session
MAX_INFLIGHT_BYTES: Final = 16 * MiB  # bytes in flight in one session, on either side
UNSENT_BYTES: Final = (
    16 * 1024
)  # TCP_NOTSENT_LOWAT: bytes the kernel may hold that are not yet sent; frames behind them are still ours

# --- requests and documents
MAX_REQUEST_BYTES: Final = 4 * MiB  # a plan request, a profile
MAX_PLAN_BYTES: Final = 4 * MiB  # a plan with labels and runners-up
MAX_PICTURE_BYTES: Final = 16 * MiB  # of trade-off curves
MAX_PROBE_BYTES: Final = 4 * MiB  # one link measurement
MAX_IMAGE_BYTES: Final = 32 * MiB  # an encoded image handed to the agent
MAX_IMAGE_PIXELS: Final = 64_000_000  # a decompression bomb
MAX_TEXT_BYTES: Final = 64 * 1024  # a text: all of it is cut into tokens before a model sees its beginning
MAX_RESIZE: Final = 8192  # pixels of an image's short side on its way to a model
MAX_MEASURED: Final = 200  # heads' times in one plan request
MAX_LABELS: Final = 100_000
MAX_LADDER: Final = 16  # codecs of one plan: each has tables, and is tried before the first frame
MAX_NAME: Final = 100  # a model, layer, or tensor name

# --- segments
MAX_SEGMENT_BYTES: Final = 512 * MiB
MAX_INFLATION: Final = 64  # a segment's constants to its file: a small download must not fill the memory
SMALL_BLOB: Final = 16 * MiB  # constants that a file of any size may hold
MAX_HEADER_BYTES: Final = 8 * MiB  # a segment's JSON header
MAX_TOKENIZER_BYTES: Final = 16 * MiB  # the file of a tokenizer, which a library parses
MAX_ARENA_BYTES: Final = 512 * MiB  # activations of one head
MAX_THREADS: Final = 64  # of one head
MAX_OPS: Final = 4_096
MAX_TENSORS: Final = 8_192
MAX_CONSTANTS: Final = 16_384  # arrays of weights, biases, multipliers and tables in one head
MAX_DIM: Final = 1 << 20  # one side of one tensor
MAX_ELEMENTS: Final = 1 << 28  # elements of one tensor
MAX_CHANNELS: Final = 1 << 16  # ranges in one codec; each may have a table of 256 bytes
MAX_TABLES: Final = 64  # of frequencies in one codec
MAX_BASIS: Final = 1 << 20  # numbers in one codec's change of basis: the work on each row of a frame
MAX_MACS: Final = 1 << 40  # products in one head: a segment must not hang the board

# --- models and calibration
MAX_MODEL_BYTES: Final = 2048 * MiB  # an ONNX file
MAX_CALIBRATION_SAMPLES: Final = 10_000
CALIBRATION_CACHE_BYTES: Final = 2048 * MiB  # what calibrations keep for the next ones; the last used stays

# --- times, in seconds
HEARTBEAT: Final = 2.0  # how often a quiet session says that it lives
SILENCE: Final = 6.0  # a link that says nothing for so long is dead, whatever TCP believes
CONNECT_TIMEOUT: Final = 10.0
REQUEST_TIMEOUT: Final = 60.0
FIRST_CONNECT: Final = (
    2.0  # a command asks first whether the server is there, and a person waits; a lost packet is sent again after 1 s
)
FIRST_ANSWER: Final = 10.0  # the same, until the answer is there
FRAME_AGE: Final = 10.0  # a frame not answered for so long fails; a demand may ask for less
BACKOFF_FIRST: Final = 0.1
BACKOFF_MAX: Final = 10.0
REFUSED_AGAIN: Final = 60.0  # what the server refuses, a person must mend there: the service asks no more often
TLS_LOOK: Final = 3.0  # one more connection, to tell what is wrong with TLS
PLAN_LIFETIME: Final = 3600.0
CLOSE_TIMEOUT: Final = 2.0

# --- the agent's queue and local HTTP API
MAX_QUEUED_FRAMES: Final = 32  # frames between a caller and their answers; the next one is refused, not queued
MAX_QUEUED_BYTES: Final = 64 * MiB  # the same in bytes of input: 32 large photos would fill a small board
MAX_CONFIG_BYTES: Final = 64 * 1024
MAX_CA_BYTES: Final = 4 * MiB  # certificates of authorities
MAX_PATH: Final = 4096  # characters of a file's name
MAX_SOURCE_FILES: Final = 1_000_000  # files that one folder or glob may name
MAX_TIMINGS_BYTES: Final = 64 * 1024  # what the agent keeps of its own heads' times
LEARNT: Final = (
    60.0  # after a plan: what frames take by then, with the link as it was measured, tells whether it was right
)
TELLING, LAST = 5, 50  # frames that make a median, and the last ones, that it is of
LOOKS: Final = 2  # new plans because frames told otherwise, until the next that is made because one expires
UNTRUE: Final = 0.1  # frames that take so much longer or shorter than was planned tell otherwise,
UNTRUE_MS: Final = 1.0  # if it is more than this
SENDING_AGE: Final = 3600.0  # what sending takes beside is told no longer: where it makes a plan send nothing, no frame would put it right
MAX_REHEARSALS: Final = 16  # models whose operators' times an agent keeps
MAX_REHEARSALS_BYTES: Final = 4 * MiB
CACHED_SEGMENTS: Final = 8  # the newest are kept
CACHED_PROFILES: Final = 4  # one for each build of the kernels that ran here; the newest are kept
BODY_TIMEOUT: Final = 30.0  # a client that trickles its request body
DRAIN_TIMEOUT: Final = 5.0  # how long frames in flight may take after a request to stop
POWER_PERIOD: Final = 0.2  # between two looks at a power sensor, which may need a process of its own for each
REPLAN_LEAST: Final = (
    60.0  # a plan is kept so long whatever its expiry (a board's clock may be years off) or its link say
)
LINK_PERIOD: Final = 0.5  # between two looks at whether the link still suffices

# --- chains of boards
MAX_STAGES: Final = 8  # boards of one chain
MAX_UPSTREAM: Final = (
    16  # sessions that a stage serves at once: one of each plan in use, and those that are dialled again
)
STAGE_PLANS: Final = 2  # plans that a stage holds: the one in use and its successor, each with a head in memory
STAGE_LINK_AGE: Final = 60.0  # a stage measures its links no more often: each time loads them

# --- the service and the device profile
SERVICE_TIMEOUT: Final = 60.0  # one call of systemctl or journalctl: longer than the unit's own timeout for a stop
SERVICE_START: Final = (
    2400.0  # `service install` watches a start for so long: the unit's two commands, and measuring the machine
)
SERVICE_LOOK: Final = 0.5  # between two looks at it
SERVICE_TOLD: Final = 15.0  # it says again what it waits for
MAX_KERNEL_ROWS: Final = 1000  # measurements in one profile
LOW_MEMORY: Final = 256 * MiB  # a board with less to spare may kill the agent with a large head
COMPILE_MEMORY: Final = (
    640 * MiB
)  # `edge-agent warm` held 505 MiB at its peak when it compiled, 174 MiB when it did not
DOCTOR_TIMEOUT: Final = 3.0  # `edge-agent doctor` waits so long for the server
WARMUP_TIMEOUT: Final = 600.0  # a child process that compiles every kernel from nothing, on a slow board

# --- the server
MAX_PLANS: Final = 10_000  # plans kept at once; the oldest go first
PLAN_GRACE: Final = 600.0  # an expired plan may still be dialled for so long, while its successor is made
MAX_PATTERN_BYTES: Final = 16 * MiB  # of one bundle's patterns in the store; more are found anew by each process
KEPT_PATTERNS: Final = 128  # bundles whose patterns the store keeps; the oldest go first
STORE_BUSY: Final = 5.0  # wait for another process that holds the database
LEFTOVER_AGE: Final = 86_400.0  # unfinished files so old belong to a process that was killed: they go
MAX_STREAMS: Final = 256  # sessions one server process serves at once
MAX_TAILS: Final = 8  # tails loaded at once; the least recently used goes
TAIL_QUEUE: Final = 256  # frames of all sessions that may wait for a tail
LOG_LINES: Final = (
    100  # lines of the server's log of peers in `LOG_PERIOD`; more are counted: a flood must not fill the disk
)
LOG_PERIOD: Final = 60.0
DRAIN: Final = 5.0  # a stopping server gives open sessions so long

# --- the link
HEARTBEAT_LEAST: Final = 0.05  # a peer cannot make us ping more often than so
STALL: Final = 15.0  # a download without a byte for so long is broken off and resumed
FETCH_TRIES: Final = 5  # broken connections in a row, without a byte in between, that end a download
PROBE_TIME: Final = 0.2  # one link measurement grows until it takes so long
SESSION_WORKERS: Final = 2  # frames of one session that are in the tail at once: one computes, one is ready

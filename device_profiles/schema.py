"""The device profile: what a board can do, measured on it or, for what-if, taken from its maker. Versioned JSON.

Names contain units: ``_us`` microseconds, ``_s`` seconds, ``_c`` degrees Celsius, ``gops`` 10^9 operations a second
(a multiply-accumulate is two operations). None means unknown; `DeviceProfile.unmeasured` has the reason.
`DeviceProfile.origins` has the origin of each value. A measurement contains no guesses. A plan runs on a board only if
its times were measured (`require_measured`).
"""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from splitedge import errors, files, limits

SCHEMA_VERSION = 1

KernelKind = Literal["pointwise", "depthwise", "conv", "dense", "add", "lut", "pool"]
KINDS: tuple[KernelKind, ...] = ("pointwise", "depthwise", "conv", "dense", "add", "lut", "pool")

# The server receives profiles from the network: bounds keep predictions from overflowing or dividing by zero.
Count = Annotated[int, Meta(ge=0, le=1 << 50)]
Size = Annotated[int, Meta(ge=1, le=limits.MAX_DIM)]
Positive = Annotated[float, Meta(gt=0, le=1e12)]
Amount = Annotated[float, Meta(ge=0, le=1e12)]
Text = Annotated[str, Meta(max_length=300)]


class Machine(msgspec.Struct):
    """The board's hardware and system."""

    board: Text | None  # as the firmware names it: "Raspberry Pi 5 Model B Rev 1.0"
    cpu: Text
    architecture: Text
    instruction_sets: Annotated[list[Text], Meta(max_length=100)]  # that integer kernels can use
    isa: Text  # the one in use (kernels.isa)
    physical_cores: Size
    logical_cores: Size
    usable_cores: Size  # on which this process may run
    cpu_quota: Positive | None  # cores of time that the control group allows; None: no limit
    memory_total_bytes: Count  # the machine's or the control group's, whichever is lower
    memory_available_bytes: Count
    last_cache_bytes: Count | None
    os: Text


class Shape(msgspec.Struct, frozen=True):
    """Sizes of an operator: input [h, w, c], output channels, square kernel, stride. Vectors have h = w = 1."""

    h: Size
    w: Size
    c: Size
    oc: Size
    k: Size = 1
    stride: Size = 1


#: A median is tight if both ends of its interval are within this share of it.
TIGHT = 0.02


class Interval(msgspec.Struct, frozen=True):
    """The interval that contains a median with a probability of 95 %, from the medians of ``rounds``.

    ``tight``: both ends are within `TIGHT` of the median. If not, the time for the measurement ran out.
    """

    low_us: Positive
    high_us: Positive
    rounds: Size
    tight: bool


class Kernel(msgspec.Struct):
    """One measurement: the median time of one operator, without the executor's share of the call."""

    kind: KernelKind
    name: Text
    shape: Shape
    threads: Size
    macs: Count
    bytes: Count  # activations read and written, weights read
    time_us: Positive
    sd_us: Amount
    runs: Size
    interval: Interval | None = None  # of time_us; older files lack it

    @property
    def gops(self) -> float:
        """10^9 operations a second; 0 without multiplications."""
        return 2e-3 * self.macs / self.time_us

    @property
    def gbps(self) -> float:
        """10^9 bytes a second, read and written."""
        return 1e-3 * self.bytes / self.time_us


class Overhead(msgspec.Struct):
    """Costs of a frame besides its operators. Older files lack the fields with defaults."""

    call_us: Amount  # one run of a head: Python, checks, copies
    op_us: Amount  # one more operator
    value_ns: Amount = 0.0  # to quantize and pack one value of the sent tensor
    # A value, for each further stage of a codec: `splitedge.codec.STAGES`.
    stage_ns: Annotated[dict[Text, Amount], Meta(max_length=20)] = {}


class Warmup(msgspec.Struct):
    """The start of a new process: import the kernels, prepare a head with every kind of kernel, run it once."""

    cache_warm: bool  # compiled kernels were on disk before
    cold_s: Amount | None  # with an empty cache: compile everything
    warm_s: Amount | None  # load compiled kernels from disk
    import_s: Amount | None  # the imports' part of warm_s


class Throttling(msgspec.Struct):
    """Whether the system slows the processor down."""

    now: bool
    since_boot: bool | None  # None: the system keeps no record
    reasons: Annotated[list[Text], Meta(max_length=20)]
    source: Text


class Condition(msgspec.Struct):
    """The state of the board during the measurement."""

    mhz_now: Positive | None
    mhz_max: Positive | None
    temperature_c: Annotated[float, Meta(ge=-100, le=300)] | None
    throttling: Throttling | None


class Power(msgspec.Struct):
    """Power of the board, with its source."""

    source: Literal["sensor", "declared", "unknown"]
    sensor: Text = ""
    idle_watts: Amount | None = None
    load_watts: Amount | None = None  # while kernels run, or as declared


class Bandwidth(msgspec.Struct, frozen=True):
    """Memory beyond the last cache. A copy counts bytes read plus bytes written."""

    kind: Literal["copy", "read"]
    threads: Size
    gbps: Positive


class Peak(msgspec.Struct, frozen=True):
    """The most products that threads compute on registers alone; a product and its sum are two operations."""

    threads: Size
    gops: Positive


class Load(msgspec.Struct, frozen=True):
    """A convolution on all threads without a pause: its speed in the first second, and at the end.

    A board that throttles is slower at the end.
    """

    threads: Size
    seconds: Positive
    burst_gops: Positive
    sustained_gops: Positive


class BackendTime(msgspec.Struct):
    """How fast a way to run models (`edge_agent.backends`) runs the reference network.

    ``ms``: the median of a run, None if it failed. ``failure``: the reason.
    """

    name: Text
    version: Text
    threads: Size
    ms: Positive | None
    failure: Text = ""


Mark = Literal["measured", "specified", "estimated"]


class Origin(msgspec.Struct, frozen=True):
    """The origin of a value.

    ``measured``: by splitedge on the board. ``specified``: published by its maker. ``estimated``: anything else.
    """

    mark: Mark
    source: Text  # a document, an address, or a formula


_MEASURED = Origin("measured", "edge-agent profile, on this board")


#: Which end of the `Band` of an estimated board a plan counts on.
Pace = Literal["fast", "middle", "slow"]


class Band(msgspec.Struct, frozen=True):
    """The spread of times of heads, as factors of the times that the profile states.

    A tenth of such boards and programs takes less than ``fast`` times as long, a tenth more than ``slow`` times.
    """

    fast: Annotated[float, Meta(gt=0, le=1)]
    slow: Annotated[float, Meta(ge=1, le=1000)]


class DeviceProfile(msgspec.Struct):
    """A device profile; see the module's docstring."""

    schema_version: int
    created: Text  # ISO 8601, UTC
    quick: bool
    machine: Machine
    kernels: Annotated[list[Kernel], Meta(max_length=limits.MAX_KERNEL_ROWS)]
    overhead: Overhead
    copy_gbps: Positive | None  # memory copy beyond the last cache, bytes read plus bytes written
    warmup: Warmup | None
    condition: Condition
    power: Power
    unmeasured: dict[Text, Text]  # what could not be measured, and why
    # Choices such as "instruction set" and "threads", with the reason. Older files lack it.
    chosen: dict[Text, Text] = {}
    # Origins by the field's path ("power.idle_watts", "kernels.pointwise"). Each holds for the fields within, too.
    # Fields without an entry were measured.
    origins: Annotated[dict[Text, Origin], Meta(max_length=200)] = {}
    # Older files lack both: their times count as they are. ``pace`` has no effect on a measured profile.
    band: Band | None = None
    pace: Pace = "slow"
    splitedge: Text = ""  # the version that measured; older files lack it
    # Older files and quick profiles lack these.
    # Older files and quick profiles lack these.
    bandwidths: Annotated[list[Bandwidth], Meta(max_length=100)] = []
    peaks: Annotated[list[Peak], Meta(max_length=limits.MAX_THREADS)] = []
    load: Load | None = None
    backends: Annotated[list[BackendTime], Meta(max_length=20)] = []


def origin(profile: DeviceProfile, path: str) -> Origin:
    """The origin of the field ``path`` ("power.load_watts"): its own entry, else that of the field around."""
    while path:
        if path in profile.origins:
            return profile.origins[path]
        path = path.rpartition(".")[0]
    return _MEASURED


def measured_origins(*fields: str) -> dict[str, Origin]:
    """Origins for ``fields`` that were measured on this board."""
    return dict.fromkeys(fields, _MEASURED)


def is_measured(profile: DeviceProfile) -> bool:
    """Whether all times in ``profile`` were measured on the board, so that a plan may run there."""
    return all(
        origin(profile, path).mark == "measured" for path in (*(f"kernels.{kind}" for kind in KINDS), "overhead")
    )


def require_measured(profile: DeviceProfile) -> None:
    """Raise `errors.ConfigError` for a profile whose times were not measured."""
    if not is_measured(profile):
        raise errors.ConfigError(
            f"the profile of {profile.machine.board or 'this board'} is estimated, not measured: "
            "run 'edge-agent profile' on the board, or use 'edge-agent plan --board' for what-if planning",
            reason="estimated",
        )


def from_dict(value: object) -> DeviceProfile:
    """The profile in a plan request.

    Raises `errors.ProtocolError` for another version, a malformed value, and a missing kind of kernel.
    """
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        found = repr(version)[:20]
        raise errors.ProtocolError(
            f"the device profile has schema {found}, but this program reads {SCHEMA_VERSION}: install the same version "
            "of splitedge on both sides, and run 'edge-agent profile' again",
            reason="schema-version",
        )
    try:
        profile = msgspec.convert(value, DeviceProfile)
    except (msgspec.ValidationError, RecursionError) as error:
        raise errors.ProtocolError(
            f"the device profile is malformed ({str(error)[:200]}): run 'edge-agent profile' again", reason="malformed"
        ) from error
    missing = [kind for kind in KINDS if not any(row.kind == kind and row.threads == 1 for row in profile.kernels)]
    if missing:
        raise errors.ProtocolError(
            f"the device profile lacks {', '.join(missing)} on one thread: run 'edge-agent profile' again",
            reason="not-measured",
            missing=missing,
        )
    return profile


def to_dict(profile: DeviceProfile) -> dict[str, Any]:
    """The profile as plain JSON values, for a plan request."""
    value: dict[str, Any] = msgspec.to_builtins(profile)
    return value


def load(path: Path) -> DeviceProfile:
    """The profile in the file ``path``. Raises `errors.ConfigError`."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.MAX_REQUEST_BYTES + 1)
        if len(data) > limits.MAX_REQUEST_BYTES:
            raise errors.ConfigError(
                f"{path} has more than {limits.MAX_REQUEST_BYTES} bytes: run 'edge-agent profile' to write a profile",
                reason="too-large",
            )
        return from_dict(msgspec.json.decode(data.removeprefix(BOM_UTF8)))
    except OSError as error:
        raise errors.ConfigError(
            f"the device profile {path} cannot be read ({error.strerror}): run 'edge-agent profile' to write one",
            reason="unreadable",
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.ConfigError(
            f"{path} is not JSON: run 'edge-agent profile' to write a profile", reason="not-a-profile"
        ) from error
    except errors.ProtocolError as error:
        raise errors.ConfigError(f"{path}: {error}", **error.data) from error


def require_folder(path: Path) -> None:
    """Raise `errors.StoreError` unless the folder of ``path`` exists."""
    if not path.parent.exists():
        raise errors.StoreError(
            f"the folder {path.parent} does not exist: create it, or choose another file", reason="no-folder"
        )


def save(profile: DeviceProfile, path: Path) -> None:
    """Write ``path`` atomically; a device or a pipe is written to, not replaced.

    Raises `errors.StoreError`, also if the folder does not exist.
    """
    require_folder(path)
    files.write(path, msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")

"""The device profile: what a board can do, as measured on it or, for what-if, as its maker says. JSON, versioned; it travels in a plan request.

Units are in the names: ``_us`` microseconds, ``_s`` seconds, ``_c`` degrees Celsius, ``gops`` 10^9 operations a second where a
multiply-accumulate is two operations. None means not known; `DeviceProfile.unmeasured` says why. `DeviceProfile.origins` says where each value
comes from: a measurement guesses nothing, and what was not measured is never carried out as if it had been (`require_measured`).
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

# A profile is network input on the server: every number is finite and bounded, so that no prediction divides by zero or overflows.
Count = Annotated[int, Meta(ge=0, le=1 << 50)]
Size = Annotated[int, Meta(ge=1, le=limits.MAX_DIM)]
Positive = Annotated[float, Meta(gt=0, le=1e12)]
Amount = Annotated[float, Meta(ge=0, le=1e12)]
Text = Annotated[str, Meta(max_length=300)]


class Machine(msgspec.Struct):
    board: Text | None  # as the firmware names it: "Raspberry Pi 5 Model B Rev 1.0"
    cpu: Text
    architecture: Text
    instruction_sets: Annotated[list[Text], Meta(max_length=100)]  # found, of those that matter to integer kernels
    isa: Text  # the one that the kernels use (kernels.isa)
    physical_cores: Size
    logical_cores: Size
    usable_cores: Size  # that this process may be scheduled on
    cpu_quota: Positive | None  # cores' worth of time that the control group allows; None: no limit
    memory_total_bytes: Count  # of the machine or, where lower, of the control group
    memory_available_bytes: Count
    last_cache_bytes: Count | None
    os: Text


class Shape(msgspec.Struct, frozen=True):
    """Sizes of one operator: input [h, w, c], output channels, square kernel, stride. Vectors have h = w = 1."""

    h: Size
    w: Size
    c: Size
    oc: Size
    k: Size = 1
    stride: Size = 1


class Kernel(msgspec.Struct):
    """One measurement: the median time of one operator, the executor's share of the call taken off."""

    kind: KernelKind
    name: Text
    shape: Shape
    threads: Size
    macs: Count
    bytes: Count  # activations read and written, weights read
    time_us: Positive
    sd_us: Amount
    runs: Size

    @property
    def gops(self) -> float:
        """10^9 operations a second; 0 where nothing is multiplied."""
        return 2e-3 * self.macs / self.time_us

    @property
    def gbps(self) -> float:
        """10^9 bytes a second, read and written."""
        return 1e-3 * self.bytes / self.time_us


class Overhead(msgspec.Struct):
    """What a frame costs beside its operators."""

    call_us: Amount  # one run of a head: Python, checks, copies
    op_us: Amount  # one more operator in the table
    value_ns: Amount = 0.0  # one value of the tensor that is sent: quantized and packed; older files do not say
    stage_ns: Annotated[
        dict[Text, Amount], Meta(max_length=20)
    ] = {}  # a value, by what is done to it beside that: `splitedge.codec.STAGES`


class Warmup(msgspec.Struct):
    """A new process: importing the kernels, preparing a head with every kind of kernel, its first run."""

    cache_warm: bool  # compiled kernels were on disk before the measurement
    cold_s: Amount | None  # with an empty cache: everything is compiled
    warm_s: Amount | None  # compiled kernels loaded from disk
    import_s: Amount | None  # of which the imports (warm)


class Throttling(msgspec.Struct):
    now: bool
    since_boot: bool | None  # None: the system does not remember
    reasons: Annotated[list[Text], Meta(max_length=20)]
    source: Text


class Condition(msgspec.Struct):
    """The state of the board while it was measured."""

    mhz_now: Positive | None
    mhz_max: Positive | None
    temperature_c: Annotated[float, Meta(ge=-100, le=300)] | None
    throttling: Throttling | None


class Power(msgspec.Struct):
    source: Literal["sensor", "declared", "unknown"]
    sensor: Text = ""
    idle_watts: Amount | None = None
    load_watts: Amount | None = None  # while kernels ran, or as declared


Mark = Literal["measured", "specified", "estimated"]
MARKS: tuple[Mark, ...] = ("measured", "specified", "estimated")


class Origin(msgspec.Struct, frozen=True):
    """Where a value comes from. ``measured``: by splitedge on the board itself; ``specified``: published by its maker; ``estimated``: all else."""

    mark: Mark
    source: Text  # a document, an address, or the formula


_MEASURED = Origin("measured", "edge-agent profile, on this board")


class DeviceProfile(msgspec.Struct):
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
    unmeasured: dict[Text, Text]  # what could not be measured: why
    chosen: dict[
        Text, Text
    ] = {}  # what was chosen ("instruction set", "threads"): the choice and why; older files do not say
    # A field by its path ("power.idle_watts"), a kind of kernel as "kernels.KIND": its origin, which holds for the fields within it too.
    # What is not listed was measured.
    origins: Annotated[dict[Text, Origin], Meta(max_length=200)] = {}


def origin(profile: DeviceProfile, path: str) -> Origin:
    """Where the field ``path`` ("power.load_watts", "kernels.pointwise") comes from: its own entry, else that of what it is a part of."""
    while path:
        if path in profile.origins:
            return profile.origins[path]
        path = path.rpartition(".")[0]
    return _MEASURED


def measured_origins(*fields: str) -> dict[str, Origin]:
    """The origins of ``fields`` that were measured on this board."""
    return dict.fromkeys(fields, _MEASURED)


def is_measured(profile: DeviceProfile) -> bool:
    """Whether the times in ``profile`` were measured on the board, so that a plan may be carried out there."""
    return all(
        origin(profile, path).mark == "measured" for path in (*(f"kernels.{kind}" for kind in KINDS), "overhead")
    )


def require_measured(profile: DeviceProfile) -> None:
    """Raise `errors.ConfigError` for a profile of a board that nobody measured."""
    if not is_measured(profile):
        raise errors.ConfigError(
            f"the profile of {profile.machine.board or 'this board'} was estimated, not measured: run 'edge-agent profile' on the board, "
            "or ask what-if with 'edge-agent plan --board'"
        )


def from_dict(value: object) -> DeviceProfile:
    """The profile in a plan request. Raises `errors.ProtocolError` if it is of another version, malformed, or lacks a kind of kernel."""
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        found = repr(version)[:20]
        raise errors.ProtocolError(
            f"the device profile has schema {found} and this program reads {SCHEMA_VERSION}: run 'edge-agent profile' again "
            "with the same version of splitedge on both sides"
        )
    try:
        profile = msgspec.convert(value, DeviceProfile)
    except (msgspec.ValidationError, RecursionError) as error:
        raise errors.ProtocolError(
            f"the device profile is malformed ({str(error)[:200]}): run 'edge-agent profile' again"
        ) from error
    missing = [kind for kind in KINDS if not any(row.kind == kind and row.threads == 1 for row in profile.kernels)]
    if missing:
        raise errors.ProtocolError(
            f"the device profile has no measurement of {', '.join(missing)} on one thread: run 'edge-agent profile' again"
        )
    return profile


def to_dict(profile: DeviceProfile) -> dict[str, Any]:
    """Plain JSON values, for a plan request."""
    value: dict[str, Any] = msgspec.to_builtins(profile)
    return value


def load(path: Path) -> DeviceProfile:
    """The profile in the file ``path``. Raises `errors.ConfigError` naming the file and what to do."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.MAX_REQUEST_BYTES + 1)
        if len(data) > limits.MAX_REQUEST_BYTES:
            raise errors.ConfigError(f"{path} is too large for a device profile: run 'edge-agent profile' to make one")
        return from_dict(msgspec.json.decode(data.removeprefix(BOM_UTF8)))
    except OSError as error:
        raise errors.ConfigError(
            f"the device profile {path} cannot be read ({error.strerror}): run 'edge-agent profile' to make one"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.ConfigError(f"{path} is not a device profile: run 'edge-agent profile' to make one") from error
    except errors.ProtocolError as error:
        raise errors.ConfigError(f"{path}: {error}") from error


def require_folder(path: Path) -> None:
    """Raise `errors.StoreError` unless the folder that ``path`` would be in is there."""
    if not path.parent.exists():
        raise errors.StoreError(f"the folder {path.parent} is not there: make it, or name another file")


def save(profile: DeviceProfile, path: Path) -> None:
    """Write ``path`` atomically; a device or a pipe is written into. Raises `errors.StoreError`, also where the folder is missing."""
    text = msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n"
    require_folder(path)
    files.write(path, text)

"""Reads the tensors in a file of ``torch.save``, in its format before version 1.6, without torch and without `pickle`.

Such a file is five pickles, followed by the values of each storage. A pickle is a program for a stack machine. This one
runs the few instructions that a dictionary of tensors needs: it imports and calls nothing, and any other instruction
is an error. The only calls that it knows make an ordered dictionary and a view of a storage.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitedge import errors

Array = NDArray[Any]

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL: Final = 1001
#: torch's names of the storage types in the file.
_STORAGES: Final[dict[str, np.dtype[Any]]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch LongStorage": np.dtype("<i8"),
}
_DICTIONARY: Final = "collections OrderedDict"
_TENSOR: Final = "torch._utils _rebuild_tensor_v2"
_MAX_VALUES: Final = 8 << 20  # of a storage


class _Storage:
    """A storage that the pickle references; its values follow after all pickles."""

    def __init__(self, dtype: np.dtype[Any], count: int) -> None:
        self.dtype, self.count = dtype, count
        self.values: Array = np.empty(0, dtype)


class _Tensor(NamedTuple):
    """A whole storage viewed as a tensor; ``axes`` are its axes in storage order."""

    storage: _Storage
    shape: tuple[int, ...]
    axes: tuple[int, ...]


class _Name(str):
    """A name that a pickle would import. It is only compared."""


def parse(data: bytes) -> dict[str, Array]:
    """The float32 and int64 tensors in ``data`` by name, one for each storage. Raises `errors.ModelError`."""
    stream, storages = io.BytesIO(data), dict[str, _Storage]()
    try:
        magic, protocol, system = (_run(stream, storages) for _ in range(3))
        if magic != _MAGIC or protocol != _PROTOCOL or not system["little_endian"]:
            raise ValueError("not a file of torch.save, before version 1.6")
        tensors, order = _run(stream, storages), _run(stream, storages)
        if set(order) != set(storages):
            raise ValueError("storages are missing")
        for key in order:
            _fill(storages[key], stream)
        if stream.read(1):
            raise ValueError("bytes are left over")
        return {str(name): _array(tensor) for name, tensor in tensors.items()}
    except Exception as error:  # the file is untrusted: any failure, such as an empty stack, means a bad file
        raise errors.ModelError(f"cannot read the weights file ({error})", reason="unreadable") from error


def _run(stream: io.BytesIO, storages: dict[str, _Storage]) -> Any:
    """The value of the pickle at the position of ``stream``, which moves behind it."""
    machine = _Machine(storages)
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STOP":
            (value,) = machine.stack
            return value
        machine.step(opcode.name, argument)
    raise ValueError("no end")


class _Machine:
    """The stack, the marks in it and the memo of one pickle."""

    def __init__(self, storages: dict[str, _Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Run one instruction. Raises `ValueError` for one that tensors do not need."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"):
            self.stack.append(argument)
        elif name == "GLOBAL":
            self.stack.append(_Name(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in _CALLS:
            _CALLS[name](self)
        elif name != "PROTO":
            raise ValueError(f"the instruction {name} is not allowed")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        return [self.stack.pop() for _ in range(count)][::-1]

    def behind_mark(self) -> list[Any]:
        return self.pop(len(self.stack) - self.marks.pop())

    def tuple_of(self, values: Sequence[Any]) -> None:
        self.stack.append(tuple(values))

    def set_items(self, values: Sequence[Any]) -> None:
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def append(self) -> None:
        values = self.behind_mark()
        self.stack[-1].extend(values)

    def call(self) -> None:
        name, arguments = self.pop(2)
        if not isinstance(name, _Name) or name not in (_DICTIONARY, _TENSOR):
            raise ValueError(f"{name} is not allowed")
        self.stack.append({} if name == _DICTIONARY else _tensor(*arguments))

    def storage(self) -> None:
        ((kind, name, key, _, count, view),) = self.pop(1)
        dtype = _STORAGES.get(name) if isinstance(name, _Name) else None
        if kind != "storage" or view is not None or dtype is None:
            raise ValueError("a storage of another kind")
        if not isinstance(count, int) or not 0 < count <= _MAX_VALUES:
            raise ValueError("a storage of impossible size")
        self.stack.append(self.storages.setdefault(key, _Storage(dtype, count)))


_CONSTANTS: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
}
_CALLS: Final[dict[str, Callable[[_Machine], None]]] = {
    "TUPLE": lambda machine: machine.tuple_of(machine.behind_mark()),
    "TUPLE1": lambda machine: machine.tuple_of(machine.pop(1)),
    "TUPLE2": lambda machine: machine.tuple_of(machine.pop(2)),
    "TUPLE3": lambda machine: machine.tuple_of(machine.pop(3)),
    "SETITEM": lambda machine: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine: machine.set_items(machine.behind_mark()),
    "APPENDS": _Machine.append,
    "REDUCE": _Machine.call,
    "BINPERSID": _Machine.storage,
    "BUILD": lambda machine: machine.pop(1).clear(),  # torch's versions of modules
}


def _tensor(storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_: object) -> _Tensor:
    """A tensor. It must cover its whole storage, with axes in any order."""
    axes = tuple(sorted(range(len(shape)), key=lambda axis: (-strides[axis], -shape[axis])))
    dense = all(
        strides[axis] == math.prod(shape[inner] for inner in axes[place + 1 :])
        for place, axis in enumerate(axes)
        if shape[axis] > 1
    )
    if offset or len(strides) != len(shape) or math.prod(shape) != storage.count or not dense:
        raise ValueError("a tensor that is not its whole storage")
    return _Tensor(storage, tuple(shape), axes)


def _fill(storage: _Storage, stream: io.BytesIO) -> None:
    """Read the storage's values: an 8-byte count, then the values."""
    size = storage.count * storage.dtype.itemsize
    head, data = stream.read(8), stream.read(size)
    if int.from_bytes(head, "little") != storage.count or len(data) != size:
        raise ValueError("the file is truncated")
    storage.values = np.frombuffer(data, storage.dtype)


def _array(tensor: _Tensor) -> Array:
    stored = tensor.storage.values.reshape([tensor.shape[axis] for axis in tensor.axes])
    return np.ascontiguousarray(stored.transpose(np.argsort(tensor.axes)) if tensor.axes else stored)

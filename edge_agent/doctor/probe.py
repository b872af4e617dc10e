"""The child process of the doctor: import the kernels, run a head, and print what was found.

Each stage prints its name before it begins, so that a crash shows its place. The last line is `Facts` in JSON.
"""

from __future__ import annotations

import sys

import msgspec

from edge_agent.doctor.kernel_library import Facts


def main() -> None:
    """Print stages and facts."""
    _begin("numpy")
    import numpy  # noqa: F401

    _begin("kernels")
    from kernels import native, warm

    advice = warm.advice()
    missing = 0 if advice else len(warm.missing())
    ready = not advice and not missing
    if ready:
        _begin("run")
        from device_profiles.measurement import check_kernels

        check_kernels()
    library = native.LIBRARY.path.name if native.LIBRARY is not None else ""
    facts = Facts(library, native.REASON, str(warm.folder()), advice, len(warm.steps()), missing, ready)
    sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")


def _begin(stage: str) -> None:
    print(stage, flush=True)


if __name__ == "__main__":
    main()

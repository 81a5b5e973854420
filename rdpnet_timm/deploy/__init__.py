"""From a model to the file that an edge device runs: ONNX, OpenVINO, torch.export, TorchScript, in float and INT8."""

from .calibration import Calibration
from .equalize import NotStraight, equalize
from .export import Artifact, export

__all__ = ["Artifact", "Calibration", "NotStraight", "equalize", "export"]

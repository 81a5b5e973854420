"""From a model to the file that an edge device runs: ONNX, OpenVINO, torch.export, TorchScript, in float and INT8."""

from .artifacts import Artifact, export
from .calibration import Calibration
from .equalization import NotStraight, equalize

__all__ = ["Artifact", "Calibration", "NotStraight", "equalize", "export"]

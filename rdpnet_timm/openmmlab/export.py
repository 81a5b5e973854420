"""Export of OpenMMLab's networks to ONNX: a detector's or segmentor's backbone, and a whole segmentor's logits.

``rdpnet export CONFIG [--checkpoint FILE] -o OUTPUT [--size H W]``

What a detector does behind its backbone and neck, choosing and suppressing boxes, is not exported: the number of its
boxes depends on the picture, and each runtime has its own operators for it. MMDeploy exists for that.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from ..convert import reparameterize
from ..deploy.formats import to_onnx
from ..extras import require
from ..files import all_or_nothing, sha256
from ..measure.difference import Difference, evaluating

__all__ = ["export_openmmlab"]


class _Segmentor(nn.Module):
    """Normalised images ``(N, 3, H, W)`` to logits ``(N, classes, H, W)``."""

    def __init__(self, model: Any, size: Tuple[int, int]) -> None:
        super().__init__()
        self.model, self.metas = model, [{"img_shape": size}]

    def forward(self, x: Tensor) -> Tensor:
        return self.model.encode_decode(x, self.metas)


def export_openmmlab(
    config: Union[str, Path],
    output: Union[str, Path],
    checkpoint: Union[str, Path, None] = None,
    size: Tuple[int, int] = (512, 512),
    tolerance: float = 1e-4,
) -> Dict[str, Difference]:
    """Write ``backbone.onnx`` and, of a segmentor, ``segmentor.onnx``, each with a JSON; all of them, or nothing.

    Each is run in ONNX Runtime on random images and compared with the train form in PyTorch.

    Args:
        config: of mmdet or mmseg.
        output: the folder to write to.
        checkpoint: as mmengine saves it; without it the weights are as the config initialises them.
        size: ``(H, W)`` of the images.
        tolerance: largest difference, as a fraction of the largest output.

    Returns:
        The largest difference of each file's outputs.

    Raises:
        RuntimeError: a file differs from the model by more than is tolerated.
        OSError: ``output`` cannot be written.
    """
    runtime = require("onnxruntime", "comparing the exported network")
    model = _build(Path(config), checkpoint)
    deployed = reparameterize(model)
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    parts: Dict[str, Tuple[nn.Module, nn.Module]] = {"backbone": (model.backbone, deployed.backbone)}
    if hasattr(model, "encode_decode"):
        parts["segmentor"] = (_Segmentor(model, size), _Segmentor(deployed, size))
    found = {}
    with all_or_nothing(Path(output)) as folder:
        for name, (original, merged) in parts.items():
            with evaluating(original, merged):
                expected = original(x)
                expected = [expected] if isinstance(expected, Tensor) else list(expected)
                names = ["logits"] if name == "segmentor" else [f"map{index}" for index in range(len(expected))]
                to_onnx(merged, x, folder / f"{name}.onnx", outputs=names)
            session = runtime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
            outputs = session.run(names, {"image": x.numpy()})
            differences = [Difference.between(a.numpy(), np.asarray(b)) for a, b in zip(expected, outputs)]
            found[name] = max(differences, key=lambda difference: difference.largest)
            if not found[name].largest <= tolerance:
                raise RuntimeError(
                    f"{name}.onnx differs from the model by {found[name].largest:.2e}; nothing was written"
                )
            facts = {
                "config": Path(config).name,
                "input": {"shape": list(x.shape), "dtype": "float32", "values": "normalised"},
                "outputs": {key: list(value.shape) for key, value in zip(names, outputs)},
                "preprocessing": _preprocessing(model),
                "classes": list((getattr(model, "dataset_meta", None) or {}).get("classes", [])) or None,
                "difference": found[name]._asdict(),
                "sha256": sha256(folder / f"{name}.onnx"),
            }
            (folder / f"{name}.onnx.json").write_text(json.dumps(facts, indent=1) + "\n")
    return found


def _build(config: Path, checkpoint: Union[str, Path, None]) -> Any:
    if not config.is_file():
        raise FileNotFoundError(f"no config at '{config}'")
    require("mmengine", "export of OpenMMLab's networks")
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.runner import load_checkpoint

    settings = Config.fromfile(config)
    scope = settings.get("default_scope", "mmdet")
    require(scope, "export of this config")
    require(f"{scope}.utils", "export of this config").register_all_modules(init_default_scope=False)
    init_default_scope(scope)
    settings.model.backbone.pop("init_cfg", None)
    model = revert_sync_batchnorm(MODELS.build(settings.model))
    if checkpoint is not None:
        loaded = load_checkpoint(model, str(checkpoint), map_location="cpu")
        model.dataset_meta = (loaded.get("meta") or {}).get("dataset_meta")
    return model.eval().requires_grad_(False)


def _preprocessing(model: Any) -> Dict[str, Optional[List[float]]]:
    """Mean and std by channel, for pixels of 0 to 255 in RGB, as the model's data preprocessor has them."""
    values = {name: getattr(model.data_preprocessor, name, None) for name in ("mean", "std")}
    return {name: None if value is None else value.flatten().tolist() for name, value in values.items()}

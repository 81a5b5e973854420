"""Whole detectors and segmentors: beside PyTorch on a config's test data, and as contestants of Tables 6 and 7."""

import json
import tempfile
from contextlib import contextmanager
from functools import cached_property, partial
from importlib import import_module
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from ..convert import reparameterize
from ..deploy.artifacts import columns
from ..deploy.formats import FORMATS, trace_to_onnx
from ..files import configs
from ..measure.forms import settle_norms
from ..measure.timing import measure
from ..openmmlab.agreement import Agreement, Answer, agreement, openmmlab_answers
from ..openmmlab.detector import Detector
from ..openmmlab.export import DENSE, build, drawn_pictures, dynamic_axes, traceable
from ..openmmlab.segmentor import Segmentor
from .backends import CALIBRATION_IMAGES, Form, images_like

__all__ = ["CANDIDATES", "PictureForm", "Row", "as_json", "compare", "random_network", "table"]

CANDIDATES = 300  # boxes that pass a random detector's threshold, for the last suppression to choose from


def random_network(config: str) -> Union[Detector, Segmentor]:
    """The whole network of a config of ``mm_configs`` in its deploy form, with random weights and settled norms."""
    model, settings = build(configs() / config)
    # a detector has norms in its backbone alone
    settle_norms(model.backbone if hasattr(model, "roi_head") else model, images_like((3, 128, 128), 4))
    return traceable(reparameterize(model), settings)


class PictureForm(Form):
    """A whole network, and the picture it is timed with; INT8 is for what comes before the choice of boxes.

    Args:
        network: as it is exported.
        size: ``(H, W)`` of the pictures.
    """

    has_snr = False  # boxes are no signal, and those of random weights are worth no comparison
    parts = DENSE

    def __init__(self, network: Union[Detector, Segmentor], size: Tuple[int, int]) -> None:
        self.network = network
        self.pictures = drawn_pictures(size, 1 + CALIBRATION_IMAGES)
        super().__init__(network, torch.from_numpy(self.pictures[0]))
        if isinstance(network, Detector):
            with torch.no_grad():
                _find_alike(network, self.x)

    @cached_property
    def onnx(self) -> bytes:
        """What `rdpnet export` writes for pictures of this size."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "whole.onnx"
            axes = dynamic_axes(self.network, (self.x.shape[0], self.x.shape[1]))
            trace_to_onnx(self.network, self.x, path, self.network.outputs, axes)
            return path.read_bytes()

    @cached_property
    def calibration(self) -> Sequence[np.ndarray]:
        """Pictures ``(H, W, 3)`` that ranges are taken from."""
        return self.pictures[1:]


def _find_alike(network: Detector, picture: torch.Tensor) -> None:
    """Let a detector of random weights propose and find as many boxes in ``picture`` as any other.

    What stands behind the proposals costs by their number, and how many random weights leave is an accident: 184 to 696
    of 1000 were seen. So boxes stay near their anchors, where they have an area, suppressed ones fill up the proposals,
    and the threshold is one that so many boxes pass.
    """
    network.fills_proposals = True
    for layer in (network.rpn_head.rpn_reg, network.bbox_head.fc_reg):
        largest = max(float(moves.abs().max()) for moves in _outputs(network, layer, picture))
        for parameter in layer.parameters():
            parameter.mul_(0.1 / largest)
    chances = _outputs(network, network.bbox_head.fc_cls, picture)[0].softmax(1)[:, :-1].flatten()
    network.score_threshold = float(chances.topk(CANDIDATES + 1).values[-1])


def _outputs(network: Detector, layer: torch.nn.Module, picture: torch.Tensor) -> List[torch.Tensor]:
    """What ``layer`` answers while the network looks at a picture, by call."""
    outputs: List[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    network(picture)
    handle.remove()
    return outputs


class Row(NamedTuple):
    """One contestant.

    Attributes:
        name: of the file, or of the form in PyTorch.
        runtime: what runs it.
        score: mAP or mIoU, as the config's evaluator has it.
        agreement: with PyTorch's deploy form.
        milliseconds: shortest time of one picture, on one thread.
    """

    name: str
    runtime: str
    score: float
    agreement: Agreement
    milliseconds: float


def compare(
    config: Union[str, Path],
    checkpoint: Union[str, Path],
    artifacts: Sequence[Union[str, Path]],
    limit: Optional[int] = None,
    rounds: int = 20,
) -> List[Row]:
    """Run exported files and both forms in PyTorch over a config's test pictures, all that there are or the first ones.

    Args:
        config: of mmdet or mmseg.
        checkpoint: what was exported.
        artifacts: ``.onnx`` files, which both runtimes run, and OpenVINO's ``.xml``.
        limit: number of pictures.
        rounds: timed calls of each, in turns.

    Raises:
        ValueError: a file of another kind.
    """
    from mmengine.evaluator import Evaluator
    from mmengine.registry import DATASETS

    model, settings = build(config, checkpoint)
    contestants: Dict[Tuple[str, str], Callable[[np.ndarray], Answer]] = {
        ("train form", "PyTorch"): openmmlab_answers(model, settings),
        ("deploy form", "PyTorch"): openmmlab_answers(reparameterize(model), settings),
    }
    paths = list(map(Path, artifacts))
    names = [path.name for path in paths]
    for path in paths:
        label = path.name if names.count(path.name) == 1 else str(path)  # of one name, in different folders
        formats = {".onnx": ("onnx", "openvino"), ".xml": ("openvino",)}.get(path.suffix)
        if formats is None:
            raise ValueError(f"expected files that end in .onnx or .xml, got '{path}'")
        for name in formats:
            kind = FORMATS[name]
            assert kind.load_all is not None
            contestants[label, _RUNTIMES[name]] = kind.load_all(path, 1, kind.options[0])
    dataset = DATASETS.build(settings.test_dataloader.dataset)
    count = min(limit or len(dataset), len(dataset))
    evaluators, answers = {}, {key: [] for key in contestants}  # type: Dict[Any, Any], Dict[Any, List[Answer]]
    for key in contestants:
        evaluators[key] = Evaluator(settings.test_evaluator)
        evaluators[key].dataset_meta = dataset.metainfo
    picture = np.zeros((1, 1, 3), np.uint8)
    for index in range(count):
        sample = dataset[index]["data_samples"]
        picture = _read(sample.img_path)
        for key, run in contestants.items():
            answer = [np.array(each) for each in run(picture)]
            answers[key].append(answer)
            evaluators[key].process([_judged(sample, answer)])
    timed = measure({"|".join(key): partial(run, picture) for key, run in contestants.items()}, rounds, primed=False)
    rows = []
    for key in contestants:
        with _without_forks(settings.default_scope):
            scores = evaluators[key].evaluate(count)
        score = next(value for name, value in scores.items() if name.endswith(("mAP", "mIoU")))
        alike = agreement(answers["deploy form", "PyTorch"], answers[key])
        rows.append(Row(*key, float(score), alike, timed.minimum("|".join(key))))
    return rows


@contextmanager
def _without_forks(scope: str) -> Iterator[None]:
    """Let mmdet count in threads: a process that it forks may wait for ever for a lock that a runtime's thread held."""
    if scope != "mmdet":
        yield
        return
    mean_ap: Any = import_module("mmdet.evaluation.functional.mean_ap")
    forking, mean_ap.Pool = mean_ap.Pool, ThreadPool
    try:
        yield
    finally:
        mean_ap.Pool = forking


_RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def _read(path: str) -> np.ndarray:
    """A picture as OpenMMLab loads it, RGB."""
    import mmcv

    return np.ascontiguousarray(mmcv.imread(path)[..., ::-1])


def _judged(sample: Any, answer: Answer) -> Any:
    """A sample of the data with an answer in it, as an evaluator takes it."""
    from mmengine.structures import InstanceData, PixelData

    sample = sample.clone()
    if len(answer) == 3:
        boxes, scores, labels = (torch.from_numpy(each) for each in answer)
        sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
    else:
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(answer[0].astype(np.int64))[None])
    return sample


def table(rows: Sequence[Row]) -> str:
    """What was found, for the screen."""
    cells = [["network", "runtime", "score", "same", "near", "least overlap", "largest score difference", "ms"]]
    for row in rows:
        found = row.agreement
        cells.append(
            [
                row.name,
                row.runtime,
                f"{row.score:.4f}",
                f"{found.same:.2%} of {found.compared}",
                f"{found.near:.2%}",
                f"{found.overlap:.4f}",
                f"{found.score:.1e}",
                f"{row.milliseconds:.1f}",
            ]
        )
    return columns(cells)


def as_json(rows: Sequence[Row]) -> str:
    """The same as JSON."""
    return json.dumps([{**row._asdict(), "agreement": row.agreement._asdict()} for row in rows], indent=1) + "\n"

"""Whole detectors and segmentors beside PyTorch: their score on a config's test data, their boxes, their latency."""

import json
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from ..convert import reparameterize
from ..deploy.artifacts import columns
from ..deploy.formats import FORMATS
from ..measure.timing import measure
from ..openmmlab.agreement import Agreement, Answer, agreement, openmmlab_answers
from ..openmmlab.export import build

__all__ = ["Row", "as_json", "compare", "table"]


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
        scores = evaluators[key].evaluate(count)
        score = next(value for name, value in scores.items() if name.endswith(("mAP", "mIoU")))
        alike = agreement(answers["deploy form", "PyTorch"], answers[key])
        rows.append(Row(*key, float(score), alike, timed.minimum("|".join(key))))
    return rows


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

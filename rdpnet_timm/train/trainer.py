"""One training run: resumable at any step, seeded, logged as JSON lines, its result evaluated in both forms."""

import itertools
import json
import math
import signal
import time
import traceback
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Callable, Dict, Generator, Iterator, List, Optional, Sequence, Tuple, Union

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.layers import to_2tuple
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..allocator import keep_freed_memory
from ..blocks import RDPModule
from ..checkpoint import load_checkpoint, load_model
from ..convert import reparameterize
from ..files import atomic_path, require_writable, sha256
from ..fused.conditions import IN_GRAPH
from ..measure.difference import evaluating, without_tf32
from ..signals import handled
from .data import Images, augmented_batch, mixed_batch, normalized, preparation
from .progress import say_aside
from .recipe import Recipe
from .recorded import Recorded, update

__all__ = ["Evaluation", "Job", "Result", "Run", "compile_model", "evaluate", "predict", "train", "train_together"]

Report = Callable[[int, int, Dict[str, float]], None]
AT_ONCE = 500 * 32 * 32  # pixels of one batch to evaluate: activations take up to a gigabyte or two
STAGGER = 50  # steps by which a run begins after the one before it, see train_together


@dataclass(frozen=True)
class Run:
    """What is trained, and on what machine.

    Attributes:
        model: name of a timm model.
        recipe: how to train.
        seed: of the initialisation, the order of the images and their augmentation.
        model_args: arguments of the model, such as ``shuffle_groups=0``.
        device: 'cpu', 'cuda', ...
        amp: autocast to bfloat16.
        compile: mode of ``torch.compile``; '' does not compile. With these two, '' and 'default', whole steps are
            recorded as CUDA graphs on a GPU; modes such as 'reduce-overhead' record parts of them by themselves.
        weights: what the model begins with: a checkpoint, or a timm name for its pretrained weights; a classifier of
            other classes, by number or by name, is made anew. '' begins at random.

    Raises:
        ValueError: ``model_args`` says what the data say or cannot be written, or the seed is none of torch's.
    """

    model: str
    recipe: Recipe
    seed: int = 0
    model_args: Tuple[Tuple[str, Any], ...] = ()
    device: str = "cpu"
    amp: bool = False
    compile: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"a seed is a whole number of at most 64 bits, got {self.seed}")
        refused = [
            name
            for name, value in self.model_args
            if name in ("num_classes", "pretrained") or (name == "in_chans" and value != 3)
        ]
        if refused:
            raise ValueError(
                f"--model-args cannot say {', '.join(refused)}: the data say how many classes there are, pictures are "
                "read in three colours, and what to begin with is said by --weights"
            )
        try:
            json.dumps(dict(self.model_args))  # as weights and card will say them, at the end
        except TypeError as error:
            raise ValueError(f"--model-args must be what JSON can say, numbers, texts and lists: {error}") from None

    def create_model(self, classes: Sequence[str]) -> nn.Module:
        """The model for ``classes``, in channels_last, as ``weights`` has it, or initialised by the seed alone.

        Raises:
            RuntimeError: ``weights`` are in the deploy form, or of a network with other arguments.
            ValueError: the arguments are wrong, or ``weights`` are of another model.
        """
        torch.manual_seed(self.seed)
        arguments = dict(self.model_args)
        try:
            if self.weights:
                model = self._begun_with(arguments, classes)
            else:
                model = timm.create_model(self.model, num_classes=len(classes), **arguments)
        except (AssertionError, TypeError) as error:
            raise ValueError(f"{self.model} cannot be created with the arguments {arguments}: {error}") from error
        return model.to(device=self.device, memory_format=torch.channels_last)

    def _begun_with(self, arguments: Dict[str, Any], classes: Sequence[str]) -> nn.Module:
        if Path(self.weights).is_file():
            # created by the arguments of this run, as the weights that it writes will say, and compared with the file's
            theirs = load_model(self.weights, self.model)
            model = timm.create_model(self.model, num_classes=theirs.num_classes, **arguments)
            load_checkpoint(model, self.weights)
            model.pretrained_cfg.update(arguments.get("pretrained_cfg_overlay", {}))  # which counts before the file's
            names = theirs.pretrained_cfg.get("label_names")
        elif self.weights.partition(".")[0] == self.model.partition(".")[0]:
            model = load_model(self.weights, **arguments)
            names = model.pretrained_cfg.get("label_names")
        else:
            raise ValueError(
                f"'{self.weights}' is no file, and no name of weights of {self.model} (--weights, --model): give a "
                "checkpoint of this model, or its name, with a tag or without"
            )
        if model.num_classes != len(classes) or (names and tuple(names) != tuple(classes)):
            model.reset_classifier(len(classes))
        return model

    @property
    def image_size(self) -> Tuple[int, int]:
        """Height and width of the images that the model takes."""
        arguments, config = dict(self.model_args), timm.get_pretrained_cfg(self.model)
        own = config.input_size[1:] if config else (32, 32)
        told = arguments.get("pretrained_cfg_overlay", {}).get("input_size", (3, *own))[1:]
        height, width = to_2tuple(arguments.get("img_size") or told)
        return height, width

    def creation_args(self, model: nn.Module, images: Images) -> Dict[str, Any]:
        """What timm needs beside the name to create the ``model`` again and to prepare pictures as ``images`` were."""
        arguments = dict(self.model_args, num_classes=len(images.classes))
        own = timm.get_pretrained_cfg(self.model)
        said = resolve_data_config(pretrained_cfg=own.to_dict() if own else {})
        prepared = preparation(images.pixels.shape[1:3])
        trained = {part: getattr(prepared, part) for part in ("input_size", "interpolation", "crop_pct", "crop_mode")}
        trained.update({part: tuple(model.pretrained_cfg[part]) for part in ("mean", "std")})
        overlay = {
            **arguments.get("pretrained_cfg_overlay", {}),
            **{part: value for part, value in trained.items() if said[part] != value},
        }
        return {**arguments, "pretrained_cfg_overlay": overlay} if overlay else arguments

    @cached_property
    def origin(self) -> str:
        """``weights`` as a card names them: a file by its name and SHA-256 sum, as it was when the run began."""
        path = Path(self.weights)
        return f"{path.name}, SHA-256 {sha256(path)}" if self.weights and path.is_file() else self.weights


@dataclass(frozen=True)
class Evaluation:
    """``correct`` of ``total`` images, and the mean cross-entropy."""

    correct: int
    total: int
    loss: float

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * self.correct / self.total


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        model: in the train form.
        train_form: test results in this form, float32.
        deploy_form: the same in the other one.
        history: the lines of ``log.jsonl``.
        training_images: their number.
        digests: of training and test images, see :meth:`Images.digest`.
    """

    model: nn.Module
    train_form: Evaluation
    deploy_form: Evaluation
    history: List[Dict[str, float]]
    training_images: int
    digests: Tuple[str, str]


def predict(model: nn.Module, images: Images, amp: bool = False) -> Tensor:
    """Logits ``(N, classes)``, float32, in evaluation mode, for ``images`` that lie on the model's device.

    A batch has as many pixels as 500 images of 32x32: larger images come in smaller ones. On a GPU too convolutions
    keep all of float32's mantissa: what decides whether half precision costs a picture must be more exact than that.

    Raises:
        ValueError: the model has another number of classes than the images.
    """
    logits = []
    height, width = images.pixels.shape[1:3]
    batch_size = max(1, AT_ONCE // (height * width))
    with evaluating(model), without_tf32():
        for pixels in images.pixels.split(batch_size):
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=amp):
                logits.append(model(_normalized(pixels.permute(0, 3, 1, 2), model)).float())
    if logits[0].shape[1] != len(images.classes):
        raise ValueError(
            f"the model has {logits[0].shape[1]} classes, the images have {len(images.classes)}: "
            f"{', '.join(images.classes[:5])}...; take weights that were trained on these classes"
        )
    return torch.cat(logits)


def evaluate(model: nn.Module, images: Images, amp: bool = False) -> Evaluation:
    """Classify ``images``, see :func:`predict`."""
    logits = predict(model, images, amp)
    correct = int((logits.argmax(1) == images.labels).sum())
    return Evaluation(correct, len(images), float(F.cross_entropy(logits.double(), images.labels)))


def _normalized(pixels: Tensor, model: nn.Module) -> Tensor:
    return normalized(pixels, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


def train(
    run: Run,
    data: Tuple[Images, Images],
    output: Union[str, Path],
    report: Report = lambda step, steps, record: None,
) -> Result:
    """Train, from where a former call with the same ``output`` was stopped.

    Every random number is a function of the seed and the number of the step, dropout's too, for which torch's global
    generator is seeded anew at each step. So a run that was stopped ends with the same weights as one that was not, to
    the bit on a CPU with the same number of threads. It can be stopped by SIGTERM, SIGHUP or Ctrl-C, which writes a
    checkpoint, or in any other way, which loses five minutes at most. Only finite numbers ever replace a checkpoint.

    Args:
        run: what to train.
        data: training images and test images.
        output: a folder for ``checkpoint.pt`` and ``log.jsonl``, one line an epoch.
        report: called after every step with its number, their total and, after an epoch, its record.

    Raises:
        ValueError: ``output`` holds another run (of another recipe, other data, another precision), a broken one, or
            weights whose checkpoint is gone; there are no images; the recipe's crops or small images do not fit these;
            the model gives more than logits.
        OSError: ``output`` cannot be written, or the checkpoint in it not be read.
        SystemExit: with status 143, 129 or 130, after a signal.
        FloatingPointError: the loss or the weights are not finite; the last good checkpoint is kept.
    """
    (result,) = train_together([Job(run, data, output, report)])
    if isinstance(result, BaseException):
        raise result
    return result


@dataclass(frozen=True)
class Job:
    """The arguments of :func:`train`, for one of several runs."""

    run: Run
    data: Tuple[Images, Images]
    output: Union[str, Path]
    report: Report = lambda step, steps, record: None


def train_together(
    jobs: Sequence[Job],
    finish: Callable[[Job, Result], object] = lambda job, result: None,
    at_once: Optional[int] = None,
) -> List[Union[Result, Exception]]:
    """Train several runs in one process, a step of each in turn; on a GPU each in a stream of its own.

    A small network leaves most of a GPU idle, and processes would share it one after the other: what runs at the same
    time has to come from one process. On a CPU nothing is gained over one run after the other.

    Args:
        jobs: the runs; they may differ in everything.
        finish: called with each run that has come to its end, at once.
        at_once: how many run at the same time; all by default.

    Returns:
        The results in the order of ``jobs``; in place of one what the run raised, which does not end the others.

    Raises:
        SystemExit: with status 143, 129 or 130, after a signal, when all runs have written their checkpoints.
    """
    found: Dict[int, Union[Result, Exception]] = {}
    waiting = list(enumerate(jobs))
    running: List[Tuple[int, Job, Generator[None, None, Result], Optional[torch.cuda.Stream]]] = []
    stop: Optional[SystemExit] = None
    with _stop_signals() as stopped:
        for turn in itertools.count():
            # Runs that came to the ends of their epochs together would leave the GPU idle while they evaluate.
            if waiting and not stopped and turn % STAGGER == 0 and len(running) < (at_once or len(jobs)):
                index, job = waiting.pop(0)
                running.append((index, job, _training(job, stopped), _stream(job.run.device)))
            if not running and (stopped or not waiting):
                break
            for each in list(running):
                index, job, steps, stream = each
                try:
                    with torch.cuda.stream(stream):
                        result = _advanced(steps)
                        if result is None:
                            continue
                        finish(job, result)
                        found[index] = result
                except SystemExit as exit:
                    if not stopped:  # it is not ours: a report ends the program
                        raise
                    stop = exit
                except Exception as error:
                    _clear_frames(error)
                    found[index] = error
                running.remove(each)
    if stopped and (stop or waiting):
        raise stop or SystemExit(128 + stopped[0])
    return [found[index] for index in range(len(jobs))]


def _clear_frames(error: BaseException) -> None:
    """Let go of what the functions held that ``error`` came through: kept for its message, it would keep that too."""
    each: Optional[BaseException] = error
    while each is not None:
        traceback.clear_frames(each.__traceback__)
        each = each.__context__


def _advanced(steps: Generator[None, None, Result]) -> Optional[Result]:
    """Take a step; the result where there was none left."""
    try:
        return next(steps)
    except StopIteration as end:
        return end.value


def _stream(device: str) -> Optional[torch.cuda.Stream]:
    return torch.cuda.Stream(device) if torch.device(device).type == "cuda" else None


def _training(job: Job, stopped: List[int]) -> Generator[None, None, Result]:
    """The run of :func:`train`, a step each time it is asked for the next; ``stopped`` holds a signal once one came."""
    run, data, output, report = job.run, job.data, Path(job.output), job.report
    require_writable(output)
    device = torch.device(run.device)
    if device.type == "cpu":
        keep_freed_memory()
    digests = data[0].digest(), data[1].digest()
    training, test = (images.to(run.device) for images in data)
    recipe, classes = run.recipe, len(training.classes)
    batch_size = min(recipe.batch_size, len(training))
    if not len(training) or not len(test):
        raise ValueError(f"nothing to learn from: {len(training)} training images and {len(test)} test images")
    side = min(training.pixels.shape[1:3])
    if recipe.crop_padding >= side:
        raise ValueError(
            f"crop_padding must be below the side of the images, {side}, of which it is a reflection; got "
            f"{recipe.crop_padding}"
        )
    if recipe.cutout >= side:
        raise ValueError(
            f"cutout must be below the side of the images, {side}, or nothing is left of one; got {recipe.cutout} "
            f"(--set cutout={side // 4})"
        )
    epoch_steps = len(training) // batch_size
    steps = max(1, round(recipe.epochs * epoch_steps))

    model = run.create_model(training.classes)
    size = tuple(training.pixels.shape[1:3])
    has_one_size = model.pretrained_cfg.get("fixed_input_size")
    if has_one_size and size != run.image_size:
        raise ValueError(
            f"{run.model} takes images of {run.image_size[0]}x{run.image_size[1]} alone, and these have "
            f"{size[0]}x{size[1]}: create it for them (--model-args img_size={size[0]})"
        )
    if recipe.small_epochs and (has_one_size or recipe.small_size > min(size)):
        reason = f"{run.model} takes images of one size alone" if has_one_size else f"these are {size[0]}x{size[1]}"
        raise ValueError(
            f"the recipe shrinks images to a side of {recipe.small_size} in its first epochs, and {reason}: "
            "train on whole ones (--set small_epochs=0)"
        )
    small = [round(side * recipe.small_size / min(size)) for side in size]
    ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
    groups = model.parameters() if recipe.decay_all else param_groups_weight_decay(model, recipe.weight_decay)
    optimizer = torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    state = _Checkpoint(output / "checkpoint.pt", run, data, digests, epoch_steps, model, ema, optimizer)
    step, history, begun = state.load()
    if history:  # the log may have been lost, or a kill have come between the checkpoint and its last line
        _write_log(output / "log.jsonl", history)
    forward = compile_model(model, run.compile) if run.compile else model
    generator = torch.Generator(run.device)
    order: Optional[Tensor] = None
    indices = torch.zeros(batch_size, dtype=torch.int64, device=device)
    rate = torch.zeros((), device=device)
    losses, hits = (torch.tensor(number, device=run.device) for number in (begun.loss, begun.hits))
    is_recorded = device.type == "cuda" and run.compile in ("", "default") and not recipe.mixup

    def take_step(shrinks: bool) -> None:
        """One step on the images ``indices``, all of it work of the device."""
        labels = training.labels[indices]
        x = _normalized(augmented_batch(training, indices, recipe, generator), model)
        x, targets = mixed_batch(x, labels, classes, recipe, generator)
        if shrinks:
            x = F.interpolate(x, size=small, mode="bilinear", antialias=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=run.amp):
            logits = forward(x.contiguous(memory_format=torch.channels_last))
            if not isinstance(logits, Tensor):
                raise ValueError(
                    f"expected one tensor of logits of {run.model}, got a {type(logits).__name__}: leave out the "
                    "--model-args by which it gives more, such as aux_logits or features_only"
                )
            loss = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        if is_recorded:
            update(optimizer, rate)
        else:
            optimizer.step()
        losses.add_(loss.detach())
        hits.add_((logits.detach().argmax(1) == labels).sum())

    count, saved = begun.steps, time.perf_counter()
    since = saved - begun.seconds
    steps_of = {shrinks: Recorded(partial(take_step, shrinks), [generator], is_recorded) for shrinks in (False, True)}
    model.train()
    while step < steps:
        if order is None or step % epoch_steps == 0:
            generator.manual_seed(_mixed(run.seed, step // epoch_steps, 1))
            order = torch.randperm(len(training), generator=generator, device=run.device)
        generator.manual_seed(_mixed(run.seed, step, 2))
        torch.manual_seed(_mixed(run.seed, step, 3))  # what dropout draws from
        indices.copy_(order[step % epoch_steps * batch_size :][:batch_size])
        learning_rate, shrinks = _step_settings(recipe, step, epoch_steps)
        rate.fill_(learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        steps_of[shrinks]()
        step, count = step + 1, count + 1
        if ema is not None:
            ema.update(model, step)

        record: Dict[str, float] = {}
        halts = bool(stopped)  # asked before the save: what comes during it or later is for the next step
        if step % epoch_steps == 0 or step == steps:
            mean_loss, seen = float(losses) / count, count * batch_size  # which waits for the device
            seconds = time.perf_counter() - since
            record = dict(
                epoch=round(step / epoch_steps, 4),
                learning_rate=learning_rate,
                train_loss=mean_loss,
                train_accuracy=100 * float(hits) / seen,
                seconds=round(seconds, 2),
                images_per_second=round(seen / seconds, 1),
            )
            state.require_finite(step, float(losses))
            found = evaluate(reparameterize(ema.module if ema else model), test, amp=run.amp)
            record.update(test_accuracy=found.accuracy, test_loss=found.loss)
            history.append(record)
            state.save(step, history, _Begun())
            _write_log(output / "log.jsonl", history)
            losses.zero_(), hits.zero_()
            count, since = 0, time.perf_counter()
            saved = since
        elif halts or time.perf_counter() - saved > 300:
            seconds = time.perf_counter() - since
            state.save(step, history, _Begun(float(losses), float(hits), count, seconds))
            saved = time.perf_counter()
        report(step, steps, record)
        if halts and step < steps:
            say_aside(f"stopped at step {step} of {steps}; the same command goes on from there")
            raise SystemExit(128 + stopped[0])
        yield

    state.require_own()  # before it leaves its weights there
    model = deepcopy(ema.module if ema is not None else model)  # a copy is not compiled
    forms = evaluate(model, test), evaluate(reparameterize(model), test)
    return Result(model, *forms, history, len(training), digests)


def compile_model(model: nn.Module, mode: str) -> nn.Module:
    """``model`` compiled; on a GPU its modules one by one, in place, of which those of one shape share the work."""
    modules = [module for module in model.modules() if isinstance(module, RDPModule)]
    if not modules or next(model.parameters()).device.type not in IN_GRAPH:
        return torch.compile(model, mode=mode)
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(torch._dynamo.config, limit, 128)  # shapes of all networks that are trained together
    for module in modules:
        module.compile(mode=mode, dynamic=False)
    return model


def _mixed(*numbers: int) -> int:
    """One seed of several numbers, each combination giving another."""
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return seed


@contextmanager
def _stop_signals() -> Iterator[List[int]]:
    """Put an order to end into a list instead of dying of it; another one, a second later, ends all as usual."""
    received: List[int] = []

    def receive(number: int, _: Any) -> None:
        if received:
            hearing.close()
            signal.raise_signal(number)
        received.append(number)

    with ExitStack() as hearing:
        hearing.enter_context(handled(receive, "SIGTERM", "SIGINT", "SIGHUP"))
        yield received


def _write_log(path: Path, history: List[Dict[str, float]]) -> None:
    with atomic_path(path) as file:
        file.write_text("".join(json.dumps(record) + "\n" for record in history))


def _step_settings(recipe: Recipe, step: int, epoch_steps: int) -> Tuple[float, bool]:
    """What the length of a recipe decides for one step: the learning rate, and whether images are shrunk."""
    return recipe.learning_rate_at((step + 0.5) / epoch_steps), step < recipe.small_epochs * epoch_steps


@dataclass(frozen=True)
class _Begun:
    """What there is of an epoch that has not come to its end: sums over its steps, their number and their time."""

    loss: float = 0.0
    hits: float = 0.0
    steps: int = 0
    seconds: float = 0.0


class _Checkpoint:
    """The state of a run on disk, and what run it belongs to."""

    def __init__(
        self,
        path: Path,
        run: Run,
        data: Tuple[Images, Images],
        digests: Sequence[str],
        epoch_steps: int,
        model: nn.Module,
        ema: Optional[ModelEmaV3],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.path = path
        self.recipe = run.recipe
        self.epoch_steps = epoch_steps
        self.description: Dict[str, Any] = dict(
            model=run.model,
            model_args=dict(run.model_args),
            seed=run.seed,
            images=len(data[0]),
            training_data=digests[0],
            test_data=digests[1],
            amp=run.amp,
            recipe=asdict(run.recipe),
            weights=run.origin,
        )
        # for those who load the weights of a run that goes on
        self.creation: Dict[str, Any] = dict(
            arch=run.model, model_args=run.creation_args(model, data[0]), classes=list(data[0].classes)
        )
        self.parts: Dict[str, Any] = dict(model=model, optimizer=optimizer)
        if ema is not None:
            self.parts["ema"] = ema

    def require_finite(self, step: int, loss: float) -> None:
        """Raise a FloatingPointError if the training has diverged."""
        broken = "" if math.isfinite(loss) else f"the loss is {loss}"
        for name, part in self.parts.items():
            broken = broken or _not_finite(part.state_dict(), name)
        if broken:
            kept = f"the last good checkpoint is '{self.path}'" if self.path.exists() else "nothing was saved so far"
            raise FloatingPointError(
                f"{broken} in epoch {step / self.epoch_steps:.4g}: lower the learning rate "
                f"({self.recipe.learning_rate}) or begin with a longer warm-up; {kept}"
            )

    def save(self, step: int, history: List[Dict[str, float]], begun: _Begun) -> None:
        self.require_finite(step, begun.loss)
        self.require_own()
        content = dict(self.creation, step=step, history=history, description=self.description, begun=asdict(begun))
        content.update({name: part.state_dict() for name, part in self.parts.items()})
        with atomic_path(self.path) as file:
            torch.save(content, file)

    def require_own(self) -> None:
        """Raise a ValueError where another run began in the same folder and has saved since."""
        if self.path.exists():
            found = self._read(mmap=True)
            self._check(found["description"], found["step"], found.get("begun"))

    def load(self) -> Tuple[int, List[Dict[str, float]], _Begun]:
        """The step to go on from, the records up to there, and what there is of the next one."""
        if not self.path.exists():
            self._require_unfinished()
            return 0, [], _Begun()
        content = self._read()
        try:
            step, history, description = content["step"], content["history"], content["description"]
            self._check(description, step, content.get("begun"))
            for name, part in self.parts.items():
                broken = _not_finite(content[name], name)
                if broken:
                    raise ValueError(f"'{self.path}' is of a run that has diverged, {broken}; delete it to start anew")
                part.load_state_dict(content[name])
            return step, history, _Begun(**content["begun"])
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            raise self._is_none(error) from error

    def _read(self, mmap: bool = False) -> Any:
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=mmap)
        except OSError as error:  # of what cannot be read nobody knows that it is to be thrown away
            raise OSError(
                f"cannot read the checkpoint '{self.path}' ({error.strerror or error}): the run goes on from it once "
                "it can be read; to start anew, name another output folder"
            ) from error
        except Exception as error:  # which one depends on the bytes
            raise self._is_none(error) from error

    def _is_none(self, error: Exception) -> ValueError:
        return ValueError(
            f"'{self.path}' is not a checkpoint of this run ({type(error).__name__}); name another output folder, or "
            "move it away to start anew"
        )

    def _require_unfinished(self) -> None:
        """Refuse a folder that holds the result of a run and no checkpoint to tell whether it is of this one."""
        kept = [name for name in ("weights.safetensors", "weights.json") if (self.path.parent / name).exists()]
        if kept:
            raise ValueError(
                f"'{self.path.parent}' holds {' and '.join(kept)} of a finished run, whose {self.path.name} is gone, "
                "and they would be overwritten: name another output folder, or move them away to train anew"
            )

    def _check(self, found: Dict[str, Any], step: int, begun: Any) -> None:
        found = {"weights": "", **found}  # earlier ones did not name them
        finish = "finish the run with the version of rdpnet-timm that began it, or delete the file to start anew"
        missing = [f"description.{name}" for name in self.description if name not in found]
        if missing or begun is None:
            missing += ["begun"] * (begun is None)
            raise ValueError(
                f"'{self.path}' lacks {', '.join(missing)}, so it does not tell whether it is of these data and "
                f"settings: it was written by another version; {finish}"
            )
        unknown = sorted(set(found["recipe"]) - {field.name for field in fields(Recipe)})
        if unknown:
            raise ValueError(
                f"'{self.path}' was trained by a recipe with the settings {', '.join(unknown)}, which this version "
                f"does not have; {finish}"
            )
        # Another length is still the same run as long as it asks for the same steps up to here.
        former = Recipe(**found["recipe"])
        length = ("epochs", "cooldown", "small_epochs")
        theirs = {**found, **{f"recipe.{name}": value for name, value in asdict(former).items()}}
        ours = {**self.description, **{f"recipe.{name}": value for name, value in asdict(self.recipe).items()}}
        skipped = {"recipe", *(f"recipe.{name}" for name in length)}
        differing = [name for name in ours if name not in skipped and ours[name] != theirs[name]]
        if former != self.recipe and any(
            _step_settings(former, done, self.epoch_steps) != _step_settings(self.recipe, done, self.epoch_steps)
            for done in range(step)
        ):
            differing += [f"recipe.{name}" for name in length if ours[f"recipe.{name}"] != theirs[f"recipe.{name}"]]
        if differing:
            raise ValueError(
                f"'{self.path}' belongs to another run, with "
                + ", ".join(f"{name} {theirs[name]} rather than {ours[name]}" for name in differing)
                + "; name another output folder, or delete it"
            )


def _not_finite(state: Any, name: str) -> str:
    """What of a state dict, dicts in it included, is not finite; empty where all is."""
    tensors = {key: tensor for key, tensor in _tensors(state, name) if tensor.is_floating_point()}
    if not tensors:
        return ""
    finite = torch.stack(
        [tensor.isfinite().all().to(next(iter(tensors.values())).device) for tensor in tensors.values()]
    )
    return next((f"{key} is not finite" for key, each in zip(tensors, finite.tolist()) if not each), "")


def _tensors(state: Any, name: str) -> Iterator[Tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, part in state.items():
            yield from _tensors(part, f"{name}.{key}")

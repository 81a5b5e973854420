"""One training run: resumable at any step, seeded, logged as JSON lines, its result evaluated in both forms."""

import itertools
import json
import signal
import time
import traceback
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Generator, Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..allocator import keep_freed_memory
from ..blocks import RDPModule
from ..convert import reparameterize
from ..files import atomic_path, require_writable
from ..fused.conditions import IN_GRAPH
from ..signals import handled
from .data import Images, augmented_batch, mixed_batch
from .evaluation import Evaluation, evaluate, model_input
from .progress import say_aside
from .recipe import Recipe
from .recorded import Recorded, update
from .run import Run
from .state import Begun, State

__all__ = ["Job", "Result", "compile_model", "train", "train_together"]

Report = Callable[[int, int, Dict[str, float]], None]
STAGGER = 50  # steps by which a run begins after the one before it, see train_together


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
    _require_images(recipe, training, test)
    epoch_steps = len(training) // batch_size
    steps = max(1, round(recipe.epochs * epoch_steps))

    model = run.create_model(training.classes)
    size = training.pixels.shape[1:3]
    _require_size(run, model, *size)
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
    state = State(output / "checkpoint.pt", run, data, digests, epoch_steps, model, ema, optimizer)
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
        x = model_input(augmented_batch(training, indices, recipe, generator), model)
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
        learning_rate, shrinks = recipe.at_step(step, epoch_steps)
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
            state.save(step, history, Begun())
            _write_log(output / "log.jsonl", history)
            losses.zero_(), hits.zero_()
            count, since = 0, time.perf_counter()
            saved = since
        elif halts or time.perf_counter() - saved > 300:
            seconds = time.perf_counter() - since
            state.save(step, history, Begun(float(losses), float(hits), count, seconds))
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


def _require_images(recipe: Recipe, training: Images, test: Images) -> None:
    """Raise a ValueError where there are no images, or the recipe's crops or squares are too large for them."""
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


def _require_size(run: Run, model: nn.Module, height: int, width: int) -> None:
    """Raise a ValueError where the model takes images of another size alone, or the recipe cannot shrink these."""
    recipe, has_one_size = run.recipe, model.pretrained_cfg.get("fixed_input_size")
    if has_one_size and (height, width) != run.image_size:
        raise ValueError(
            f"{run.model} takes images of {run.image_size[0]}x{run.image_size[1]} alone, and these have "
            f"{height}x{width}: create it for them (--model-args img_size={height})"
        )
    if recipe.small_epochs and (has_one_size or recipe.small_size > min(height, width)):
        reason = f"{run.model} takes images of one size alone" if has_one_size else f"these are {height}x{width}"
        raise ValueError(
            f"the recipe shrinks images to a side of {recipe.small_size} in its first epochs, and {reason}: "
            "train on whole ones (--set small_epochs=0)"
        )


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

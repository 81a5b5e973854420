"""Evaluation on the network that will be deployed."""

from functools import wraps
from typing import Any, Dict, List, Optional

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..convert import deploy_method, reparameterize
from ..measure.difference import compare_outputs
from ..measure.size import count_macs

__all__ = ["ReparameterizeHook"]


@HOOKS.register_module()
class ReparameterizeHook(Hook):
    """Validate and test on the deploy form of the model, of any reparameterisable one.

    The deploy form is made of a copy, which takes the model's place in the runner from the first batch of an
    evaluation to its last. The model that trains is never touched: its parameters, its optimiser's state and what
    other hooks hold of it (EMAHook's averaged weights) stay as they are.

    The order among hooks is by construction, not by priority alone. The copy is made when the first batch arrives,
    after every hook's ``before_val_epoch``: EMAHook has put the averaged weights in by then. It is taken out first of
    all hooks in ``after_val_epoch``, before EMAHook swaps back and CheckpointHook saves, and also if the evaluation
    raises an error.

    At the first evaluation, the parts of the model that were converted are compared with their originals on the first
    batch that they really get, and the result is logged with the parameters and MACs of both forms.

    Args:
        tolerance: largest difference accepted, as a fraction of the largest output; half-precision models need 1e-2.

    Raises:
        RuntimeError: at the first evaluation, the two forms differ by more; or the model's parameters are sharded.
    """

    priority = "VERY_HIGH"

    def __init__(self, tolerance: float = 1e-4) -> None:
        if not tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {tolerance}")
        self.tolerance = tolerance
        self._train_form: Optional[nn.Module] = None
        self._inputs: Dict[str, Tensor] = {}
        self._handles: List[Any] = []
        self._verified = False

    def before_run(self, runner: Any) -> None:
        """Have the train form put back if an evaluation ends in an error, when no hook is called any more."""
        for loop in (runner._val_loop, runner._test_loop):
            if hasattr(loop, "run") and not hasattr(loop.run, "restores_train_form"):
                loop.run = self._restoring(loop.run, runner)

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Put the deploy form in, at the first batch."""
        if batch_idx == 0:
            self._deploy(runner)

    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Put the deploy form in, at the first batch."""
        if batch_idx == 0:
            self._deploy(runner)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Compare the two forms, after the first batch of all."""
        self._verify(runner)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Compare the two forms, after the first batch of all."""
        self._verify(runner)

    def after_val_epoch(self, runner: Any, metrics: Optional[Dict[str, float]] = None) -> None:
        """Put the train form back."""
        self._restore(runner)

    def after_test_epoch(self, runner: Any, metrics: Optional[Dict[str, float]] = None) -> None:
        """Put the train form back."""
        self._restore(runner)

    def _restoring(self, run: Any, runner: Any) -> Any:
        @wraps(run)
        def run_and_restore(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(*args, **kwargs)
            finally:
                self._restore(runner)

        run_and_restore.restores_train_form = True  # type: ignore[attr-defined]
        return run_and_restore

    def _deploy(self, runner: Any) -> None:
        self._restore(runner)  # a loop may run over its data twice, with a model it has changed in between
        model = _unwrapped(runner)
        model.eval()  # as the loop has it; the copy is made of it in its mode
        deployed = reparameterize(model)
        self._train_form = model
        _set_model(runner, deployed)
        if not self._verified:
            for name in converted_parts(model, deployed):
                self._handles.append(deployed.get_submodule(name).register_forward_pre_hook(self._keep_input(name)))

    def _restore(self, runner: Any) -> None:
        self._forget()
        if self._train_form is not None:
            _set_model(runner, self._train_form)
            self._train_form = None

    def _keep_input(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any) -> None:
            if name not in self._inputs and args and isinstance(args[0], Tensor):
                self._inputs[name] = args[0].detach().clone()

        return keep

    def _verify(self, runner: Any) -> None:
        if self._verified or self._train_form is None:
            return
        self._verified = True
        train_form, deployed, inputs = self._train_form, _unwrapped(runner), dict(self._inputs)
        self._forget()
        before, after = (sum(p.numel() for p in model.parameters()) for model in (train_form, deployed))
        lines = [f"ReparameterizeHook: {before / 1e6:.3f} M parameters before, {after / 1e6:.3f} M after"]
        for name, x in inputs.items():
            part, merged = train_form.get_submodule(name), deployed.get_submodule(name)
            found = compare_outputs(part, merged, x)
            try:
                found.require(self.tolerance)
            except RuntimeError as error:
                raise RuntimeError(
                    f"ReparameterizeHook: '{name or type(train_form).__name__}' and its deploy form must not be "
                    f"evaluated for one another: {error}. Is there a NaN in the weights, a norm without running "
                    "statistics, or, in half precision, need of a larger tolerance?"
                ) from None
            size = "x".join(map(str, x.shape[2:]))
            lines.append(
                f"{name or type(train_form).__name__}: {count_macs(part, x[:1]) / 1e6:.1f} M MACs before, "
                f"{count_macs(merged, x[:1]) / 1e6:.1f} M after, at {size}; {found}"
            )
        if not inputs:
            lines.append("not compared: nothing was converted, or no converted part is called with a tensor")
        runner.logger.info("\n    ".join(lines))

    def _forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inputs.clear()


def converted_parts(model: nn.Module, deployed: nn.Module) -> List[str]:
    """Names of what differs between two forms: of each child of ``model`` the smallest part that holds all changes.

    A detector's is ``['backbone']``; an empty name is the model itself.
    """
    parts: Dict[str, List[str]] = {}
    after = dict(deployed.named_modules())
    for name, module in model.named_modules():
        if deploy_method(module) is not None:
            path = name.split(".") if name else []
            merged = after.get(name)
            if merged is None or not _same_state(module, merged):
                known = parts.setdefault(path[0] if path else "", path)
                parts[path[0] if path else ""] = [a for a, b in zip(known, path) if a == b]
    return sorted(".".join(path) for path in parts.values())


def _same_state(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _unwrapped(runner: Any) -> nn.Module:
    model = runner.model
    if type(model).__name__ in ("MMFullyShardedDataParallel", "FullyShardedDataParallel", "MMDeepSpeedEngineWrapper"):
        raise RuntimeError(
            f"ReparameterizeHook: {type(model).__name__} shards the parameters, of which no deploy form can be made; "
            "train with DDP, or without this hook"
        )
    return model.module if is_model_wrapper(model) else model


def _set_model(runner: Any, model: nn.Module) -> None:
    if is_model_wrapper(runner.model):
        runner.model.module = model
    else:
        runner.model = model

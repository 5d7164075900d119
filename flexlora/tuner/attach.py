"""FlexLoRA in any training loop with one line: `flexlora.attach(model, optimizer)`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from .allocator import RankAllocator
from .config import FlexLoraConfig
from .events import RankEvent
from .packing import flexlora_configs, flexlora_layers
from .precision import half_precision

_attachments: WeakSet[Attachment] = WeakSet()


class Attachment:
    """FlexLoRA's hooks on an optimizer; made by [`attach`].

    Attributes:
        allocator: changes the ranks and records the events.
        optimizer: the torch optimizer with the hooks.
    """

    def __init__(
        self,
        allocator: RankAllocator,
        optimizer: torch.optim.Optimizer,
        on_event: Callable[[RankEvent], None] | None,
    ) -> None:
        self.allocator = allocator
        self.optimizer = optimizer
        self._on_event = on_event
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        _attachments.add(self)

    @property
    def step(self) -> int:
        """The number of completed optimizer steps. Steps that a gradient scaler skipped do not count."""
        return self.allocator.step

    @property
    def events(self) -> list[RankEvent]:
        """The events since `attach`, oldest first."""
        return self.allocator.events

    def remove(self) -> None:
        """Remove the hooks from the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _attachments.discard(self)

    def state_dict(self) -> dict[str, Any]:
        """The state for resuming a run, beyond the adapter and the optimizer."""
        return self.allocator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.allocator.load_state_dict(state)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict[str, Any]] | None:
        closure = next((argument for argument in (*args, *kwargs.values()) if callable(argument)), None)
        if closure is None:
            self._add_penalty(optimizer)
            return None

        def closure_then_penalty() -> Any:  # the closure computes the gradients inside the step, as in Lightning
            loss = closure()
            self._add_penalty(optimizer)
            return loss

        def replaced(argument: Any) -> Any:
            return closure_then_penalty if argument is closure else argument

        return tuple(map(replaced, args)), {name: replaced(argument) for name, argument in kwargs.items()}

    def _add_penalty(self, optimizer: torch.optim.Optimizer) -> None:
        # A fused optimizer under a gradient scaler unscales inside its step, so the gradients still contain the scale.
        # torch stores the scale in this attribute during the step.
        scale = getattr(optimizer, "grad_scale", None)
        scale = 1.0 if scale is None else scale
        if _skips(optimizer):  # non-finite gradients would corrupt the smoothed sensitivities permanently
            return
        self.allocator.observe_gradients(scale)
        self.allocator.regularise(scale)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if _skips(optimizer):
            return
        event = self.allocator.advance(self.step + 1, optimizer)
        if event is not None and self._on_event is not None:
            self._on_event(event)


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int = 0,
    on_event: Callable[[RankEvent], None] | None = None,
) -> Attachment:
    """Change FlexLoRA's ranks during training in any loop. Call it once, after the optimizer is made.

    It hooks the optimizer's step. Before the step, it adds the gradient of the orthogonality penalty, once for each
    real step whatever the accumulation, loss or output type. After the step, it counts the step and runs a rank event
    if one is due. It sees real steps only, so it works with gradient accumulation, gradient scaling and skipped steps.

    Args:
        model: a PeftModel or a model with the adapter injected, wrapped (DDP, torch.compile) or not.
        optimizer: the optimizer of the model, also in Accelerate's wrapper.
        step: the number of completed optimizer steps when a run is resumed.
        on_event: called with every [`RankEvent`].

    Returns:
        The attachment: its `step`, its `events`, `state_dict` for resuming, `remove()`.

    Raises:
        ValueError: the model has no trainable FlexLoRA adapter, or contains several adapted models; or the optimizer
            does not train the adapter (it was made before the model was adapted), is already attached, trains float16
            parameters, or is LBFGS, whose step evaluates the gradients several times.
        TypeError: `optimizer` is not a torch optimizer.
    """
    while not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "accelerator_state"):
        inner = getattr(optimizer, "optimizer", None)  # a step() of Accelerate's wrapper is not always a real step
        if inner is None:
            raise TypeError(f"attach needs a torch optimizer, not {type(optimizer).__name__}.")
        optimizer = inner
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS evaluates the gradients several times per step, which FlexLoRA does not support: "
            "use another optimizer."
        )
    root, config, adapter_name = _trainable_adapter(model)
    allocator = RankAllocator(root, config, adapter_name, step=step)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [
        name
        for name, layer in flexlora_layers(model, adapter_name)
        if not all(id(parameter) in held for parameter in layer.factors(adapter_name))
    ]
    if missing:
        raise ValueError(
            f"the optimizer does not train {len(missing)} of {len(allocator.names)} FlexLoRA modules "
            f"(the first: {missing[0]}): make the optimizer after the model is adapted, from "
            "flexlora.parameter_groups(model, learning_rate) or all parameters that require gradients."
        )
    if any(other.optimizer is optimizer and other.allocator.layers == allocator.layers for other in _attachments):
        raise ValueError(
            "this model and this optimizer are already attached (the Trainer's callback attaches automatically): every "
            "step would count twice. To attach again, first call remove() on the existing attachment."
        )
    _check_lambda_lr_ratio(optimizer, allocator)
    _check_precision(optimizer, model)
    for module in root.modules():
        if hasattr(type(module), "rank_allocator"):  # a FlexLoraModel
            module.rank_allocator = allocator  # type: ignore[assignment]  # update_and_allocate must not rerun an event
    return Attachment(allocator, optimizer, on_event)


def _skips(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer skips this step. A gradient scaler calls its `step` even then."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def _trainable_adapter(model: nn.Module) -> tuple[nn.Module, FlexLoraConfig, str]:
    """Find the module that owns the configuration (inside any DDP wrapper), the configuration, the adapter's name."""
    found: dict[int, tuple[nn.Module, FlexLoraConfig, str]] = {}
    for module, name, config in flexlora_configs(model):
        if not config.inference_mode:
            found.setdefault(id(config), (module, config, name))
    if not found:
        raise ValueError(
            "the model has no trainable FlexLoRA adapter: wrap it with get_peft_model(model, FlexLoraConfig(...)), "
            "or load the adapter with is_trainable=True."
        )
    if len(found) > 1:
        raise ValueError(f"the model contains {len(found)} models that FlexLoRA adapts: attach each one separately.")
    return next(iter(found.values()))


def _check_precision(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Check that the optimizer trains no parameter in half precision. bfloat16 gives a warning only.

    Raises:
        ValueError: it trains a float16 parameter.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    half = half_precision((names.get(id(parameter), "not in the model"), parameter) for parameter in trained)
    if half is None:
        return
    dtype, found = half
    remedy = "load the model with dtype=torch.float32, or convert them with .float() before the optimizer is made."
    if dtype == torch.float16:
        raise ValueError(f"{found}, in which the first step of Adam gives NaN: {remedy}")
    warnings.warn(f"{found}, in which small steps vanish: {remedy}", stacklevel=3)


def _check_lambda_lr_ratio(optimizer: torch.optim.Optimizer, allocator: RankAllocator) -> None:
    """Warn if the optimizer's groups do not give λ the learning rate of the configuration's `lambda_lr_ratio`."""
    rates = {
        id(parameter): float(group.get("initial_lr", group["lr"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    p, values, _ = allocator.layers[0].factors(allocator.adapter_name)
    wanted = allocator.config.lambda_lr_ratio
    if rates[id(p)] > 0 and not math.isclose(rates[id(values)] / rates[id(p)], wanted, rel_tol=1e-6):
        warnings.warn(
            f"the configuration has lambda_lr_ratio={wanted}, but the optimizer's learning rate is "
            f"{rates[id(values)]:g} for λ and {rates[id(p)]:g} for P: make the optimizer from "
            "flexlora.parameter_groups(model, learning_rate).",
            stacklevel=3,
        )

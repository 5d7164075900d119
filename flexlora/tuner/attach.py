"""FlexLoRA in any training loop with one line: `flexlora.attach(model, optimizer)`."""

from __future__ import annotations

import gc
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
from .watch import forget, running_steps, watch

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
        """Remove the hooks from the optimizer. A warning follows if the training goes on before the last rank event."""
        for handle in self._handles:
            handle.remove()
        if self in _attachments and self.allocator.layers[0].holds(self.allocator.adapter_name):
            watch(self.allocator.layers[0], self.allocator.adapter_name)
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
        if _is_nested(optimizer):
            return None
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
        if _skips(optimizer) or _is_nested(optimizer):
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
    adapter_name: str | None = None,
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
        adapter_name: the adapter whose ranks change; by default the one that trains. The ranks of only one adapter of a
            model change at a time.

    Returns:
        The attachment: its `step`, its `events`, `state_dict` for resuming, `remove()`.

    Raises:
        ValueError: the model has no trainable FlexLoRA adapter, or contains several adapted models; or several adapters
            train and could change their ranks; or the optimizer does not train the adapter (it was made before the
            model was adapted), trains float16 parameters, or is LBFGS, whose step evaluates the gradients several
            times; or the adapter is already attached, or another one whose ranks still change.
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
    root, config, adapter_name = _trainable_adapter(model, adapter_name)
    allocator = RankAllocator(root, config, adapter_name, step=step)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    _check_trained(allocator, held)
    _check_unattached(allocator, optimizer)
    _check_lambda_lr_ratio(optimizer, allocator)
    _check_precision(optimizer, model)
    _begin_history(allocator)
    for module in root.modules():
        if hasattr(type(module), "rank_allocator"):  # a FlexLoraModel
            module.rank_allocator = allocator  # type: ignore[assignment]  # update_and_allocate must not rerun an event
    return Attachment(allocator, optimizer, on_event)


def detach(allocator: RankAllocator) -> None:
    """Remove the attachment that drives this allocator, if there is one."""
    for attachment in list(_attachments):
        if attachment.allocator is allocator:
            attachment.remove()


def is_attached(allocator: RankAllocator) -> bool:
    """Whether an attachment drives this allocator."""
    return any(attachment.allocator is allocator for attachment in _attachments)


def _is_nested(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this is the base class's part of the optimizer's step. torch calls the hooks for it too."""
    return running_steps().count(optimizer) > 1


def _skips(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer skips this step. A gradient scaler calls its `step` even then."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def _trainable_adapter(model: nn.Module, wanted: str | None) -> tuple[nn.Module, FlexLoraConfig, str]:
    """Find the module that owns the configuration (inside any DDP wrapper), the configuration, the adapter's name."""
    found: dict[int, tuple[nn.Module, FlexLoraConfig, str]] = {}
    for module, name, config in flexlora_configs(model):
        if not config.inference_mode and wanted in (None, name):
            found.setdefault(id(config), (module, config, name))
    if not found:
        called = "" if wanted is None else f" named '{wanted}'"
        raise ValueError(
            f"the model has no trainable FlexLoRA adapter{called}: wrap it with "
            "get_peft_model(model, FlexLoraConfig(...)), or load the adapter with is_trainable=True."
        )
    adapters = list(found.values())
    models = len({id(module) for module, _, _ in adapters})
    if models > 1:
        raise ValueError(f"the model contains {models} models that FlexLoRA adapts: attach each one separately.")
    if len(adapters) == 1:
        return adapters[0]
    active = [
        (module, config, name)
        for module, config, name in adapters
        if any(layer.trains(name) for _, layer in flexlora_layers(module, name))
    ]
    chosen = [entry for entry in active if entry[1].event_steps()] or active
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(name for _, _, name in (chosen or adapters))
    raise ValueError(
        f"the adapters {names} train at the same time, and FlexLoRA changes the ranks of one only: pass "
        "adapter_name=NAME, and set init_b=0 for the others."
        if chosen
        else f"none of the adapters {names} trains: call model.set_adapter(NAME) first."
    )


def _check_trained(allocator: RankAllocator, held: set[int]) -> None:
    """Check that the optimizer, which holds the parameters of these ids, trains all of P, λ and Q.

    Raises:
        ValueError: it does not.
    """
    missing, vectors_only = [], True
    for name, layer in zip(allocator.names, allocator.layers, strict=True):
        p, values, q = (id(factor) in held for factor in layer.factors(allocator.adapter_name))
        if not (p and values and q):
            missing.append(name)
            vectors_only &= p and q
    if not missing:
        return
    if vectors_only:
        raise ValueError(
            f"the optimizer trains P and Q, but not λ, of {len(missing)} of {len(allocator.names)} FlexLoRA modules "
            f"(the first: {missing[0]}), and FlexLoRA needs one optimizer for all three. torch.optim.Muon takes no "
            "vectors such as λ: use timm.optim.Muon, which trains them by AdamW, or AdamW for the whole adapter and "
            "Muon for other parameters."
        )
    raise ValueError(
        f"the optimizer does not train {len(missing)} of {len(allocator.names)} FlexLoRA modules "
        f"(the first: {missing[0]}): make the optimizer after the model is adapted, from "
        "flexlora.parameter_groups(model, learning_rate) or all parameters that require gradients."
    )


def _check_unattached(allocator: RankAllocator, optimizer: torch.optim.Optimizer) -> None:
    """Check that no attachment drives this adapter's schedule already, or moves the ranks of another one beside it.

    Raises:
        ValueError: there is one.
    """

    def found() -> Attachment | None:
        beside = (other for other in _attachments if not set(allocator.layers).isdisjoint(other.allocator.layers))
        return next((other for other in beside if _competes(other.allocator, allocator)), None)

    if found() is None:
        return
    gc.collect()  # an optimizer that nothing uses any more may live on in a cycle with its scheduler
    other = found()
    if other is None:
        return
    if other.allocator.adapter_name != allocator.adapter_name:
        raise ValueError(
            f"the ranks of the adapter '{other.allocator.adapter_name}' of this model change already (at step "
            f"{other.step} of {other.allocator.config.total_step}), and only one adapter's ranks can change at a time: "
            f"first call remove() on that attachment, or set init_b=0 for '{allocator.adapter_name}'."
        )
    if other.optimizer is optimizer:
        raise ValueError(
            "this model and this optimizer are already attached (the Trainer's callback attaches automatically): every "
            "step would count twice. To attach again, first call remove() on the existing attachment."
        )
    raise ValueError(
        f"this model is already attached to another optimizer ({type(other.optimizer).__name__}), at step "
        f"{other.step}: its rank events would happen twice. First call remove() on the existing attachment (or "
        f"model.base_model.finish()), and pass step={other.step} to go on in the schedule."
    )


def _competes(first: RankAllocator, second: RankAllocator) -> bool:
    """Whether two allocators on common layers are of one adapter, or both have rank events to come."""
    return first.adapter_name == second.adapter_name or (first.has_events_left and second.has_events_left)


def _begin_history(allocator: RankAllocator) -> None:
    """Begin the adapter's history at the allocator's step, and warn if rank events will happen a second time."""
    history, start = allocator.history, allocator.step
    again = [step for step in allocator.config.event_steps() if start < step <= history.step]
    if again:
        warnings.warn(
            f"this adapter has trained for {history.step} optimizer steps, but its schedule starts at step {start}: "
            f"{len(again)} rank events will happen a second time. Pass step={history.step} to go on in the schedule.",
            stacklevel=3,
        )
    forget(allocator.layers[0], allocator.adapter_name)
    history.begin(start, history.loaded)


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
    layer = allocator.layers[0]
    p, values, _ = layer.factors(allocator.adapter_name)
    wanted = allocator.config.lambda_rate(layer.out_features, layer.in_features)
    if rates[id(p)] > 0 and not math.isclose(rates[id(values)] / rates[id(p)], wanted, rel_tol=1e-6):
        warnings.warn(
            f"the configuration has lambda_lr_ratio={wanted:g}, but the optimizer's learning rate is "
            f"{rates[id(values)]:g} for λ and {rates[id(p)]:g} for P: make the optimizer from "
            "flexlora.parameter_groups(model, learning_rate).",
            stacklevel=3,
        )

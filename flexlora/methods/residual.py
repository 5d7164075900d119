"""LoRA variants that move a part of the backbone's weights into A and B: PEFT's PiSSA, and LoRA-GA.

Both set W ← W - s B₀ A₀ in the backbone, but PEFT saves only A and B. On a fresh backbone these give another output
(LoRA-GA), or W is decomposed again (PiSSA). `save` therefore writes a plain LoRA of twice the rank,
ΔW = s (B A - B₀ A₀), for the original backbone. PEFT's own conversion is not used because it omits modules_to_save.
"""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn

from flexlora.errors import UserError
from flexlora.methods.base import Method, RunContext
from flexlora.methods.peft import PeftMethod, peft_config

ADAPTER = "default"


class ResidualMethod(PeftMethod):
    """A method that keeps A₀ and B₀ on the CPU, for saving the adapter and for resuming a run."""

    config: LoraConfig

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._start: dict[str, torch.Tensor] = {}

    def wrap(self, model: nn.Module) -> nn.Module:
        if any(parameter.device.type == "meta" for parameter in model.parameters()):
            self.config.init_lora_weights = True  # only for counting: without weights there is nothing to decompose
        wrapped = super().wrap(model)
        assert isinstance(wrapped, PeftModel)
        self._layers = {name: m for name, m in wrapped.named_modules() if isinstance(m, LoraLayer)}
        self._remember()
        return wrapped

    def _remember(self) -> None:
        for name, layer in self._layers.items():
            for factor in ("lora_A", "lora_B"):
                start = getattr(layer, factor)[ADAPTER].weight.detach()
                if start.device.type != "meta":
                    self._start[f"{name}.{factor}.weight"] = start.to("cpu", copy=True)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Refuse to load: a saved adapter belongs to the original backbone, which this method has changed."""
        raise UserError(f"adapter: this method changes the backbone and cannot start from a saved adapter ({folder})")

    def state_dict(self) -> dict[str, Any]:
        return {"start": dict(self._start)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore A₀ and B₀, and adjust W if this machine computed other values."""
        ours, theirs = dict(self._start), state["start"]
        with torch.no_grad():
            for name, layer in self._layers.items():
                a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
                if not (torch.equal(ours[a], theirs[a]) and torch.equal(ours[b], theirs[b])):
                    weight = layer.get_base_layer().weight
                    moved = layer.scaling[ADAPTER] * (ours[b] @ ours[a] - theirs[b] @ theirs[a])
                    weight.copy_(weight + (moved.T if layer.fan_in_fan_out else moved).to(weight.device))
        self._start = theirs

    def save(self, model: nn.Module, folder: Path) -> None:
        super().save(model, folder)
        file = folder / SAFETENSORS_WEIGHTS_NAME
        state = load_file(file)
        for name, start in self._start.items():
            stacked = [state[name], start] if ".lora_A." in name else [state[name], -start]
            state[name] = torch.cat(stacked, dim=0 if ".lora_A." in name else 1)
        save_file(state, file, metadata={"format": "pt"})
        config = PeftConfig.from_pretrained(str(folder))
        assert isinstance(config, LoraConfig)
        config.init_lora_weights, config.lora_ga_config = True, None
        # s = alpha / r, or alpha / √r, must stay the same at twice the rank.
        factor = 2**0.5 if config.use_rslora else 2
        config.r, config.lora_alpha = 2 * config.r, factor * config.lora_alpha
        config.rank_pattern = {key: 2 * rank for key, rank in (config.rank_pattern or {}).items()}
        config.alpha_pattern = {key: factor * alpha for key, alpha in (config.alpha_pattern or {}).items()}
        config.save_pretrained(str(folder))


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """Build a method with LoRA's fields whose `init_lora_weights` changes the backbone."""
    return ResidualMethod(*peft_config(fields, context))

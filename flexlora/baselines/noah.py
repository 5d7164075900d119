"""NOAH, neural prompt search (Zhang et al., 2022, arXiv 2206.04673, section 3).

Every block of a ViT has three modules: prompts before it (as in VPT-Deep), a LoRA on its fused query, key and value,
and a bottleneck adapter after its MLP. A subnet is the list of their sizes in all blocks. An evolutionary search
chooses it from a supernet (`flexlora/methods/noah_supernet.py`), and it is then trained from scratch. A block with p
prompts, rank r and bottleneck m trains p · d + r · (d + 3d) + m · (2d + 1) + d parameters. The authors' subnets for
VTAB-1K have 360,134 parameters on ViT-B/16 on average over the 19 tasks: the "0.36M" of the FlexLoRA paper's Table 16.

Subnets share weights, as in AutoFormer: a subnet takes the first p prompts, the first r rows of A and columns of B, and
the first m neurons of the adapter.

Details that the description does not specify follow their code (Davidzhangyuanhan/NOAH e9c55f3):

- The adapter is h ← h + W_u QuickGELU(W_d h + b_d) + b_u on the MLP's output, Xavier's W_d and W_u: its initial
  output is far from the backbone's. LoRA has no scale and starts at B = 0. Prompts are Xavier-uniform.
- A block without prompts keeps those of the block before it.
- Dropout of 0.1 is applied to prompts, LoRA's input and the adapter's activations. Their stochastic depth is left out,
  because no method here has it.
- Prompts follow the prefix tokens, as in our VPT, and not the patches: attention does not depend on the order. Their
  code has further prompts before the first block, which that block's own prompts replace, so they would not train.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from flexlora import architectures
from flexlora.reading import read_text
from flexlora.tuner.checks import FieldError, is_whole, probability, require

from .base import BaselineConfig, BaselineLayer, BaselineModel, setting
from .vpt import replace_prompts, vision_transformer, without_prompts

# The settings for the sizes, in the order of all lists of sizes.
MODULES = ("prompt_dim", "lora_dim", "adapter_dim")


@dataclass(frozen=True)
class Subnet:
    """The sizes of the three modules, one number for each block; 0 means that the block lacks the module."""

    prompt_dim: tuple[int, ...]
    lora_dim: tuple[int, ...]
    adapter_dim: tuple[int, ...]

    def sizes(self, block: int) -> tuple[int, int, int]:
        """The number of prompts, LoRA's rank and the adapter's bottleneck in a block."""
        return self.prompt_dim[block], self.lora_dim[block], self.adapter_dim[block]

    def tokens_before(self, block: int) -> int:
        """The number of prompts in a block's input: those of the last earlier block that has prompts."""
        return next((size for size in reversed(self.prompt_dim[:block]) if size), 0)

    def parameters(self, width: int) -> int:
        """The number of adapter parameters in a ViT of this width."""
        adapters = sum(size * (2 * width + 1) + width for size in self.adapter_dim if size)
        return sum(self.prompt_dim) * width + sum(self.lora_dim) * 4 * width + adapters


@dataclass
class NoahConfig(BaselineConfig):
    """Configuration of a [`NoahModel`]: a size is a list with one number per block, or one number for all blocks."""

    default_targets: ClassVar[str] = architectures.BLOCKS

    prompt_dim: list[int] | int = setting(5, "Prompts before each block.")
    lora_dim: list[int] | int = setting(5, "Rank of the LoRA at each block's qkv.")
    adapter_dim: list[int] | int = setting(5, "Bottleneck of the adapter behind each block's MLP.")
    dropout: float = setting(0.1, "Dropout on prompts, on LoRA's input and on the adapter's activations.", probability)

    subnet: str | None = setting(
        None, "A subnet.json of NOAH's search, whose sizes replace these three; unset after it is read."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subnet is not None:
            for name, sizes in _read_subnet(Path(self.subnet).expanduser()).items():
                setattr(self, name, sizes)
            self.subnet = None  # a saved adapter contains its sizes
        for name in MODULES:
            sizes = self._listed(name, 1)
            require(
                self,
                name,
                bool(sizes) and all(type(size) is int and size >= 0 for size in sizes),
                "a whole number of at least 0, or a list of them, one per block",
            )
        some = any(any(self._listed(name, 1)) for name in MODULES)
        require(self, "prompt_dim", some, "above 0 if lora_dim and adapter_dim are 0")
        self.require_all_blocks()

    def sized(self, blocks: int) -> Subnet:
        """Make the subnet for a ViT with this number of blocks.

        Raises:
            ValueError: a list has another number of sizes.
        """
        for name in MODULES:
            count = len(self._listed(name, blocks))
            if count != blocks:
                raise ValueError(f"`{name}` has {count} sizes, but the model has {blocks} blocks: give one per block.")
        return Subnet(*(tuple(self._listed(name, blocks)) for name in MODULES))

    def _listed(self, name: str, blocks: int) -> list[int]:
        value = getattr(self, name)
        return value if isinstance(value, list) else [value] * blocks


def _read_subnet(file: Path) -> dict[str, list[int]]:
    """Read the sizes from a file, one list for each module.

    Raises:
        FieldError: the file cannot be read, or a list is missing.
    """
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError) as error:
        raise FieldError("subnet", f"cannot be read: {file}: {error}") from error
    found = content if isinstance(content, dict) else {}
    for name in MODULES:
        sizes = found.get(name)
        if not isinstance(sizes, list) or not all(is_whole(size) for size in sizes):
            raise FieldError("subnet", f"has no list of sizes '{name}': {file} is not a subnet.json of noah_supernet")
    return {name: found[name] for name in MODULES}


@dataclass
class Choice:
    """The current subnets of an adapter, one in training and one in evaluation. Its layers share this object."""

    training: Subnet
    evaluation: Subnet


# For each parameter: its module, and the dimension that has the module's size.
ENTANGLED: dict[str, tuple[str, int | None]] = {
    "noah_prompt": ("prompt_dim", 0),
    "noah_lora_A": ("lora_dim", 0),
    "noah_lora_B": ("lora_dim", 1),
    "noah_down": ("adapter_dim", 0),
    "noah_down_bias": ("adapter_dim", 0),
    "noah_up": ("adapter_dim", 1),
    "noah_up_bias": ("adapter_dim", None),
}


class NoahLayer(BaselineLayer):
    """A block of a ViT with prompts (p × d), a LoRA (A: r × d, B: 3d × r) and an adapter (m × d, m, d × m, d)."""

    title = "NOAH"
    adapter_layer_names = tuple(ENTANGLED)
    kept = (*BaselineLayer.kept, "choice")
    noah_prompt: nn.ParameterDict
    noah_lora_A: nn.ParameterDict
    noah_lora_B: nn.ParameterDict
    noah_down: nn.ParameterDict
    noah_down_bias: nn.ParameterDict
    noah_up: nn.ParameterDict
    noah_up_bias: nn.ParameterDict
    choice: dict[str, Choice]
    index: int
    is_last: bool
    prefix_tokens: int

    def create(self, adapter_name: str, config: Any, **place: Any) -> None:
        self.index, self.is_last, self.prefix_tokens = place["index"], place["is_last"], place["prefix_tokens"]
        self.choice[adapter_name] = place["choice"]
        width = place["width"]
        prompts, rank, bottleneck = place["choice"].training.sizes(self.index)
        xavier = nn.init.xavier_uniform_

        def small(bias: torch.Tensor) -> torch.Tensor:
            return nn.init.normal_(bias, std=1e-6)

        if prompts:
            self.new_parameter("noah_prompt", adapter_name, (prompts, width), lambda prompt: xavier(prompt[None]))
        if rank:
            self.new_parameter(
                "noah_lora_A", adapter_name, (rank, width), lambda a: nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            )
            self.new_parameter("noah_lora_B", adapter_name, (3 * width, rank))
        if bottleneck:
            self.new_parameter("noah_down", adapter_name, (bottleneck, width), xavier)
            self.new_parameter("noah_down_bias", adapter_name, (bottleneck,), small)
            self.new_parameter("noah_up", adapter_name, (width, bottleneck), xavier)
            self.new_parameter("noah_up_bias", adapter_name, (width,), small)

    def cut(self, adapter_name: str, subnet: Subnet) -> None:
        """Cut the parameters to the part that `subnet` uses."""
        for name in self.adapter_layer_names:
            parameters = getattr(self, name)
            if adapter_name in parameters:
                part = self._part(name, adapter_name, subnet)
                whole = parameters.pop(adapter_name)
                if part is not None:
                    parameters[adapter_name] = nn.Parameter(part.detach().clone(), whole.requires_grad)

    def _part(self, name: str, adapter_name: str, subnet: Subnet) -> torch.Tensor | None:
        """The first rows or columns of a parameter that `subnet` uses; None if it does not use the module."""
        module, dim = ENTANGLED[name]
        size = getattr(subnet, module)[self.index]
        if not size:
            return None
        whole: torch.Tensor = getattr(self, name)[adapter_name]
        return whole if dim is None else whole.narrow(dim, 0, size)

    def _get_available_adapters(self) -> set[str]:
        return set(self.settings)  # also adapters without a module in this block

    def holds(self, adapter_name: str) -> bool:
        return adapter_name in self.settings

    def _subnet(self, adapter_name: str) -> Subnet:
        choice = self.choice[adapter_name]
        return choice.training if self.training else choice.evaluation

    def adapted(self, adapters: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map (batch, prefix + prompts + patches, d) to the same; first input and last output have no prompts."""
        if kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
            raise ValueError(
                "NOAH adds tokens to the sequence, so an attention mask does not fit: call the model without one."
            )
        prompts = []
        for adapter_name in adapters:
            own = self._taken("noah_prompt", adapter_name)
            if own is not None:
                own = functional.dropout(own.expand(len(x), -1, -1), self.settings[adapter_name].dropout, self.training)
            prompts.append((self._subnet(adapter_name).tokens_before(self.index), own))
        x, count = replace_prompts(x, self.prefix_tokens, prompts)
        with self._inside(adapters):
            x = self.base_layer(x, *args, **kwargs)
        if self.training:
            for parameter in self._left_out(adapters):
                # Unused parameters need a gradient of 0, for DDP and for optimizers with momentum.
                x = x + (0 * parameter.sum()).to(x.dtype)
        return without_prompts(x, self.prefix_tokens, count) if self.is_last else x

    def _taken(self, name: str, adapter_name: str) -> torch.Tensor | None:
        return self._part(name, adapter_name, self._subnet(adapter_name))

    def _left_out(self, adapters: Sequence[str]) -> Iterator[nn.Parameter]:
        """The parameters of the modules that the subnet does not use in this block."""
        for adapter_name in adapters:
            for name in self.adapter_layer_names:
                if adapter_name in getattr(self, name) and self._taken(name, adapter_name) is None:
                    yield getattr(self, name)[adapter_name]

    @contextlib.contextmanager
    def _inside(self, adapters: list[str]) -> Iterator[None]:
        """Install LoRA and adapter as hooks while the block runs."""

        def attention(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            for adapter_name in adapters:
                output = output + self._lora(adapter_name, inputs[0]).to(output.dtype)
            return output

        def mlp(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            for adapter_name in adapters:
                output = output + self._adapter(adapter_name, output).to(output.dtype)
            return output

        block: Any = self.base_layer
        handles = [block.attn.qkv.register_forward_hook(attention), block.mlp.register_forward_hook(mlp)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _lora(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        """Compute B A dropout(x): (..., d) → (..., 3d)."""
        a, b = self._taken("noah_lora_A", adapter_name), self._taken("noah_lora_B", adapter_name)
        if a is None or b is None:
            return x.new_zeros(())
        x = functional.dropout(self.branch_input(x, a.dtype), self.settings[adapter_name].dropout, self.training)
        return functional.linear(functional.linear(x, a), b)

    def _adapter(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        """Compute W_u dropout(QuickGELU(W_d x + b_d)) + b_u: (..., d) → (..., d)."""
        down, up = self._taken("noah_down", adapter_name), self._taken("noah_up", adapter_name)
        if down is None or up is None:
            return x.new_zeros(())
        hidden = functional.linear(self.branch_input(x, down.dtype), down, self._taken("noah_down_bias", adapter_name))
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        hidden = functional.dropout(hidden, self.settings[adapter_name].dropout, self.training)
        return functional.linear(hidden, up, self._taken("noah_up_bias", adapter_name))


class NoahModel(BaselineModel, name="noah", config=NoahConfig, layer=NoahLayer):
    """Prompts, LoRA and adapters with separate sizes in every block, by `get_peft_model(model, NoahConfig(...))`.

    Raises:
        ValueError: the model is not timm's `VisionTransformer`, or its number of blocks differs from that of the sizes.
    """

    made_for = "timm's VisionTransformer"
    not_mergeable = "its prompts are tokens, not weights"

    def look_at(self, model: nn.Module, config: Any) -> None:
        vit = vision_transformer(model, self.title)
        strange = next((block for block in vit.blocks if not hasattr(_plain(block), "mlp")), None)
        if strange is not None or not all("qkv" in dict(_plain(block).attn.named_children()) for block in vit.blocks):
            raise ValueError("NOAH needs blocks with a fused attn.qkv and an mlp, which these blocks do not have.")
        self._new_choice = Choice(*[config.sized(len(vit.blocks))] * 2)

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        vit = vision_transformer(self.model, self.title)
        index = int(name.rpartition(".")[2])
        return {
            "index": index,
            "is_last": index == len(vit.blocks) - 1,
            "prefix_tokens": vit.num_prefix_tokens,
            "width": vit.embed_dim,
            "choice": self._new_choice,
        }

    def layers(self) -> list[NoahLayer]:
        """The adapted blocks, in order."""
        return [module for module in self.model.modules() if isinstance(module, NoahLayer)]

    def choice(self, adapter_name: str) -> Choice:
        """The current subnets of an adapter. Its fields may be set to other subnets within the adapter's sizes."""
        return self.layers()[0].choice[adapter_name]

    def cut(self, adapter_name: str, subnet: Subnet) -> None:
        """Permanently cut the adapter to this subnet."""
        for layer in self.layers():
            layer.cut(adapter_name, subnet)
        choice, config = self.choice(adapter_name), self.peft_config[adapter_name]
        choice.training = choice.evaluation = subnet
        for name in MODULES:
            setattr(config, name, list(getattr(subnet, name)))


def _plain(block: nn.Module) -> Any:
    return block.get_base_layer() if isinstance(block, NoahLayer) else block

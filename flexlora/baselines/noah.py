"""NOAH, neural prompt search (Zhang et al., 2022, arXiv 2206.04673, section 3).

Three modules in every block of a ViT: prompts before it (VPT-Deep's), a LoRA at its fused query, key and value, and a
bottleneck adapter behind its MLP. How large each is, block by block, is a subnet that an evolutionary search picks out
of a supernet (`flexlora/methods/noah_supernet.py`) and that is then trained from scratch. A block with p prompts, rank
r and bottleneck m trains p · d + r · (d + 3d) + m · (2d + 1) + d parameters. The subnets that the authors published for
VTAB-1K have 360,134 on ViT-B/16 on average over the 19 tasks: the "0.36M" of the FlexLoRA paper's Table 16.

Weights are entangled, as in AutoFormer: a subnet takes the first p prompts, the first r rows of A and columns of B, and
the first m neurons of the adapter.

Where the description leaves room, as in their code (Davidzhangyuanhan/NOAH e9c55f3):

- The adapter is h ← h + W_u QuickGELU(W_d h + b_d) + b_u on the MLP's output, Xavier's W_d and W_u: its output at the
  start is not the backbone's, nor near it. LoRA has no scale and starts at B = 0; prompts are Xavier's.
- A block without prompts of its own passes on those of the block before it.
- Dropout of 0.1 on prompts, LoRA's input and the adapter's activations. Their stochastic depth is left out: no method
  here has one.
- Prompts stand behind the prefix tokens, as VPT's do here, and not behind the patches: attention does not see where.
  Their code also has prompts before the first block, which its own prompts replace at once: they would not train.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from flexlora.tuner.peft_type import register_tuner

from . import places
from .base import BaselineConfig, BaselineLayer, BaselineModel, hint
from .vpt import vision_transformer

# What is sized, in this order wherever sizes stand in a row.
MODULES = ("prompt_dim", "lora_dim", "adapter_dim")


@dataclass(frozen=True)
class Subnet:
    """The sizes of the three modules, a number a block; 0 is no such module in that block."""

    prompt_dim: tuple[int, ...]
    lora_dim: tuple[int, ...]
    adapter_dim: tuple[int, ...]

    def sizes(self, block: int) -> tuple[int, int, int]:
        """Prompts, LoRA's rank and the adapter's bottleneck in a block."""
        return self.prompt_dim[block], self.lora_dim[block], self.adapter_dim[block]

    def tokens_before(self, block: int) -> int:
        """Prompts in the sequence that reaches a block: those of the last block before it that has some."""
        return next((size for size in reversed(self.prompt_dim[:block]) if size), 0)

    def parameters(self, width: int) -> int:
        """Adapter parameters in a ViT of this width."""
        adapters = sum(size * (2 * width + 1) + width for size in self.adapter_dim if size)
        return sum(self.prompt_dim) * width + sum(self.lora_dim) * 4 * width + adapters


@dataclass
class NoahConfig(BaselineConfig):
    """Configuration of a [`NoahModel`]: its sizes are lists of one number a block, or one number for all of them."""

    method: ClassVar[str] = "noah"
    default_targets: ClassVar[str] = places.BLOCKS

    prompt_dim: list[int] | int = field(default=5, metadata=hint("Prompts before each block."))
    lora_dim: list[int] | int = field(default=5, metadata=hint("Rank of the LoRA at each block's qkv."))
    adapter_dim: list[int] | int = field(default=5, metadata=hint("Bottleneck of the adapter behind each block's MLP."))
    dropout: float = field(
        default=0.1, metadata=hint("Dropout on prompts, on LoRA's input and on the adapter's activations.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in MODULES:
            value = getattr(self, name)
            sizes = value if isinstance(value, list) else [value]
            self.require(
                bool(sizes) and all(type(size) is int and size >= 0 for size in sizes),
                name,
                "a whole number of at least 0, or a list of them, one a block",
            )
        some = any(_some(getattr(self, name)) for name in MODULES)
        self.require(some, "prompt_dim", "above 0 where lora_dim and adapter_dim are 0")
        self.require_dropout()
        self.require(
            self.target_modules == self.default_targets and not self.exclude_modules,
            "exclude_modules" if self.exclude_modules else "target_modules",
            "left out: prompts go through all blocks",
        )

    def sizes(self, name: str, blocks: int) -> list[int]:
        """The sizes of a module, a number a block.

        Raises:
            ValueError: the list is one for another number of blocks.
        """
        value = getattr(self, name)
        sizes = value if isinstance(value, list) else [value] * blocks
        if len(sizes) != blocks:
            raise ValueError(f"`{name}` has {len(sizes)} sizes, the model has {blocks} blocks.")
        return list(sizes)

    def subnet(self, blocks: int) -> Subnet:
        """The sizes of a ViT with so many blocks.

        Raises:
            ValueError: as `sizes`.
        """
        return Subnet(*(tuple(self.sizes(name, blocks)) for name in MODULES))


def _some(sizes: list[int] | int) -> bool:
    return any(sizes) if isinstance(sizes, list) else sizes > 0


@dataclass
class Choice:
    """The subnet that an adapter is, shared by its layers: one in training, and one in evaluation."""

    training: Subnet
    evaluation: Subnet


class NoahLayer(BaselineLayer):
    """A block of a ViT with prompts (p × d), a LoRA (A: r × d, B: 3d × r) and an adapter (m × d, m, d × m, d)."""

    adapter_layer_names = (
        "noah_prompt",
        "noah_lora_A",
        "noah_lora_B",
        "noah_down",
        "noah_down_bias",
        "noah_up",
        "noah_up_bias",
    )
    other_param_names = ("settings", "choice")
    noah_prompt: nn.ParameterDict
    noah_lora_A: nn.ParameterDict
    noah_lora_B: nn.ParameterDict
    noah_down: nn.ParameterDict
    noah_down_bias: nn.ParameterDict
    noah_up: nn.ParameterDict
    noah_up_bias: nn.ParameterDict
    settings: dict[str, NoahConfig]
    choice: dict[str, Choice]
    index: int
    is_last: bool
    prefix_tokens: int

    def update_layer(self, adapter_name: str, config: Any, **place: Any) -> None:
        self.index, self.is_last, self.prefix_tokens = place["index"], place["is_last"], place["prefix_tokens"]
        self.settings[adapter_name] = config
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
        self.finish_update(adapter_name, config)

    def cut(self, adapter_name: str, subnet: Subnet) -> None:
        """Keep of the parameters what `subnet` takes."""
        prompts, rank, bottleneck = subnet.sizes(self.index)
        kept = {
            "noah_prompt": (prompts, lambda p: p[:prompts]),
            "noah_lora_A": (rank, lambda p: p[:rank]),
            "noah_lora_B": (rank, lambda p: p[:, :rank]),
            "noah_down": (bottleneck, lambda p: p[:bottleneck]),
            "noah_down_bias": (bottleneck, lambda p: p[:bottleneck]),
            "noah_up": (bottleneck, lambda p: p[:, :bottleneck]),
            "noah_up_bias": (bottleneck, lambda p: p),
        }
        for name, (size, part) in kept.items():
            parameters = getattr(self, name)
            if adapter_name not in parameters:
                continue
            whole = parameters.pop(adapter_name)
            if size:
                parameters[adapter_name] = nn.Parameter(part(whole.detach()).clone(), whole.requires_grad)

    def _get_available_adapters(self) -> set[str]:
        return set(self.settings)  # also of those of which this block has no module

    def _subnet(self, adapter_name: str) -> Subnet:
        choice = self.choice[adapter_name]
        return choice.training if self.training else choice.evaluation

    def adapted(self, adapters: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(batch, prefix + prompts + patches, d) in and out; no prompts into the first block and out of the last."""
        if kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
            raise ValueError("NOAH lengthens the sequence: an attention mask does not fit it.")
        start = position = self.prefix_tokens
        parts, after = [x[:, :start]], 0
        for adapter_name in adapters:
            subnet = self._subnet(adapter_name)
            before, own = subnet.tokens_before(self.index), subnet.prompt_dim[self.index]
            if own:
                prompt = self.noah_prompt[adapter_name][:own].expand(len(x), -1, -1)
                parts.append(functional.dropout(prompt, self.settings[adapter_name].dropout, self.training).to(x.dtype))
            else:
                parts.append(x[:, position : position + before])
            position += before
            after += own or before
        x = torch.cat([*parts, x[:, position:]], dim=1)
        with self._inside(adapters):
            x = self.base_layer(x, *args, **kwargs)
        if self.training:
            x = x + self._untouched(adapters).to(x.dtype)
        return torch.cat([x[:, :start], x[:, start + after :]], dim=1) if self.is_last else x

    @contextlib.contextmanager
    def _inside(self, adapters: list[str]) -> Iterator[None]:
        """LoRA and adapter where they belong in the block, for as long as it runs."""

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
        """B A dropout(x): (..., d) → (..., 3d)."""
        rank = self._subnet(adapter_name).lora_dim[self.index]
        if not rank:
            return x.new_zeros(())
        a, b = self.noah_lora_A[adapter_name][:rank], self.noah_lora_B[adapter_name][:, :rank]
        x = functional.dropout(self.branch_input(x, a), self.settings[adapter_name].dropout, self.training)
        return functional.linear(functional.linear(x, a), b)

    def _adapter(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        """W_u dropout(QuickGELU(W_d x + b_d)) + b_u: (..., d) → (..., d)."""
        size = self._subnet(adapter_name).adapter_dim[self.index]
        if not size:
            return x.new_zeros(())
        down, bias = self.noah_down[adapter_name][:size], self.noah_down_bias[adapter_name][:size]
        hidden = functional.linear(self.branch_input(x, down), down, bias)
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        hidden = functional.dropout(hidden, self.settings[adapter_name].dropout, self.training)
        return functional.linear(hidden, self.noah_up[adapter_name][:, :size], self.noah_up_bias[adapter_name])

    def _untouched(self, adapters: Sequence[str]) -> torch.Tensor:
        """0, with a gradient of 0 for every module that the subnet leaves out: processes that share gradients, and an
        optimizer with a memory, find all of them at every step."""
        total = next(self.base_layer.parameters()).new_zeros(())
        for adapter_name in adapters:
            sizes = self._subnet(adapter_name).sizes(self.index)
            names = (("noah_prompt",), ("noah_lora_A", "noah_lora_B"), self.adapter_layer_names[3:])
            for size, group in zip(sizes, names, strict=True):
                for name in group if not size else ():
                    if adapter_name in getattr(self, name):
                        total = total + 0 * getattr(self, name)[adapter_name].sum()
        return total


class NoahModel(BaselineModel):
    """Prompts, LoRA and adapters of a size of their own in every block, by `get_peft_model(model, NoahConfig(...))`.

    Raises:
        ValueError: the model is not timm's `VisionTransformer`, or has another number of blocks than there are sizes.
    """

    prefix = "noah_"
    tuner_layer_cls = NoahLayer
    title = "NOAH"
    made_for = "timm's VisionTransformer"
    not_mergeable = "its prompts are tokens, not weights"

    def prepare(self, model: nn.Module, config: Any) -> None:
        vit = vision_transformer(model, self.title)
        strange = next((block for block in vit.blocks if not hasattr(_plain(block), "mlp")), None)
        if strange is not None or not all(hasattr(_plain(block).attn, "qkv") for block in vit.blocks):
            raise ValueError("NOAH's LoRA sits on a fused attn.qkv, its adapter behind the mlp: these blocks differ.")
        self._new_choice = Choice(*[config.subnet(len(vit.blocks))] * 2)

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
        """Which subnet of an adapter is used; its fields may be set to others within the adapter's own sizes."""
        return self.layers()[0].choice[adapter_name]

    def cut(self, adapter_name: str, subnet: Subnet) -> None:
        """Make the adapter this subnet of itself, for good."""
        for layer in self.layers():
            layer.cut(adapter_name, subnet)
        choice, config = self.choice(adapter_name), self.peft_config[adapter_name]
        choice.training = choice.evaluation = subnet
        for name in MODULES:
            setattr(config, name, list(getattr(subnet, name)))


def _plain(block: nn.Module) -> Any:
    return block.get_base_layer() if isinstance(block, NoahLayer) else block


register_tuner("NOAH", NoahConfig, NoahModel)

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
from flexlora.tuner.checks import FieldError, is_whole, probability, require

from .base import BaselineConfig, BaselineLayer, BaselineModel, setting
from .vpt import replace_prompts, vision_transformer, without_prompts

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

    default_targets: ClassVar[str] = architectures.BLOCKS

    prompt_dim: list[int] | int = setting(5, "Prompts before each block.")
    lora_dim: list[int] | int = setting(5, "Rank of the LoRA at each block's qkv.")
    adapter_dim: list[int] | int = setting(5, "Bottleneck of the adapter behind each block's MLP.")
    dropout: float = setting(0.1, "Dropout on prompts, on LoRA's input and on the adapter's activations.", probability)

    subnet: str | None = setting(
        None, "A subnet.json of NOAH's search, whose sizes take the place of the three; unset once it is read."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subnet is not None:
            for name, sizes in _read_subnet(Path(self.subnet).expanduser()).items():
                setattr(self, name, sizes)
            self.subnet = None  # a saved adapter has its sizes with it
        for name in MODULES:
            sizes = self._listed(name, 1)
            require(
                self,
                name,
                bool(sizes) and all(type(size) is int and size >= 0 for size in sizes),
                "a whole number of at least 0, or a list of them, one a block",
            )
        some = any(any(self._listed(name, 1)) for name in MODULES)
        require(self, "prompt_dim", some, "above 0 where lora_dim and adapter_dim are 0")
        self.require_all_blocks()

    def sized(self, blocks: int) -> Subnet:
        """The sizes of a ViT with so many blocks.

        Raises:
            ValueError: a list is one for another number of blocks.
        """
        for name in MODULES:
            count = len(self._listed(name, blocks))
            if count != blocks:
                raise ValueError(f"`{name}` has {count} sizes, the model has {blocks} blocks.")
        return Subnet(*(tuple(self._listed(name, blocks)) for name in MODULES))

    def _listed(self, name: str, blocks: int) -> list[int]:
        value = getattr(self, name)
        return value if isinstance(value, list) else [value] * blocks


def _read_subnet(file: Path) -> dict[str, list[int]]:
    """The sizes in a file, a list a module.

    Raises:
        FieldError: the file cannot be read, or has no such lists.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FieldError("subnet", f"cannot be read: {file}: {error}") from error
    found = content if isinstance(content, dict) else {}
    for name in MODULES:
        sizes = found.get(name)
        if not isinstance(sizes, list) or not all(is_whole(size) for size in sizes):
            raise FieldError("subnet", f"has no list of sizes '{name}': {file} is no subnet.json of noah_supernet")
    return {name: found[name] for name in MODULES}


@dataclass
class Choice:
    """The subnet that an adapter is, shared by its layers: one in training, and one in evaluation."""

    training: Subnet
    evaluation: Subnet


# Each parameter's module, and its dimension of the module's size.
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
        """Keep of the parameters what `subnet` takes."""
        for name in self.adapter_layer_names:
            parameters = getattr(self, name)
            if adapter_name in parameters:
                part = self._part(name, adapter_name, subnet)
                whole = parameters.pop(adapter_name)
                if part is not None:
                    parameters[adapter_name] = nn.Parameter(part.detach().clone(), whole.requires_grad)

    def _part(self, name: str, adapter_name: str, subnet: Subnet) -> torch.Tensor | None:
        """What `subnet` takes of a parameter, its first rows or columns; None where it leaves its module out."""
        module, dim = ENTANGLED[name]
        size = getattr(subnet, module)[self.index]
        if not size:
            return None
        whole: torch.Tensor = getattr(self, name)[adapter_name]
        return whole if dim is None else whole.narrow(dim, 0, size)

    def _get_available_adapters(self) -> set[str]:
        return set(self.settings)  # also of those of which this block has no module

    def holds(self, adapter_name: str) -> bool:
        return adapter_name in self.settings

    def _subnet(self, adapter_name: str) -> Subnet:
        choice = self.choice[adapter_name]
        return choice.training if self.training else choice.evaluation

    def adapted(self, adapters: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(batch, prefix + prompts + patches, d) in and out; no prompts into the first block and out of the last."""
        if kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
            raise ValueError("NOAH lengthens the sequence: an attention mask does not fit it.")
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
                # Processes that share gradients, and an optimizer with a memory, find a gradient of 0.
                x = x + (0 * parameter.sum()).to(x.dtype)
        return without_prompts(x, self.prefix_tokens, count) if self.is_last else x

    def _taken(self, name: str, adapter_name: str) -> torch.Tensor | None:
        return self._part(name, adapter_name, self._subnet(adapter_name))

    def _left_out(self, adapters: Sequence[str]) -> Iterator[nn.Parameter]:
        """The parameters of modules that the subnet has not in this block."""
        for adapter_name in adapters:
            for name in self.adapter_layer_names:
                if adapter_name in getattr(self, name) and self._taken(name, adapter_name) is None:
                    yield getattr(self, name)[adapter_name]

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
        a, b = self._taken("noah_lora_A", adapter_name), self._taken("noah_lora_B", adapter_name)
        if a is None or b is None:
            return x.new_zeros(())
        x = functional.dropout(self.branch_input(x, a.dtype), self.settings[adapter_name].dropout, self.training)
        return functional.linear(functional.linear(x, a), b)

    def _adapter(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        """W_u dropout(QuickGELU(W_d x + b_d)) + b_u: (..., d) → (..., d)."""
        down, up = self._taken("noah_down", adapter_name), self._taken("noah_up", adapter_name)
        if down is None or up is None:
            return x.new_zeros(())
        hidden = functional.linear(self.branch_input(x, down.dtype), down, self._taken("noah_down_bias", adapter_name))
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        hidden = functional.dropout(hidden, self.settings[adapter_name].dropout, self.training)
        return functional.linear(hidden, up, self._taken("noah_up_bias", adapter_name))


class NoahModel(BaselineModel, name="noah", config=NoahConfig, layer=NoahLayer):
    """Prompts, LoRA and adapters of a size of their own in every block, by `get_peft_model(model, NoahConfig(...))`.

    Raises:
        ValueError: the model is not timm's `VisionTransformer`, or has another number of blocks than there are sizes.
    """

    made_for = "timm's VisionTransformer"
    not_mergeable = "its prompts are tokens, not weights"

    def look_at(self, model: nn.Module, config: Any) -> None:
        vit = vision_transformer(model, self.title)
        strange = next((block for block in vit.blocks if not hasattr(_plain(block), "mlp")), None)
        if strange is not None or not all(hasattr(_plain(block).attn, "qkv") for block in vit.blocks):
            raise ValueError("NOAH's LoRA sits on a fused attn.qkv, its adapter behind the mlp: these blocks differ.")
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

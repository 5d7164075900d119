"""Conversion to and from plain LoRA: an exact export for any LoRA loader, and a warm start from a LoRA checkpoint."""

from __future__ import annotations

import copy
import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftType, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import nn

from .config import FlexLoraConfig
from .delta import DeltaLayer, LoraFactors
from .names import PEFT_PREFIX, plain_name, specific_first
from .packing import FACTORS, SLOTS, flexlora_layers
from .weighted import truncate

LORA_WEIGHTS = "adapter_model.safetensors"


def convert_to_lora(
    model: nn.Module, adapter_name: str = "default", *, uniform_rank: bool = False
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Convert the adapter to a plain LoRA with the same ΔW.

    FlexLoRA gives B = P diag(λ) and A = Q, over the active directions. E²LoRA, its variants and ShareLoRA give every
    module a copy of the factors that it shares; E²DoRA gives a DoRA.

    PEFT's own `convert_to_lora` also works, but it approximates every dense ΔW by an SVD of a rank that you choose.

    Args:
        model: a PeftModel, or a model with the adapter injected.
        adapter_name: the adapter to convert.
        uniform_rank: pad all modules with zeros to the largest rank, and multiply the scale into B (lora_alpha = r).
            This is for servers that ignore `rank_pattern` and `alpha_pattern`. By default each module keeps its rank.

    Returns:
        The LoRA configuration and its state dict (lora_A: rank × in, lora_B: out × rank), ready to be saved.

    Raises:
        ValueError: the model has no adapter with that name, or the adapter is of a kind that is no LoRA.
    """
    config: Any = getattr(model, "peft_config", {}).get(adapter_name)
    if isinstance(config, FlexLoraConfig):
        factors, state_dict = _of_flexlora(model, adapter_name)
    else:
        factors, state_dict = _of_layers(model, adapter_name)
    top = max(int(factor.right.shape[0]) for factor in factors.values())
    ranks, alphas = {}, {}
    for name, (left, right, scaling, magnitude) in factors.items():
        rank = int(right.shape[0])
        if uniform_rank:
            left = nn.functional.pad(left * scaling, (0, top - rank))
            right = nn.functional.pad(right, (0, 0, 0, top - rank))
        else:
            ranks[name], alphas[name] = rank, scaling * rank
        state_dict[f"{PEFT_PREFIX}{name}.lora_A.weight"] = right.detach().clone().contiguous()
        state_dict[f"{PEFT_PREFIX}{name}.lora_B.weight"] = left.detach().clone().contiguous()
        if magnitude is not None:
            state_dict[f"{PEFT_PREFIX}{name}.lora_magnitude_vector"] = magnitude.detach().clone()
    if all(rank == config.r and alphas[name] == config.lora_alpha for name, rank in ranks.items()):
        # If not all modules have the default, all modules are named: PEFT matches a pattern as a suffix, so "q" would
        # also set the rank of an unnamed "block.q".
        ranks, alphas = {}, {}
    bias = getattr(config, "bias", "none")
    lora = LoraConfig(
        r=top if uniform_rank else config.r,
        lora_alpha=top if uniform_rank else config.lora_alpha,
        rank_pattern=specific_first(ranks),
        alpha_pattern={name: alphas[name] for name in specific_first(ranks)},
        lora_dropout=config.lora_dropout,
        bias="lora_only" if bias == "flexlora_only" else bias,
        use_dora=any(factor.magnitude is not None for factor in factors.values()),
        inference_mode=True,
        **{
            name: copy.copy(getattr(config, name))
            for name in (
                "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
                "fan_in_fan_out", "base_model_name_or_path", "revision", "task_type", "auto_mapping",
            )
            if hasattr(config, name)
        },
    )  # fmt: skip
    return lora, state_dict


def _of_flexlora(model: nn.Module, adapter_name: str) -> tuple[dict[str, LoraFactors], dict[str, torch.Tensor]]:
    """The factors of each module over the active directions, and all other saved tensors: heads and biases."""
    scaling = {plain_name(name): layer.scaling[adapter_name] for name, layer in flexlora_layers(model, adapter_name)}
    packed = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    factors, rest = {}, {}
    for key, value in packed.items():
        module, _, factor = key.rpartition(".")
        if factor == FACTORS["lambda"]:
            left, right = packed[f"{module}.{FACTORS['P']}"] * value, packed[f"{module}.{FACTORS['Q']}"]
            factors[plain_name(module)] = LoraFactors(left, right, scaling[plain_name(module)])
        elif factor not in (*FACTORS.values(), SLOTS):
            rest[key] = value.detach().clone().contiguous()
    return factors, rest


def _of_layers(model: nn.Module, adapter_name: str) -> tuple[dict[str, LoraFactors], dict[str, torch.Tensor]]:
    """The factors of each module of a tuner whose layers can name them, and the saved tensors of the head."""
    layers = {
        plain_name(name): module
        for name, module in model.named_modules()
        if isinstance(module, DeltaLayer) and module.holds(adapter_name)
    }
    factors = {name: layer.lora_factors(adapter_name) for name, layer in layers.items()}
    kept = {name: factor for name, factor in factors.items() if factor is not None}
    if not kept or len(kept) < len(factors):
        raise ValueError(f"the model has no adapter named '{adapter_name}' that is a LoRA, such as FlexLoRA or E²LoRA.")
    saved = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    rest = {key: value for key, value in saved.items() if plain_name(key).rpartition(".")[0] not in layers}
    return kept, {key: value.detach().clone().contiguous() for key, value in rest.items()}


def save_as_lora(
    path: str | os.PathLike, model: nn.Module, adapter_name: str = "default", *, uniform_rank: bool = False
) -> None:
    """Save the result of [`convert_to_lora`] in the folder `path`: a LoRA adapter that loads without flexlora."""
    config, state_dict = convert_to_lora(model, adapter_name, uniform_rank=uniform_rank)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.cpu() for key, value in state_dict.items()},
        folder / LORA_WEIGHTS,
        metadata={"format": "pt"},
    )
    config.save_pretrained(str(folder))


def warm_start_from_lora(model: nn.Module, path: str | os.PathLike, adapter_name: str = "default") -> None:
    """Initialise the adapter from a LoRA checkpoint: every ΔW = s B A becomes an orthonormal P diag(λ) Q by an SVD.

    A module keeps at least its initial rank: if the LoRA's rank is smaller, the other directions keep their zero-impact
    start. If the LoRA's rank is above the module's `max_rank`, the strongest directions are kept and a warning gives
    the lost share of energy. `modules_to_save` (a classifier) are loaded too. Call it before the optimizer is made.

    Args:
        model: a PeftModel, or a model with the adapter injected.
        path: folder (or hub id) of a LoRA adapter in safetensors.
        adapter_name: the FlexLoRA adapter to fill.

    Raises:
        ValueError: the folder does not contain a plain LoRA, or its update has parts that this adapter does not have:
            other modules, embeddings, biases of the update.
        FileNotFoundError: the folder has no safetensors weights.
    """
    _config(model, adapter_name)
    if Path(path).is_dir() and not (Path(path) / LORA_WEIGHTS).is_file():
        raise FileNotFoundError(f"{path} has no {LORA_WEIGHTS}: only safetensors are loaded.")
    lora = PeftConfig.from_pretrained(str(path))
    if lora.peft_type != PeftType.LORA or getattr(lora, "use_dora", False):
        dora = " with use_dora" if getattr(lora, "use_dora", False) else ""
        raise ValueError(f"{path} contains {lora.peft_type}{dora}, not a plain LoRA.")
    weights = {
        f"{PEFT_PREFIX}{plain_name(key)}": value for key, value in load_peft_weights(str(path), device="cpu").items()
    }

    layers = {plain_name(name): layer for name, layer in flexlora_layers(model, adapter_name)}
    found = {key.removeprefix(PEFT_PREFIX).rpartition(".lora_A.")[0] for key in weights if ".lora_A." in key}
    strangers = sorted(found - layers.keys())
    if strangers:
        raise ValueError(
            f"the LoRA in {path} adapts {len(strangers)} modules that this adapter does not, such as {strangers[0]}."
        )

    state_dict = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    keys = {plain_name(key): key for key in state_dict}
    _check_rest([key for key in weights if plain_name(key) not in keys], path)
    lost, energy = 0.0, 0.0
    for name in sorted(found):
        layer = layers[name]
        left = weights[f"{PEFT_PREFIX}{name}.lora_B.weight"].double()
        right = weights[f"{PEFT_PREFIX}{name}.lora_A.weight"].double()
        gain = _lora_scaling(lora, name, rank=right.shape[0]) / layer.scaling[adapter_name]
        full = truncate((left, left.new_full((right.shape[0],), gain), right), right.shape[0])
        kept = min(int(full[1].numel()), layer.capacity(adapter_name))
        energy += float(full[1].square().sum())
        lost += float(full[1][kept:].square().sum())
        p, values, q = layer.packed_factors(adapter_name)
        rank = max(kept, int(values.numel()))
        factors = {
            "P": torch.cat([full[0][:, :kept].to(p), p[:, kept:rank]], 1),
            "lambda": torch.cat([full[1][:kept].to(p), torch.zeros_like(values[kept:rank])]),
            "Q": torch.cat([full[2][:kept].to(p), q[kept:rank]]),
        }
        for factor, value in factors.items():
            state_dict[keys[f"{name}.{FACTORS[factor]}"]] = value
        state_dict[keys[f"{name}.{SLOTS}"]] = torch.arange(rank, dtype=torch.int32)
    for key, value in weights.items():
        known = keys.get(plain_name(key))
        if known is not None:
            state_dict[known] = value
    set_peft_model_state_dict(model, state_dict, adapter_name=adapter_name)
    if lost > 0:
        warnings.warn(
            f"the LoRA's rank is above max_rank: {100 * lost / energy:.2g} % of its energy is lost. Raise max_rank.",
            stacklevel=2,
        )


def _check_rest(names: list[str], path: str | os.PathLike) -> None:
    """Check the tensors of a LoRA whose names this adapter does not have. Those of A and B are converted.

    Raises:
        ValueError: a tensor is a part of the update, such as the factor of an embedding.
    """
    rest = sorted(plain_name(name) for name in names if not name.endswith((".lora_A.weight", ".lora_B.weight")))
    update = [name for name in rest if ".lora_" in name]
    if update:
        raise ValueError(
            f"the LoRA in {path} has {len(update)} tensors in its update that FlexLoRA cannot have, such as "
            f"{update[0]}: its ΔW would be another one."
        )
    if rest:
        warnings.warn(
            f"the LoRA in {path} also trained {len(rest)} tensors that this adapter does not have, such as {rest[0]}: "
            "they keep the base model's values. The same bias and modules_to_save in FlexLoraConfig take them over.",
            stacklevel=3,
        )


def _lora_scaling(lora: LoraConfig, name: str, rank: int) -> float:
    alpha = lora.alpha_pattern.get(get_pattern_key(list(lora.alpha_pattern), name), lora.lora_alpha)
    return alpha / (math.sqrt(rank) if lora.use_rslora else rank)


def _config(model: nn.Module, adapter_name: str) -> FlexLoraConfig:
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, FlexLoraConfig):
        raise ValueError(f"the model has no FlexLoRA adapter named '{adapter_name}'.")
    return config

"""The names of modules in the base model."""

from __future__ import annotations

PEFT_PREFIX = "base_model.model."


def plain_name(name: str) -> str:
    """Remove the wrappers of PEFT, FSDP and torch.compile from the name of a module or key."""
    parts = [part for part in name.split(".") if part not in ("_orig_mod", "_fsdp_wrapped_module")]
    return ".".join(parts).removeprefix(PEFT_PREFIX)


def without_numbers(name: str) -> str:
    """Remove the numbers of layers from a module's name, so that modules of one type have the same name."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def specific_first(ranks: dict[str, int]) -> dict[str, int]:
    """Sort the longest names first, because PEFT matches patterns as suffixes and takes the first match."""
    return dict(sorted(ranks.items(), key=lambda item: (-len(item[0]), item[0])))

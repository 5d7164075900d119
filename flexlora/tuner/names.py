"""Names of modules, as the base model has them."""

from __future__ import annotations

PEFT_PREFIX = "base_model.model."


def plain_name(name: str) -> str:
    """A module's (or key's) name in the base model: without the wrappers of PEFT, FSDP and torch.compile."""
    parts = [part for part in name.split(".") if part not in ("_orig_mod", "_fsdp_wrapped_module")]
    return ".".join(parts).removeprefix(PEFT_PREFIX)


def specific_first(ranks: dict[str, int]) -> dict[str, int]:
    """Longest names first: PEFT matches a pattern as a suffix and takes the first that fits."""
    return dict(sorted(ranks.items(), key=lambda item: (-len(item[0]), item[0])))

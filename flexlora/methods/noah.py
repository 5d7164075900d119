"""NOAH's last stage: a subnet trained from scratch, by its sizes or by the file that `noah_supernet` wrote."""

import json
from pathlib import Path
from typing import Any

from flexlora.baselines.noah import MODULES
from flexlora.errors import UserError
from flexlora.methods.base import Method, RunContext
from flexlora.methods.peft import PeftMethod, peft_config


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """NOAH from the settings' fields; a `subnet` takes the place of the sizes among them.

    Raises:
        UserError: as `peft_config`, or the file holds no subnet.
    """
    fields = dict(fields)
    subnet = fields.pop("subnet", None)
    if subnet is not None:
        fields |= read_subnet(Path(subnet).expanduser())
    return PeftMethod(*peft_config(fields, context))


def read_subnet(file: Path) -> dict[str, list[int]]:
    """The sizes in a file, a list a module.

    Raises:
        UserError: it cannot be read, or is none of `noah_supernet`'s.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"method.subnet: cannot read {file}: {error}") from error
    sizes = {name: content.get(name) for name in MODULES} if isinstance(content, dict) else {}
    for name in MODULES:
        value = sizes.get(name)
        if not isinstance(value, list) or not all(type(size) is int for size in value):
            raise UserError(f"method.subnet: {file} has no list of sizes '{name}': give a subnet.json of noah_supernet")
    return sizes  # type: ignore[return-value]

"""Methods: from settings to an adapted model. One file a kind; `method.kind` names it."""

from typing import Any

from flexlora.methods.base import Method, RunContext
from flexlora.plugins import load_plugin

__all__ = ["Method", "RunContext", "build_method"]


def build_method(settings: dict[str, Any], context: RunContext) -> Method:
    """The method that `settings` (`method.*`) describes, ready to wrap a model.

    Raises:
        UserError: no such kind, a field the method does not have, a value it does not take.
    """
    fields = dict(settings)
    fields.pop("name")
    return load_plugin("flexlora.methods", fields.pop("kind"), "method.kind", "build")(fields, context)

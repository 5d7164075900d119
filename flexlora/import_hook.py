"""Run a function as soon as another package has been imported, without importing that package."""

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _AfterImport(MetaPathFinder):
    """A finder that calls `action` after the import of one package.

    The finder stays in `sys.meta_path` until the package has been executed, because transformers and others check
    whether a package is installed (`importlib.util.find_spec`) long before they import it.
    """

    def __init__(self, package: str, action: Callable[[], Any]) -> None:
        self.package = package
        self.action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.package:
            return None
        others = (finder.find_spec for finder in list(sys.meta_path) if finder is not self)
        spec = next((found for find in others if (found := find(fullname, path, target)) is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_then_act(module: ModuleType) -> None:
            with _no_garbage_collection():
                execute(module)
            if self in sys.meta_path:  # only one call, even if others requested a spec before
                sys.meta_path.remove(self)
                self.action()

        spec.loader.exec_module = execute_then_act  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause garbage collection: an import leaves none, and each collection would look at all objects of torch."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def call_after_import(package: str, action: Callable[[], Any]) -> None:
    """Call `action` once after `package` has been imported. The package must not be imported yet."""
    sys.meta_path.insert(0, _AfterImport(package, action))

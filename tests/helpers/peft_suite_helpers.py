"""PEFT's own common tests, read from the sdist of the installed PEFT, with this package's tuners as their cases.

Nothing of PEFT's tests is in this repository. `Suite` imports their modules from an unpacked sdist and calls their test
methods with other parameters: where PEFT's tests list their tuners and models, `Suite` puts a `Case`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import itertools
import os
import subprocess
import sys
import tarfile
import tempfile
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from peft import LoraConfig
from timm.models.vision_transformer import VisionTransformer

from flexlora.tuner.adapter_layer import AdapterLayer

SDIST = "FLEXLORA_PEFT_SDIST"
"""Variable: the unpacked folder, or the archive, of the sdist. By default pip downloads it."""
PACKAGE = "peft_sdist_tests"
VIT = "ViT"
"""The name of a case's model for methods that need timm's `VisionTransformer`."""
CASE = ("test_name", "model_id", "config_cls", "config_kwargs")


@dataclass(frozen=True)
class Case:
    """A tuner on a model of the suite.

    Attributes:
        config: the configuration's class.
        settings: its fields; those of PEFT's tests come with the case.
        model: the model's name in the suite, or the folder of a small model.
        family: the test class: custom, active, mixed, decoder, features or classes.
        not_identity: fields for a start that is not the base's output, if `init_weights=False` does not do.
        noise: the deviation of noise on new parameters where a test wants another start than the base's output.
    """

    config: type
    settings: dict[str, Any]
    model: str = "MLP"
    family: str = "custom"
    not_identity: dict[str, Any] | None = None
    noise: float = 0.0


@dataclass
class Outcome:
    """The tests of a case by outcome."""

    passed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


CLASSES = {
    "custom": ("test_custom_models", "TestPeftCustomModel"),
    "active": ("test_custom_models", "TestMultipleActiveAdapters"),
    "mixed": ("test_custom_models", "TestMixedAdapterBatches"),
    "decoder": ("test_decoder_models", "TestDecoderModels"),
    "features": ("test_feature_extraction_models", "TestPeftFeatureExtractionModel"),
    "classes": ("test_seq_classifier", "TestSequenceClassificationModels"),
}
# The parameters of a family's tests that a case gives.
GIVEN = {
    "active": ("test_name", "tuner_method", "config_cls", "config_kwargs_1", "config_kwargs_2"),
    "mixed": ("test_name", "config0", "config1"),
}


def unpacked(folder: Path) -> Path:
    """The folder of the sdist of the installed PEFT: the one that `FLEXLORA_PEFT_SDIST` names, or a download.

    Skips the test if there is none.
    """
    given = os.environ.get(SDIST)
    if given is not None and (Path(given) / "tests").is_dir():
        return Path(given)
    archive = Path(given) if given is not None else _download(folder)
    if not archive.is_file():
        pytest.skip(f"{archive} has no sdist of PEFT")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return next(found.parent for found in folder.glob("*/tests"))


def _download(folder: Path) -> Path:
    wanted = f"peft=={version('peft')}"
    command = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), wanted]
    done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True, check=False)
    found = sorted(folder.glob("peft-*.tar.gz"))
    if not found:
        pytest.skip(f"pip cannot download the sdist of {wanted} ({SDIST} may name it): {done.stderr[-200:].strip()}")
    return found[0]


class Suite:
    """The test modules of an unpacked sdist."""

    def __init__(self, sdist: Path) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(sdist / "tests")]
        sys.modules[PACKAGE] = package  # it stays: tests pickle their models
        with _stubbed():
            for name, _ in CLASSES.values():
                importlib.import_module(f"{PACKAGE}.{name}")
            self.modules = {n: m for n, m in sys.modules.items() if n.startswith(f"{PACKAGE}.")}

    def tests(self, case: Case) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """Yield (name, function, arguments) of every test of the case's family that takes a case."""
        module, name = CLASSES[case.family]
        owner = getattr(self.modules[f"{PACKAGE}.{module}"], name)
        for test, function in inspect.getmembers(owner, inspect.isfunction):
            if test.startswith("test_") and "prompt_learning" not in test:
                for arguments in _parametrized(function, self._given(case)):
                    extra = [f"{k}={v}" for k, v in arguments.items() if k not in (*CASE, *GIVEN.get(case.family, ()))]
                    yield "-".join([test, *extra]), function, {"self": owner(), **arguments}

    def run(self, case: Case, request: pytest.FixtureRequest, only: str = "") -> Outcome:
        """Run the tests of a case whose names contain `only`."""
        outcome = Outcome()
        for name, function, arguments in self.tests(case):
            if only in name:
                try:
                    with self._around(case), _fixtures(function, request) as fixtures:
                        function(**arguments, **fixtures)
                except pytest.skip.Exception:
                    outcome.skipped.append(name)
                except BaseException as error:  # pytest's own failures are no Exception
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    outcome.failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
                else:
                    outcome.passed.append(name)
        return outcome

    @contextlib.contextmanager
    def _around(self, case: Case) -> Iterator[None]:
        """Let `set_init_weights_false` know this package's configurations, seed the test, and keep it quiet."""
        original = self.modules[f"{PACKAGE}.testing_utils"].set_init_weights_false
        away = case.family in GIVEN

        def not_identity(config_cls: type, settings: dict[str, Any]) -> dict[str, Any]:
            nonlocal away
            away = True
            return original(config_cls, settings) if case.not_identity is None else settings | case.not_identity

        def new_parameter(layer: Any, name: str, adapter_name: str, *args: Any) -> None:
            _new_parameter(layer, name, adapter_name, *args)
            parameter = getattr(layer, name)[adapter_name]
            if away and case.noise and parameter.device.type != "meta":
                with torch.no_grad():
                    parameter.add_(case.noise * torch.randn_like(parameter))

        with contextlib.ExitStack() as stack, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for module in self.modules.values():
                if hasattr(module, "set_init_weights_false"):
                    stack.enter_context(mock.patch.object(module, "set_init_weights_false", not_identity))
            stack.enter_context(mock.patch.object(AdapterLayer, "new_parameter", new_parameter))
            stack.enter_context(mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", new=True))
            if case.family == "mixed":
                # A batch of fewer rows is rounded differently, by more than 1e-8 where a log-probability is near 0.
                stack.enter_context(mock.patch.object(torch, "allclose", partial(torch.allclose, atol=1e-5)))
            if case.model == VIT:
                custom = self.modules[f"{PACKAGE}.test_custom_models"]
                stack.enter_context(mock.patch.object(custom.MockTransformerWrapper, "from_pretrained", _vit))
                images = {"X": torch.linspace(-1, 1, 9 * 3 * 32 * 32).view(9, 3, 32, 32)}
                tester = custom.TestPeftCustomModel
                stack.enter_context(mock.patch.object(tester, "prepare_inputs_for_testing", return_value=images))
            torch.manual_seed(0)
            yield

    def _given(self, case: Case) -> dict[str, Any]:
        """The parameters of the family's tests that a case gives."""
        if case.family not in GIVEN:
            return dict(zip(CASE, ("", case.model, case.config, case.settings), strict=True))
        away = self.modules[f"{PACKAGE}.testing_utils"].set_init_weights_false
        settings = away(case.config, case.settings) if case.not_identity is None else case.settings | case.not_identity
        if case.family == "active":
            return dict(zip(GIVEN["active"], ("", "", case.config, settings, settings), strict=True))
        return {"config0": (case.config, settings), "config1": (case.config, settings), "test_name": ""}


@contextlib.contextmanager
def _stubbed() -> Iterator[None]:
    """Put empty modules in place of libraries that PEFT's tests import and that the tests used here do not call."""
    made = []
    for name, attribute in (("diffusers", "StableDiffusionPipeline"), ("datasets", "load_dataset")):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            module.__dict__.update(
                {attribute: type(attribute, (), {}), "__spec__": importlib.machinery.ModuleSpec(name, None)}
            )
            sys.modules[name] = module
            made.append(name)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def _parametrized(function: Any, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of a test: those of the case, times those of the test's other parameters."""
    taken: dict[str, Any] = {}
    others: list[list[dict[str, Any]]] = []
    for mark in getattr(function, "pytestmark", []):
        if mark.name in ("skip", "skipif") and (mark.name == "skip" or any(mark.args)):
            return
        if mark.name != "parametrize":
            continue
        names, values, *_ = mark.args
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        if "config0" in names and "config0" in given:
            others.append([row for value in values for row in _like_lora(dict(zip(names, value, strict=True)), given)])
        elif set(names) <= set(given):
            taken |= {name: given[name] for name in names}
        else:
            rows = [value if len(names) > 1 else (value,) for value in values]
            others.append([dict(zip(names, row, strict=True)) for row in rows])
    if "config_cls" in taken or "config0" in given:
        for choice in itertools.product(*others):
            yield dict(itertools.chain(taken.items(), *(part.items() for part in choice)))


def _like_lora(row: dict[str, Any], given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The row of a test for plain LoRA on the linears of the MLP, with the case's configurations in its place."""
    made = {}
    for name in ("config0", "config1"):
        config = row.get(name)
        if type(config) is not LoraConfig or config.use_dora:
            return
        places = {part: getattr(config, part) for part in ("target_modules", "modules_to_save")}
        if not set(places["target_modules"]) | set(places["modules_to_save"] or ()) <= {"lin0", "lin1"}:
            return
        kind, settings = given[name]
        made[name] = kind(**settings | {part: list(wanted) for part, wanted in places.items() if wanted})
    yield {"test_name": given["test_name"], **made}


_new_parameter = AdapterLayer.new_parameter


class _ViT(VisionTransformer):
    """A small ViT that takes its inputs as the models of PEFT's tests do."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return super().forward(X.to(self.head.weight.dtype)).log_softmax(-1)


def _vit(model_id: str, dtype: torch.dtype | None = None) -> _ViT:
    torch.manual_seed(0)
    return _ViT(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=3).to(dtype)


@contextlib.contextmanager
def _fixtures(function: Any, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The fixtures that a test of PEFT's asks for."""
    wanted = inspect.signature(function).parameters
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        if "tmp_path" in wanted:
            found["tmp_path"] = Path(folder)
        for name in ("recwarn", "monkeypatch", "caplog", "capsys"):
            if name in wanted:
                found[name] = request.getfixturevalue(name)
                if name == "recwarn":
                    found[name].clear()
        yield found

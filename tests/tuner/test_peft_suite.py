"""PEFT's own common tests pass with FlexLoRA and every baseline, but for listed exceptions.

The tests are read from the sdist of the installed PEFT (see `peft_suite_helpers`), which pip downloads. Each tuner is
one test here, which prints its counts. `FLEXLORA_PEFT_SUITE=all` also runs the language models and encoders.
"""

from __future__ import annotations

import fnmatch
import os
from typing import Any, NamedTuple

import pytest
from filelock import FileLock
from peft_suite_cases import OURS, TUNERS, Models, cases, write_models
from peft_suite_helpers import PACKAGE, Suite, unpacked

WHOLE = os.environ.get("FLEXLORA_PEFT_SUITE") == "all"


class Expected(NamedTuple):
    """Tests that are expected to fail: patterns of tuners and tests, a part of the error, and the reason."""

    tuners: str
    tests: str
    error: str
    reason: str


EXPECTED = [
    Expected("adalora", "test_multiple_adapters_mixed*", "total_step", "PEFT's test gives AdaLoRA no total_step"),
    Expected("adalora", "*", "only 1 trainable adapter", "PEFT's AdaLoRA trains one adapter"),
    Expected("e2*", "*", "needs a sharing plan", "the test makes a configuration from the targets alone"),
    Expected("*", "*", "cannot be merged into the backbone", "the method is not linear, so there is nothing to merge"),
    *(
        Expected(tuner, "test_disable_adapters*", "Assert", "its output at the start is not that of the base")
        for tuner in ("houlsby", "pfeiffer", "ssf", "vpt", "noah")
    ),
    *(Expected(tuner, "*", "must be left out: prompts", "prompts go through all blocks") for tuner in ("vpt", "noah")),
    *(
        Expected(tuner, "test_in_features*", "Assert", "a block of a ViT is no linear and has no number of inputs")
        for tuner in ("vpt", "noah")
    ),
    Expected("lora_dash", "test_only_params_are_updated", "Assert", "δ trains from step `tinit` on only"),
    Expected("mlae", "test_mixed*", "Assert", "the test calls eval() before new layers are made: experts are dropped"),
    *(
        Expected(tuner, "test_parameters_after_loading_model", "Assert", "a rate of 0.5 on inputs of 90 gives NaN")
        for tuner in ("dynamic_dora", "moslora", "rasa", "sora")
    ),
]


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist share one download.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "peft-sdist"
    folder.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        return Suite(unpacked(folder))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.mark.slow
@pytest.mark.parametrize("tuner", TUNERS)
def test_the_common_tests_of_peft(tuner: str, suite: Suite, models: Models, request: Any) -> None:
    mlp = suite.modules[f"{PACKAGE}.test_custom_models"].MLP
    passed, skipped, expected, surprises = 0, 0, 0, []
    for case in cases(tuner, models, mlp, WHOLE):
        outcome = suite.run(case, request)
        passed, skipped = passed + len(outcome.passed), skipped + len(outcome.skipped)
        for test, error in outcome.failed.items():
            if _reason(tuner, test, error) is None:
                surprises.append(f"{case.family} {test}: {error}")
            else:
                expected += 1
    print(f"\n{tuner}: {passed} passed, {expected} expected, {len(surprises)} failed, {skipped} not for it", flush=True)
    assert not surprises, "\n".join(surprises)
    assert passed > 10


def _reason(tuner: str, test: str, error: str) -> str | None:
    """Why this test is expected to fail with this error; None if it is not expected."""
    for row in EXPECTED:
        if fnmatch.fnmatch(tuner, row.tuners) and fnmatch.fnmatch(test, row.tests) and row.error in error:
            return row.reason
    return None


def test_every_tuner_of_this_package_is_in_the_matrix() -> None:
    assert {name.removesuffix("_moving").removesuffix("_fixed") for name in TUNERS} == {
        "lora",
        "adalora",
        *OURS,
    }


def test_only_a_listed_error_is_expected() -> None:
    assert _reason("houlsby", "test_merge_layers", "ValueError: it cannot be merged into the backbone") is not None
    assert _reason("houlsby", "test_merge_layers", "KeyError: 'lora_A'") is None
    assert _reason("flexlora_moving", "test_disable_adapters", "AssertionError") is None

"""AdapterFusion in the runner: the second stage over adapters saved by `method=pfeiffer`."""

import shutil
from pathlib import Path

import pytest
import torch
from method_helpers import TOTAL_STEPS, load_saved, logits, make_loop, settings_of, tiny, train, wrapped

from flexlora.errors import UserError
from flexlora.methods import check_method
from flexlora.settings import RunSettings
from flexlora.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters of BERT, of trainings of different lengths."""
    folders = []
    for steps in (4, 7):
        folders.append(tmp_path_factory.mktemp("pfeiffer"))
        method, model = train("pfeiffer", "bert", "method.bottleneck=4", total_steps=steps)
        method.save(model, folders[-1])
    return [str(folder) for folder in folders]


def overrides(adapters: list[str], *others: str) -> list[str]:
    return [f"method.adapters=[{','.join(adapters)}]", *others]


def test_two_steps_move_the_fusion_and_the_head_and_no_adapter(adapters):
    method, model = wrapped("adapter_fusion", "bert", *overrides(adapters))
    before = {key: value.detach().clone() for key, value in model.state_dict().items()}
    make_loop(method, model, settings_of("adapter_fusion"), total_steps=2).run()
    trains = {key for key, value in model.named_parameters() if value.requires_grad}
    assert {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])} == trains
    counted = method.parameters(model)
    assert counted["adapter_active"] == 2 * (3 * 32**2 + 32)  # two layers of width 32; the adapters are not among them


def test_a_fusion_is_saved_and_loaded_and_refuses_merging(adapters, tmp_path):
    method, model = train("adapter_fusion", "bert", *overrides(adapters))
    method.save(model, tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} <= {".safetensors", ".json", ".md"}
    torch.testing.assert_close(logits(load_saved(tiny("bert"), tmp_path)), logits(model), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="AdapterFusion cannot be merged into the backbone"):
        model.merge_and_unload()


def test_the_penalty_is_added_once_a_step(adapters):
    """Compared with training without the penalty, SGD's step differs by rate · 2 · weight · (V - I)."""
    moved = {}
    for weight in (0.0, 3.0):
        method, model = wrapped("adapter_fusion", "bert", *overrides(adapters, f"method.value_weight={weight}"))
        values = {key: p for key, p in model.named_parameters() if "fusion_value" in key}
        with torch.no_grad():
            for value in values.values():
                value.add_(0.5)
        method.optimizer = lambda groups, rate, decay: torch.optim.SGD(groups, lr=1e-3)  # type: ignore[method-assign]
        settings = settings_of("adapter_fusion", "training.max_grad_norm=null", "training.gradient_accumulation=2")
        before = {key: value.detach().clone() for key, value in values.items()}
        make_loop(method, model, settings, total_steps=1).run()
        moved[weight] = {key: value.detach() - before[key] for key, value in values.items()}
    for key in moved[0.0]:
        difference = moved[3.0][key] - moved[0.0][key]
        torch.testing.assert_close(difference, -0.01 * 2 * 3.0 * (before[key] - torch.eye(32)), rtol=1e-4, atol=1e-6)


def test_a_resumed_training_equals_an_uninterrupted_one(adapters, tmp_path):
    settings = settings_of("adapter_fusion", "training.checkpoint_every=3", "training.eval_every=6")
    checkpoints = Checkpoints(tmp_path)
    method, straight = wrapped("adapter_fusion", "bert", *overrides(adapters))
    make_loop(method, straight, settings, checkpoints=checkpoints).run()
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{TOTAL_STEPS:09d}")
    method, model = wrapped("adapter_fusion", "bert", *overrides(adapters))
    resumed = make_loop(method, model, settings, checkpoints=checkpoints)
    loaded = checkpoints.load()
    assert loaded is not None
    resumed.load_state_dict(*loaded)
    assert resumed.outcome.steps == 3
    resumed.run()
    expected = straight.state_dict()
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, expected[key])] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], r"method.adapters must be the folders of at least two saved Pfeiffer adapters, not \[\]"),
        (["{a}"], r"method.adapters must be the folders of at least two saved Pfeiffer adapters"),
        (
            ["{a}", "{a}/nothing"],
            r"method: .*/nothing is not an adapter saved by PEFT: it has no adapter_config\.json",
        ),
    ],
)
def test_a_folder_without_an_adapter_is_refused_in_one_line(adapters, given, said):
    folders = [folder.format(a=adapters[0]) for folder in given]
    with pytest.raises(UserError, match=said) as refused:
        wrapped("adapter_fusion", "bert", *overrides(folders))
    assert "\n" not in str(refused.value)


def test_too_few_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    settings: RunSettings = settings_of("adapter_fusion", f"method.adapters=[{tmp_path}]")
    with pytest.raises(UserError, match="at least two"):
        check_method(settings)


def test_adapters_of_another_backbone_are_refused(adapters):
    with pytest.raises(UserError, match=r"method: .* has no adapter for .*: it is of another backbone") as refused:
        wrapped("adapter_fusion", "deberta-v2", *overrides(adapters))
    assert "\n" not in str(refused.value)

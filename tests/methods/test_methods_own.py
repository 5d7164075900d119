"""A method of one's own from outside the package: a YAML by --config-dir, and a file of Python beside it."""

import json
from pathlib import Path

import pytest
from runner_helpers import one_line
from safetensors.torch import load_file

from flexlora.testing.commands import RunCommand

YAML = {
    "my_vera": "name: my_vera\nkind: peft\npeft_type: VERA\nr: 16\nrecipes: {glue: {training.learning_rate: 0.002}}\n",
    "ia3": "name: ia3\nkind: peft\npeft_type: IA3\n",
    "clipped": "name: clipped\nkind: my_methods.clipped\nlimit: 0.001\n",
    "lost": "name: lost\nkind: my_methods.nowhere\n",
    "empty": "name: empty\nkind: my_methods.empty\n",
    "misspelt": "name: misspelt\nkind: peft\npeft_type: VERA\nvera_dropuot: 0.1\n",
}
CLIPPED = '''"""The linear probe with the classifier's weights held within a limit after every step."""

import torch

from flexlora.methods.mask import MaskMethod


class Clipped(MaskMethod):
    def __init__(self, limit, head_modules):
        super().__init__([], head_modules)
        self.limit = limit

    def attach(self, model, optimizer):
        self.model = model

    def after_step(self, step, optimizer):
        with torch.no_grad():
            self.model.classifier.weight.clamp_(-self.limit, self.limit)


def build(fields, context):
    return Clipped(fields["limit"], context.head_modules)
'''
# Trainable parameters outside the head, of two layers with hidden size 32 and 64 in the feed-forward.
ADAPTER = {
    "my_vera": 2 * (5 * (16 + 32) + (16 + 64)),  # a vector of r and one of the output's size for each of six linears
    "ia3": 2 * (4 * 32 + 64 + 64),  # one factor an output, or an input of what PEFT takes for feed-forward
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `--config-dir` names, with a package of Python beside it."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "conf" / "method").mkdir(parents=True)
    for name, text in YAML.items():
        (folder / "conf" / "method" / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "my_methods").mkdir()
    (folder / "my_methods" / "clipped.py").write_text(CLIPPED, encoding="utf-8")
    (folder / "my_methods" / "empty.py").write_text("", encoding="utf-8")
    return folder


def run(flexlora_run: RunCommand, folder: Path, arguments: list[str], tmp_path: Path, *more: str):
    rest = [argument for argument in arguments if not argument.startswith("training.learning_rate")]
    return flexlora_run(
        "--config-dir", str(folder / "conf"), *rest, f"output_root={tmp_path}", "training.epochs=1", *more,
        PYTHONPATH=str(folder),
    )  # fmt: skip


@pytest.mark.parametrize("name", ADAPTER)
def test_a_users_own_method_trains(name, flexlora_run, folder, arguments, tmp_path):
    rate = [] if name == "my_vera" else ["training.learning_rate=0.001"]
    result = run(flexlora_run, folder, arguments, tmp_path, f"method={name}", *rate)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = tmp_path.rglob("result.json")
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["status"], record["method"]) == ("done", name)
    assert record["parameters"]["adapter_active"] == ADAPTER[name]
    assert list((file.parent / "adapter").glob("*.safetensors"))
    assert record["config"]["training"]["learning_rate"] == (0.002 if name == "my_vera" else 0.001)


def test_a_file_of_python_and_its_hooks(flexlora_run, folder, arguments, tmp_path):
    result = run(flexlora_run, folder, arguments, tmp_path, "method=clipped", "training.learning_rate=0.001")
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = tmp_path.rglob("trained.safetensors")
    assert float(load_file(file)["classifier.weight"].abs().max()) == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ia3", "training.learning_rate is not set: "),
        ("lost", "method.kind: Python finds no module 'my_methods.nowhere'. Add its folder to PYTHONPATH."),
        ("empty", "method.kind: the module 'my_methods.empty' has no 'build'"),
        ("misspelt", "there is no setting 'method.vera_dropuot': VeraConfig has no such field. Did you mean method."),
    ],
)
def test_an_error_in_a_users_method_is_one_line(name, message, flexlora_run, folder, arguments, tmp_path):
    rate = [] if name == "ia3" else ["training.learning_rate=0.001"]
    result = run(flexlora_run, folder, arguments, tmp_path, f"method={name}", *rate)
    assert result.returncode == 2
    assert one_line(result).startswith(message)


def test_a_file_with_the_name_of_one_of_ours_is_refused(flexlora_run, arguments, tmp_path):
    """Hydra takes ours and passes over the user's without a word."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    file = tmp_path / "conf" / "method" / "lora.yaml"
    file.write_text(YAML["my_vera"], encoding="utf-8")
    result = flexlora_run("--config-dir", str(tmp_path / "conf"), *arguments, "method=lora", f"output_root={tmp_path}")
    assert result.returncode == 2
    assert one_line(result).startswith(f"{file} has the name of a method of the package, which would be used instead")

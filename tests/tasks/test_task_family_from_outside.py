"""A family of tasks from outside the package: a YAML in a folder of one's own, and a module that Python finds."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.settings import register_schemas, resolve
from flexlora.tasks import load_task

MODULE = """
from dataclasses import dataclass

from flexlora.tasks import Split, Task


@dataclass
class Settings:
    name: str
    family: str
    num_labels: int
    epochs: int
    batch_size: int
    rows: int = 8


class Parity(Task):
    def __init__(self, settings):
        self.name, self.num_labels, self.main_metric = settings.name, settings.num_labels, "accuracy"
        self.train = Split("train", [{"number": n} for n in range(settings.rows)], [1] * settings.rows)


def load(settings):
    return Parity(settings)
"""
YAML = "name: parity\nfamily: {module}\nnum_labels: 2\nepochs: 1\nbatch_size: 4\n"


@pytest.fixture
def settings_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The settings of a run on a task of the module `module`, whose text is `text`."""

    def compose_it(module: str, text: str = MODULE, more: str = "", *overrides: str):
        name = module.rpartition(".")[2]
        package = tmp_path / module.partition(".")[0]
        package.mkdir()
        (package / f"{name}.py").write_text(text, encoding="utf-8")
        (tmp_path / "conf" / "task").mkdir(parents=True)
        (tmp_path / "conf" / "task" / "parity.yaml").write_text(YAML.format(module=module) + more, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        folders = [conf_dir(), tmp_path / "conf"]
        register_schemas()
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            chosen = ["task=parity", "method=linear", "training.learning_rate=1e-3", *overrides]
            config = compose("config", overrides=[f"hydra.searchpath=[{folders[1]}]", *chosen])
        return resolve(config, folders)

    return compose_it


def test_its_settings_are_its_own_dataclass_and_its_task_loads(settings_of):
    run, plain = settings_of("families_a.parity", MODULE, "rows: 5\n")
    assert (type(run.task).__name__, run.task.rows, plain["task"]["rows"]) == ("Settings", 5, 5)
    assert (run.training.epochs, run.training.batch_size) == (1, 4)
    assert len(load_task(run.task).train) == 5


@pytest.mark.parametrize(
    ("module", "text", "more", "message"),
    [
        ("families_b.parity", MODULE, "rowz: 5\n", r"^there is no setting 'task.rowz'. Did you mean task.rows"),
        ("families_c.parity", MODULE, "rows: many\n", r"^task.rows: "),
        ("families_d.parity", "import nothing_of_that_name\n", "", "finds no module 'nothing_of_that_name'"),
        ("families_g.parity", "x = (\n", "", "task.family: importing 'families_g.parity' fails: SyntaxError: "),
        ("families_e.parity", "Settings = 3\n", "", "families_e.parity.Settings must be a dataclass"),
        ("families_f.parity", "x = 3\n", "", "task.family: the module 'families_f.parity' has no"),
    ],
)
def test_an_error_in_a_users_task_is_one_line(settings_of, module, text, more, message):
    with pytest.raises(UserError, match=message) as error:
        settings_of(module, text, more)
    assert "\n" not in str(error.value)

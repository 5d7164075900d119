"""Settings are composed as Hydra composes them, with each file read once and each choice of groups composed once."""

import pickle
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from flexlora.cli import config_loader
from flexlora.cli.command import call_with_settings
from flexlora.cli.config_loader import CachedLoader
from flexlora.conf_path import conf_dir
from flexlora.results.record import Ending
from flexlora.settings import register_schemas

COLA = ["task=glue/cola", "method=lora"]
COMMAND_LINES = {
    "choices alone": COLA,
    "values": [*COLA, "seed=3", "seed=4", "task.data_dir=x", "variant='a b'", 'output_root="x=y,z"', "~method.r"],
    "additions": ["hydra.sweep.dir=x", *COLA, "+method.rank_pattern={a:1}", "++method.r=3", "+extra=[1,2]"],
    "a choice after values": ["seed=1", "task=vtab/kitti", "training.epochs=3", "method=adaptformer", "scale=tiny"],
    "an experiment": ["experiment=glue", *COLA, "seed=2"],
}
REFUSED = {
    "no such choice": ["task=glue/cola", "method=none"],
    "no such key": [*COLA, "seeed=1"],
    "a wrong type first of two": [*COLA, "seed=a", "data_seed=b"],
    "an addition of what is there": [*COLA, "+seed=1"],
    "two choices": [*COLA, "method=linear", "+method=bitfit"],
    "several values": [*COLA, "seed=0,1"],
    "no key": [*COLA, "a b"],
}


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hydra composes with the cached loader, and with its own again after the test."""
    monkeypatch.setattr("hydra._internal.hydra.ConfigLoaderImpl", ConfigLoaderImpl)
    config_loader.install()
    yield
    GlobalHydra.instance().clear()


def compose_all(lines: list[list[str]], twice: bool = False) -> list[DictConfig | str]:
    """What each command line composes, or the text of its refusal; of the same loader."""
    register_schemas()
    results: list[DictConfig | str] = []
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        for line in lines * (1 + twice):
            try:
                results.append(compose("config", line, return_hydra_config=True))
            except HydraException as error:
                results.append(f"{error} {error.__cause__}")
    return results


def test_it_composes_and_refuses_what_hydra_does(monkeypatch):
    monkeypatch.setattr("hydra._internal.hydra.ConfigLoaderImpl", ConfigLoaderImpl)
    lines = [*COMMAND_LINES.values(), *REFUSED.values()]
    expected = compose_all(lines)
    assert [isinstance(result, str) for result in expected] == [False] * len(COMMAND_LINES) + [True] * len(REFUSED), (
        expected
    )
    config_loader.install()
    names = [*COMMAND_LINES, *REFUSED] * 2
    for name, ours, hydras in zip(names, compose_all(lines, twice=True), expected * 2, strict=True):
        if isinstance(hydras, str):
            assert ours == hydras, name
        else:
            assert isinstance(ours, DictConfig), name
            assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(hydras), name


def test_a_composed_config_can_be_changed_without_changing_the_next(cached):
    first, second = compose_all([COLA, COLA])
    assert isinstance(first, DictConfig)
    assert isinstance(second, DictConfig)
    first.training.epochs = 77
    first.hydra.job.name = "x"
    assert second.training.epochs != 77
    assert second.hydra.job.name != "x"


def test_a_folder_that_hydra_is_told_to_search_has_groups_too(cached, tmp_path: Path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "one.yaml").write_text("# @package _global_\nseed: 5\n")
    searched = [f"hydra.searchpath=[file://{tmp_path}]", "+more=one"]
    (config,) = compose_all([[*COLA, *searched]])
    assert isinstance(config, DictConfig)
    assert config.seed == 5


def test_a_loader_travels_to_other_processes_without_what_it_keeps(cached):
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        assert isinstance(loader, CachedLoader)
        before = len(pickle.dumps(loader))
        compose("config", COLA)
        assert len(pickle.dumps(loader)) == before
        assert isinstance(pickle.loads(pickle.dumps(loader)).config_search_path, ConfigSearchPath)


def test_a_single_run_is_composed_once(cached, monkeypatch):
    """Hydra asks for the config twice: to learn whether it is a sweep, and to run."""
    composed = []
    merge = ConfigLoaderImpl._compose_config_from_defaults_list

    def count(self, defaults, repo):
        composed.append(defaults)
        return merge(self, defaults, repo)

    monkeypatch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", count)
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        configs = [hydra.compose_config("config", COLA, mode) for mode in (RunMode.MULTIRUN, RunMode.RUN)]
    assert len(composed) == 1
    assert configs[0] == configs[1]


def test_a_sweep_reads_each_file_once_and_composes_each_choice_of_groups_once(monkeypatch, tmp_path: Path):
    """Six runs of two methods; Hydra composes the sweep as a whole beside them, with the default method."""
    read: Counter[str] = Counter()
    composed: Counter[str] = Counter()
    load, merge = OmegaConf.load, ConfigLoaderImpl._compose_config_from_defaults_list

    def count_files(file):
        read[str(file.name)] += 1
        return load(file)

    def count_compositions(self, defaults, repo):
        composed.update(path for default in defaults if "method/" in (path := default.config_path or ""))
        return merge(self, defaults, repo)

    monkeypatch.setattr(OmegaConf, "load", count_files)
    monkeypatch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", count_compositions)
    monkeypatch.setattr("hydra._internal.hydra.ConfigLoaderImpl", ConfigLoaderImpl)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # which the command sets
    words = ["-m", "task=glue/cola", "method=lora,linear", "seed=0,1,2", f"output_root={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["flexlora-run", *words])
    runs = []

    def job(settings, plain, overrides):
        runs.append((settings.method.name, settings.seed))
        return Ending("done")

    handler = signal.getsignal(signal.SIGTERM)
    try:
        endings = call_with_settings("flexlora-run", job)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert endings == [Ending("done")] * 6
    assert runs == [(method, seed) for method in ("lora", "linear") for seed in (0, 1, 2)]
    assert {"lora.yaml", "linear.yaml"} <= {Path(file).name for file in read}
    assert set(read.values()) == {1}
    assert (composed["method/lora"], composed["method/linear"]) == (1, 1)

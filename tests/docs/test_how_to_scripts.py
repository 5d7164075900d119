"""The scripts of the how-to pages run as they stand. Those of other packages are skipped where these are missing."""

import runpy
import sys

import pytest
from commonsense_helpers import write_llama
from page_helpers import write_files
from safetensors import safe_open


def run(script, *words, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
    runpy.run_path(str(script), run_name="__main__")


def test_both_exports_give_the_outputs_of_the_adapter(tmp_path, monkeypatch):
    (script,) = write_files("export-and-serve.md", tmp_path)
    run(script, folder=tmp_path, monkeypatch=monkeypatch)  # it checks the outputs itself
    assert {"lora", "merged"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("package", ["trl", "pytorch_lightning"])
def test_a_trainer_of_another_package_trains_flexlora(package, tmp_path, monkeypatch):
    pytest.importorskip(package)
    scripts = write_files("train-with-trl-and-lightning.md", tmp_path)
    script = scripts[["trl", "pytorch_lightning"].index(package)]
    words = [write_llama(tmp_path / "llama"), 12] if package == "trl" else []
    run(script, *words, folder=tmp_path, monkeypatch=monkeypatch)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as saved:
        ranks = {saved.get_tensor(name).shape[0] for name in saved.keys() if "lora_A" in name}  # noqa: SIM118
    assert len(ranks) > 1, "no rank moved"

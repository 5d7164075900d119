"""`adapter=DIR` reads one adapter's own files, checks them against their run's record, and asks nobody else."""

import json
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import wrapped
from safetensors.torch import load_file, save_file

from flexlora.errors import UserError
from flexlora.results.files import file_sha256
from flexlora.results.record import RunRecord
from flexlora.results.whole import vouched_files
from flexlora.training.weights import load_start

LABELS = ["0", "1"]


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a finished run of LoRA, with its adapter and its record."""
    method, model = wrapped("lora", "bert")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    method.save(model, adapter)
    write_record(adapter.parent)
    return adapter.parent


def write_record(run: Path, labels: list[str] = LABELS, **changes: Any) -> None:
    values: dict[str, Any] = {
        "status": "done", "error": None, "scale": "local", "task": "glue/cola", "model": "m", "method": "lora",
        "variant": "v", "seed": 0, "data_seed": 0, "config": {"task": {"labels": labels}}, "config_hash": "h",
        "adapter_sha256": {file.name: file_sha256(file) for file in (run / "adapter").glob("*.safetensors")},
        "files": vouched_files(run), "backbone": {"sha256": {"model.safetensors": "a", "config.json": "c"}},
    }  # fmt: skip
    RunRecord(**values | changes).write(run / "result.json")


def start(
    run: Path, labels: list[str] = LABELS, base: dict[str, str] | None = None, **settings: Any
) -> torch.nn.Module:
    method, model = wrapped("lora", "bert", *(f"method.{name}={value}" for name, value in settings.items()))
    load_start(method, model, str(run / "adapter"), labels, base)
    return model


def refusal(run: Path, labels: list[str] = LABELS, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        start(run, labels, **settings)
    assert str(caught.value).startswith("adapter: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_else_is_read_unpickled_or_asked_for(run, monkeypatch):
    """Neither with the adapter's own weights, nor when these are gone and a pickle lies beside them."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError(f"{arguments} {keywords}")

    for place in ("torch.load", "pickle.load", "pickle.loads", "peft.utils.save_and_load.torch_load"):
        monkeypatch.setattr(place, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", refuse)
    opened = set()
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.add(self.name), real_open(self, *a, **k))[1])
    # The files of another adapter in places that its configuration names.
    config = run / "adapter" / "adapter_config.json"
    values = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": "somebody/else"}
    config.write_text(json.dumps(values), encoding="utf-8")
    write_record(run)
    start(run)
    assert "adapter_model.bin" not in opened
    weights = run / "adapter" / "adapter_model.safetensors"
    (run / "adapter" / "adapter_model.bin").write_bytes(b"\x80\x04" + b"." * 10)
    weights.unlink()
    write_record(run)
    assert refusal(run).endswith("has no adapter_model.safetensors: weights in other files are not read")
    config.unlink()
    write_record(run)
    assert refusal(run).endswith("is not an adapter saved by PEFT: it has no adapter_config.json")


def test_the_record_is_not_passed_by(run):
    """A file that the record vouches for is there with its checksum, or the adapter is refused."""
    adapter = run / "adapter"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        content = (adapter / name).read_bytes()
        (adapter / name).unlink()
        (adapter / "adapter_model.bin").write_bytes(pickle.dumps({}))
        assert refusal(run) == f"adapter: {adapter / name} is missing, but its run wrote it"
        (adapter / name).write_bytes(content.replace(b"lora", b"LORA", 1))
        assert "is not what its run wrote: it is damaged, or was changed since" in refusal(run)
        (adapter / name).write_bytes(content)
    (run / "result.json").write_text("{", encoding="utf-8")
    message = refusal(run)
    assert f"the checksums of {adapter} cannot be read" in message
    assert message.endswith("copy the adapter to another folder to use it unchecked")
    (run / "result.json").unlink()
    start(run)


def test_settings_under_which_it_is_another_update_are_refused(run):
    assert refusal(run, lora_alpha=99).endswith("Set method.lora_alpha=16")
    assert "use_rslora=False, but this run has use_rslora=True" in refusal(run, use_rslora=True)


def test_a_damaged_configuration_is_one_line(run):
    (run / "result.json").unlink()
    config = run / "adapter" / "adapter_config.json"
    for content in (b"", b"{", b"[]", b"{}", b'{"peft_type": 5}', b"\xff\xfe", b"[" * 100_000, b"null"):
        config.write_bytes(content)
        assert str(config) in refusal(run)
    config.unlink()
    config.mkdir()
    assert "has no adapter_config.json" in refusal(run)


def test_a_head_is_kept_with_a_line_or_refused_for_its_order(run, caplog):
    caplog.set_level("INFO", "flexlora")
    model = start(run)
    assert "adapter: the saved head is kept: bert.pooler.dense, classifier" in caplog.messages
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    assert model.base_model.model.classifier.modules_to_save["default"].weight.equal(
        saved["base_model.model.classifier.weight"]
    )
    write_record(run, ["1", "0"])
    assert refusal(run).endswith("has the classes in the order 1, 0, but task.labels has 0, 1")
    write_record(run, ["bad", "good"])
    start(run)  # another task with as many classes, as in LoRA's paper


def test_another_model_than_the_adapters_is_said(run, caplog):
    start(run, base={"model.safetensors": "a", "config.json": "other"})
    assert caplog.messages == []
    start(run, base={"model.safetensors": "b", "config.json": "c"})
    assert caplog.messages == [
        f"adapter: {run / 'adapter'} was trained on another model than this run's: model.safetensors differs"
    ]


def test_a_method_without_peft_keeps_to_its_record_too(tmp_path, caplog):
    caplog.set_level("INFO", "flexlora")
    method, model = wrapped("bitfit", "bert")
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    method.save(model, adapter)
    write_record(adapter.parent)
    load_start(method, model, str(adapter), LABELS)
    assert "adapter: the saved head is kept: bert.pooler.dense, classifier" in caplog.messages
    file = adapter / "trained.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"trained\.safetensors is not what its run wrote"):
        load_start(method, model, str(adapter), LABELS)
    file.unlink()
    with pytest.raises(UserError, match=r"trained\.safetensors is missing, but its run wrote it"):
        load_start(method, model, str(adapter), LABELS)

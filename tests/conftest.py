"""What the runner's tests share: the installed command, and data and a model that the tests make themselves."""

import gc
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from flexlora.testing.commands import COMMAND, RunCommand, run_command
from flexlora.testing.small_data import write_bert, write_cola

ROOT = Path(__file__).resolve().parents[1]

# As `make test` does: the workers of pytest-xdist use every core, and the threads of torch would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores Ctrl-C, and so would every run that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection() -> None:
    """Collect no garbage while modules are imported: each collection would look at all objects of torch."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exempt what is there before the first test, for the same reason."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or triton's library complains at exit about its own objects


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test meets, or leaves anything in, the user's own cache; commands that a test starts inherit it."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist share one: a small encoder is pretrained by the first that needs it.
    os.environ["FLEXLORA_CACHE"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")
    os.environ["HF_HOME"] = str(base / "hub")  # huggingface_hub reads it once: it counts in commands only


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `FLEXLORA_CACHE` with the small encoders of `scale=tiny` after two steps instead of a whole pretraining.

    For tests of the way through, not of what comes out: pass it as `flexlora_run(..., FLEXLORA_CACHE=str(tiny_cache))`.
    """
    from flexlora.tiny.model_cache import ensure
    from flexlora.tiny.models import tiny
    from flexlora.tiny.pretrain_encoder import Pretraining

    cache = tmp_path_factory.mktemp("tiny-cache")
    short = Pretraining(texts=64, primer_steps=1, steps=2, batch_size=4)
    for name, relative in tiny.RELATIVES.items():
        folder = cache / "tiny" / f"{name}-{tiny.content_hash(relative, Pretraining())}"
        ensure(folder, name, lambda part, relative=relative: tiny.make(part, relative, short))
    return cache


@pytest.fixture(scope="session")
def cola(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the classic GLUE layout, 64 sentences to train on and 40 to evaluate on."""
    return write_cola(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers and hidden size 32 with random weights and a WordPiece vocabulary of its own."""
    return write_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def flexlora_run() -> RunCommand:
    """The command in a process of its own: `flexlora_run("task=glue/cola", ..., timeout=…)`."""
    return partial(run_command, COMMAND)


@pytest.fixture(scope="session")
def arguments(cola: Path, tiny_bert: Path) -> list[str]:
    """A short run on them; method and output_root are a test's own."""
    return [
        "task=glue/cola",
        "model=local",
        f"model.path={tiny_bert}",
        f"task.data_dir={cola}",
        "training.epochs=4",
        "training.batch_size=8",
        "training.learning_rate=5e-3",
        "variant=test",
    ]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared real data and models; tests that use it skip where it is absent."""
    folder = Path(os.environ.get("FLEXLORA_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "glue" / "CoLA").is_dir():
        pytest.skip("no shared real data beside the repository (FLEXLORA_SHARED may name it)")
    return folder

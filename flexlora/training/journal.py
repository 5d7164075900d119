"""The files that a training writes while it runs: `metrics.jsonl`, `ranks.jsonl` and predictions."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from flexlora.errors import UserError
from flexlora.results.files import JsonLines
from flexlora.results.predictions import Predictions
from flexlora.tasks import Split
from flexlora.training.distributed import shared_failure
from flexlora.training.outcome import Outcome


class Journal:
    """The files of one run. They start empty, or continue at the `positions` of a checkpoint.

    Only the main process has a `folder`. The others call the same methods, because its failed writes are raised on all
    processes.

    `guard` is called before predictions are written.

    Raises:
        UserError: the content of a file before its position has changed.
    """

    def __init__(
        self,
        folder: Path | None = None,
        positions: Mapping[str, Any] | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self._guard = guard
        self._files: dict[str, JsonLines] = {}
        self._predictions = None if folder is None else Predictions(folder)
        if folder is None:
            return
        try:
            for name in ("metrics", "ranks"):
                position = None if positions is None else positions[name]
                self._files[name] = JsonLines(folder / f"{name}.jsonl", position)
        except ValueError as error:
            self.close()
            raise UserError(f"{error}: move the run's folder away, or give variant=NAME") from error

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def metrics(self, row: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        self._write("metrics", row)

    def event(self, event: dict[str, Any]) -> None:
        """Add a line to `ranks.jsonl`."""
        self._write("ranks", event)

    def _write(self, name: str, row: dict[str, Any]) -> None:
        with shared_failure():
            if name in self._files:
                self._files[name].write(row)

    def predictions(self, step: int, found: Mapping[str, list[Any]], splits: list[Split], *, best: bool) -> None:
        """Keep the predictions of each split as the last ones, and if `best` also as the best ones."""
        with shared_failure():
            if self._predictions is not None:
                self._guard()
                labels = {split.name: split.labels for split in splits}
                self._predictions.keep(step, found, labels, best=best)

    def positions(self) -> dict[str, Any]:
        """Return the positions where the files end now, for a checkpoint."""
        return {name: file.position() for name, file in self._files.items()}

    def read_back(self, outcome: Outcome) -> None:
        """Fill in the fields that only the files hold (`IN_FILES`). A process without files does not need them."""
        if not self._files:
            return
        rows = list(self._files["metrics"].rows())
        outcome.losses = [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
        outcome.history = [
            {name: value for name, value in row.items() if name != "kind"} for row in rows if row["kind"] == "eval"
        ]
        outcome.events = list(self._files["ranks"].rows())

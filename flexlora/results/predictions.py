"""`predictions-{last,best}.parquet`: a run's prediction for every example of its last and of its best evaluation.

The columns are `split`, `index` (of the example in its split), `label` (null if it is not known) and `prediction`.
The metadata of the file has the step of the evaluation.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexlora.errors import one_line
from flexlora.reading import read_bytes
from flexlora.results.files import write_bytes

LAST, BEST = "predictions-last.parquet", "predictions-best.parquet"
LARGEST = 2**30
"""The largest file that is read, in bytes."""
MOST_ROWS = 10_000_000
"""The largest number of rows that is read: a small file can stand for any number of equal rows."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """The predictions of one evaluation and the known labels, by split and in the order of the split."""

    step: int
    predictions: dict[str, Array]
    labels: dict[str, Array]


class Predictions:
    """Writes the two files into a run's folder. A run that continues from a checkpoint replaces them."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def keep(
        self,
        step: int,
        predictions: Mapping[str, Sequence[Any]],
        labels: Mapping[str, Sequence[Any] | None],
        *,
        best: bool,
    ) -> None:
        """Write the evaluation at `step` as the last one, and if `best` also as the best one, each in one move.

        Args:
            step: the number of completed optimizer steps.
            predictions: one number for each example, by split and in the order of the split.
            labels: the true labels in the same form; None for a split whose labels are not known.
        """
        content = _parquet(step, predictions, labels)
        for name in (LAST, BEST) if best else (LAST,):
            write_bytes(self.run / name, content)


def read_answers(path: Path) -> Answers:
    """Read the predictions in a file.

    Raises:
        ValueError: the file cannot be read, or does not contain predictions; the message names the file and the cause.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        content = pyarrow.BufferReader(read_bytes(path, LARGEST))
        rows = parquet.read_metadata(content).num_rows
        if rows > MOST_ROWS:
            raise ValueError(f"it has {rows:,} rows")
        table = parquet.read_table(content)
        step = int(table.schema.metadata[b"step"])
        split, label = (table.column(name).to_numpy() for name in ("split", "label"))
        prediction, known = table.column("prediction").to_numpy(), table.column("label").is_valid().to_numpy()
    except (OSError, KeyError, TypeError, ValueError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ValueError(f"{path} holds no predictions: {reason}") from error
    rows = {name: np.flatnonzero(split == name) for name in dict.fromkeys(split)}
    return Answers(
        step,
        {name: prediction[chosen] for name, chosen in rows.items()},
        {name: label[chosen] for name, chosen in rows.items() if known[chosen].all()},
    )


def _parquet(
    step: int, predictions: Mapping[str, Sequence[Any]], labels: Mapping[str, Sequence[Any] | None]
) -> memoryview:
    import pyarrow  # imported here: the import is slow, and only evaluations need it
    from pyarrow import parquet

    answered = pyarrow.array([value for values in predictions.values() for value in values])
    known = pyarrow.array(
        [value for name, values in predictions.items() for value in _aligned(labels[name], len(values))]
    )
    columns = {
        "split": pyarrow.array([name for name, values in predictions.items() for _ in values]),
        "index": pyarrow.array([i for values in predictions.values() for i in range(len(values))]),
        "label": known.cast(answered.type) if known.null_count == len(known) else known,
        "prediction": answered,
    }
    file = io.BytesIO()  # in memory, so that a full disk gives the same error as with any other file
    parquet.write_table(pyarrow.table(columns, metadata={"step": str(step)}), file)
    return file.getbuffer()


def _aligned(labels: Sequence[Any] | None, count: int) -> Sequence[Any]:
    return [None] * count if labels is None else labels

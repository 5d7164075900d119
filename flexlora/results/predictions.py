"""What a run answered on every example of its last and of its best evaluation: `predictions-{last,best}.parquet`.

Columns `split`, `index` (the example's place in its split), `label` (null where it is not known) and `prediction`; the
step of the evaluation stands in the file's metadata.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexlora.errors import one_line
from flexlora.results.files import write_bytes

LAST, BEST = "predictions-last.parquet", "predictions-best.parquet"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """The answers of one evaluation: of each split, `predictions` and (where they are known) `labels`, in its order."""

    step: int
    predictions: dict[str, Array]
    labels: dict[str, Array]


class Predictions:
    """The two files in a run's folder. A run that goes on from a checkpoint writes them anew as it gets there."""

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
        """Keep the evaluation of `step` as the last one, and as the `best` one; each file is whole, old or new.

        Args:
            step: completed optimizer steps.
            predictions: by split, one number an example, in the split's order.
            labels: by split, the same of what is right; None where it is not known.
        """
        content = _parquet(step, predictions, labels)
        for name in (LAST, BEST) if best else (LAST,):
            write_bytes(self.run / name, content)


def read_answers(path: Path) -> Answers:
    """The answers in a file.

    Raises:
        ValueError: it cannot be read, or is not such a file; says which and why.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        step = int(table.schema.metadata[b"step"])
        split, label = (table.column(name).to_numpy() for name in ("split", "label"))
        prediction, known = table.column("prediction").to_numpy(), table.column("label").is_valid().to_numpy()
    except (OSError, KeyError, TypeError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} holds no predictions: {one_line(error)}") from error
    rows = {name: np.flatnonzero(split == name) for name in dict.fromkeys(split)}
    return Answers(
        step,
        {name: prediction[chosen] for name, chosen in rows.items()},
        {name: label[chosen] for name, chosen in rows.items() if known[chosen].all()},
    )


def _parquet(
    step: int, predictions: Mapping[str, Sequence[Any]], labels: Mapping[str, Sequence[Any] | None]
) -> memoryview:
    import pyarrow  # here, as it takes a while and only evaluations need it
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
    file = io.BytesIO()  # through memory: a full disk is then told of as by any other file
    parquet.write_table(pyarrow.table(columns, metadata={"step": str(step)}), file)
    return file.getbuffer()


def _aligned(labels: Sequence[Any] | None, count: int) -> Sequence[Any]:
    return [None] * count if labels is None else labels

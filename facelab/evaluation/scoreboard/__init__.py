"""One scoreboard for all methods: the same pictures, the same measures, every failure counted.

    row = evaluate(make_method("landmark fitting"), load_test_set("in_model", limit=20), "in_model")
    save_row(row, "results")
    print(markdown(table(load_rows("results"))))

A method is any class with a `name` and `reconstruct`; docs/adding_a_method.md adds one in under 30 lines.
A row keeps every picture's numbers, so that methods are compared on the pictures that all of them could do.
"""

import datetime
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from tqdm.auto import tqdm

from facelab.evaluation.measures import METRICS, Metric
from facelab.evaluation.scoreboard.rows import Outcome, Row, load_rows, log_file, resume, rounded, save_row
from facelab.methods.base import Method
from facelab.model.morphable_model import DEFAULT_MODEL
from facelab.model.records import FaceRecord
from facelab.support.errors import FacelabError, ParameterError
from facelab.support.files import append_line, digest_beside

__all__ = [
    "RANKED", "Outcome", "Row", "evaluate", "load_rows", "log_file", "markdown", "ranking", "save_row",
    "table",
]  # fmt: skip

RANKED = ("geometry_mm", "depth_mm", "pose_degrees", "nme_percent", "mask_iou_percent", "photometric_rmse",
          "albedo", "light_degrees", "identity")  # fmt: skip
"""One measure for each thing that a method estimates."""


def evaluate(
    method: Method,
    records: Sequence[FaceRecord],
    test_set: str,
    *,
    preset: str = "quick",
    seed: int = 0,
    commit: str = "unknown",
    measures: Mapping[str, Metric] = METRICS,
    folder: str | Path | None = None,
) -> Row:
    """Run `method` on every record and measure what it says.

    A FacelabError of the method, or a measure that is not finite, is a failure of that picture; any other
    exception is a bug, and raised.

    Args:
        method: gets the picture only.
        records: of a test set, with different names.
        test_set, preset, seed, commit: what the row says about the run.
        measures: the columns; `METRICS` needs the judge's packages (`pip install 'facelab[judge]'`).
        folder: where outcomes are written as they come (one .jsonl per method and set). An evaluation that
            was stopped goes on from there, to the same row.

    Raises:
        ParameterError: two records have the same name; the folder holds a run with other settings.
    """
    row = Row(method.name, test_set, preset, seed, **_circumstances(), commit=commit, outcomes=[])
    settings = {"method": method.name, "test_set": test_set, "preset": preset, "seed": seed}
    settings |= {"measures": list(measures), "face_model": row.face_model}
    log = None if folder is None else log_file(row, folder)
    outcomes = [] if log is None else resume(log, settings)
    names = {outcome.name for outcome in outcomes}
    rest = range(len(outcomes), len(records))
    for i in tqdm(rest, f"{method.name}, {test_set}", len(records), initial=len(outcomes), leave=False):
        record = records[i]
        if record.name in names:
            raise ParameterError(f"Two records are called {record.name!r}; give each its own name.")
        names.add(record.name)
        outcomes.append(_one(method, record, measures))
        if log is not None:
            append_line(log, json.dumps(asdict(outcomes[-1])))
    return replace(row, outcomes=outcomes[: len(records)])


def _one(method: Method, record: FaceRecord, measures: Mapping[str, Metric]) -> Outcome:
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if alone else time.perf_counter  # the first is deaf to what else runs
    start = clock()
    try:
        said, failure = method.reconstruct(record.image), None
    except FacelabError as error:
        failure = f"{type(error).__name__}: {error}"
    outcome = Outcome(record.name, dict(record.groups), rounded(1000 * (clock() - start)))
    if failure is None:
        parts = {"vertices": said.mesh.vertices, **vars(said.camera), **vars(said)}
        parts |= {} if said.light is None else vars(said.light)
        bad = [k for k, v in parts.items() if isinstance(v, Tensor) and not bool(torch.isfinite(v).all())]
        failure = f"NaN or infinity in its {', '.join(bad)}" if bad else None
    if failure is not None:
        return replace(outcome, failure=failure)
    values = {name: value for name, m in measures.items() if (value := m(record, said)) is not None}
    if bad := [name for name, value in values.items() if not math.isfinite(value)]:
        return replace(outcome, failure=f"{', '.join(bad)} cannot be measured: the two faces do not meet")
    return replace(outcome, values={name: rounded(value) for name, value in values.items()})


def _circumstances() -> dict[str, str]:
    """Hardware, torch, face model and date of a run, without the machine's name."""
    hardware = f"CPU {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    if torch.cuda.is_available():
        hardware = f"{torch.cuda.get_device_name()}; {hardware}"
    digest, today = digest_beside(DEFAULT_MODEL)[:12], datetime.date.today().isoformat()
    return {"hardware": hardware, "torch": torch.__version__, "face_model": digest, "date": today}


# ------------------------------------------------------------------------------------------------ tables


def table(
    rows: Sequence[Row], columns: Iterable[str] = METRICS, statistic: str = "mean", spread: bool = False
) -> list[dict[str, Any]]:
    """One dict a row: set, method, pictures, failures, ms, then a number a column (None: not known).

    `statistic` is "mean" or "median"; with `spread` a cell is the text "mean ± deviation (median)" instead.
    """
    lines = []
    for row in rows:
        line: dict[str, Any] = {"set": row.test_set, "method": row.method, "pictures": len(row.outcomes)}
        line |= {"failures": len(row.failures), "ms": round(row.milliseconds)}
        summary = row.summary()
        for column in columns:
            cell = summary.get(column)
            text = cell and f"{cell['mean']:.3g} ± {cell['std']:.2g} ({cell['median']:.3g})"
            line[column] = text if spread else cell and cell[statistic]
        lines.append(line)
    return lines


def ranking(rows: Sequence[Row], columns: Iterable[str] = RANKED) -> list[dict[str, Any]]:
    """Methods of ONE test set by their mean rank (1 is best), over the pictures that all of them could do.

    Ranks are of the means in each column. What a method does not say it does worst: it shares the last rank.
    Columns that no method has are left out. Raises ParameterError for rows of several sets.
    """
    if len({row.test_set for row in rows}) != 1:
        raise ParameterError("A ranking is of one test set: choose rows with the same `test_set`.")
    done = [{o.name for o in row.outcomes if o.failure is None} for row in rows]
    common = [row.only(set.intersection(*done)) for row in rows]
    lines = [{"method": row.method, "mean_rank": 0.0, "pictures": len(row.outcomes)} for row in common]
    lines = [line | {"failures": len(row.failures)} for line, row in zip(lines, rows)]
    ranks = []
    for column in columns:
        sign = -1 if METRICS[column].higher_is_better else 1
        means = [sign * row.summary().get(column, {}).get("mean", sign * math.inf) for row in common]
        if min(means) == math.inf:
            continue
        ranks.append(rankdata(means))
        for line, rank in zip(lines, ranks[-1]):
            line[column] = float(rank)
    for i, line in enumerate(lines):
        line["mean_rank"] = float(np.mean([rank[i] for rank in ranks])) if ranks else math.nan
    return sorted(lines, key=lambda line: line["mean_rank"])


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines of `table` or `ranking` as a Markdown table; columns that are empty in all are left out."""
    columns = [c for c in lines[0] if any(line[c] is not None for line in lines)] if lines else []

    def cell(value: Any) -> str:
        if value is None:
            return "–"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    head = [c if c not in METRICS else f"{c} {'↑' if METRICS[c].higher_is_better else '↓'}" for c in columns]
    body = [[cell(line[c]) for c in columns] for line in lines]
    text = [isinstance(lines[0][c], str) and "±" not in lines[0][c] for c in columns]
    rule = ["---" if is_text else "---:" for is_text in text]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))

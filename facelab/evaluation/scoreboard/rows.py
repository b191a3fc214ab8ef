"""What was measured, and the files of it: one CSV a test set, one line for a picture and a method.

`pandas.read_csv("results/in_model.csv")` is a table to work with: columns are the method, the picture, its
groups (`group.skin`, ...), milliseconds, the measures, and why the picture failed. First come lines without a
picture, one a method; their last cell says in JSON how the method was run, and on how many pictures.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from facelab.evaluation.measures import METRICS
from facelab.support.errors import OutputError, ParameterError
from facelab.support.files import guarded, shown, write_whole

DIGITS = 4
"""significant ones, of every number: between pictures the measures differ by a quarter of themselves"""
LOCK = ".facelab.lock"
FIRST, CLOCK, LAST = ("method", "picture"), "milliseconds", ("failure", "about")
GROUP = "group."  # what the names of columns with a picture's groups begin with


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


def rounded(value: float) -> float:
    """A number with as many digits as the files keep."""
    return float(f"{value:.{DIGITS}g}")


def plain_name(text: str) -> str:
    """A part of a file's name: `text` if that is plain, else something legible that no other text gets."""
    if re.fullmatch("[a-z0-9_]{1,80}", text):
        return text
    name = re.sub("[^a-z0-9]+", "_", text.lower()).strip("_")[:60]
    return f"{name}_{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}".lstrip("_")


def save_row(row: Row, folder: str | Path) -> Path:
    """Write a row into its test set's file, in place of the same method's; the others stay as they are.

    Numbers keep `DIGITS` significant digits. Returns the file, which is written whole or not at all. Raises
    ParameterError if the file that is there is damaged, or a measure has the name of another column, and
    OutputError if the file cannot be written.
    """
    path = Path(folder) / f"{plain_name(row.test_set)}.csv"
    with _alone(path):  # of two programs that write here, each adds to what it has read
        there = _read(path) if path.exists() else []
        if other := {r.test_set for r in there} - {row.test_set}:
            raise ParameterError(f"'{shown(path)}' is of the test set {min(other)!r}; give it its name back.")
        ordered = sorted([*(r for r in there if r.method != row.method), row], key=lambda r: r.method.lower())
        write_whole({path: _text(ordered).encode("utf-8", "surrogatepass")})
    return path


def load_rows(folder: str | Path, *more: str | Path) -> list[Row]:
    """All rows of some folders; a later folder's replace the same earlier.

    Raises ParameterError for a file that is damaged.
    """
    paths = [path for one in (folder, *more) for path in sorted(Path(one).glob("*.csv"))]
    return list({(row.test_set, row.method): row for path in paths for row in _read(path)}.values())


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(LOCK))
        lock.acquire(timeout=60)
    except OSError as error:
        why = "another program is writing there" if isinstance(error, Timeout) else error.strerror
        raise OutputError(f"'{shown(path)}' cannot be written ({why}); give a folder of your own.") from error
    try:
        yield
    finally:
        lock.release()


def _text(rows: list[Row]) -> str:
    outcomes = [outcome for row in rows for outcome in row.outcomes]
    groups = [GROUP + kind for kind in sorted({kind for outcome in outcomes for kind in outcome.groups})]
    measured = dict.fromkeys(name for outcome in outcomes for name in outcome.values)
    values = [*(name for name in METRICS if name in measured), *(n for n in measured if n not in METRICS)]
    columns = [*FIRST, *groups, CLOCK, *values, *LAST]
    if len(set(columns)) < len(columns) or any(name.startswith(GROUP) for name in values):
        raise ParameterError(f"A measure has the name of another column: call it neither {CLOCK!r} nor so.")
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, restval="")  # ends lines with CR LF, so that cells may have either
    writer.writeheader()
    for row in rows:
        about = {f.name: getattr(row, f.name) for f in fields(row) if f.name not in ("method", "outcomes")}
        about["pictures"] = len(row.outcomes)
        writer.writerow({"method": row.method, "about": json.dumps(about)})
    for row in rows:
        for outcome in row.outcomes:
            cells = {GROUP + kind: group for kind, group in outcome.groups.items()}
            numbers = {CLOCK: outcome.milliseconds} | outcome.values
            cells |= {name: f"{number:.{DIGITS}g}" for name, number in numbers.items()}
            cells |= {"method": row.method, "picture": outcome.name, "failure": outcome.failure or ""}
            writer.writerow(cells)
    return file.getvalue()


def _read(path: Path) -> list[Row]:
    """The rows of a file. ParameterError unless it is what `save_row` makes."""
    problem = f"'{shown(path)}' is no file of the scoreboard, or damaged; restore or delete it"
    with guarded(problem, ParameterError):
        text = path.read_bytes().decode("utf-8", "surrogatepass")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns = next(reader)
        if len(set(columns)) < len(columns) or not {*FIRST, CLOCK, *LAST} <= set(columns):
            raise ValueError("its first line does not name the columns")
        rows: dict[str, dict[str, Any]] = {}
        outcomes: dict[str, dict[str, Outcome]] = {}
        for cells in (dict(zip(columns, line, strict=True)) for line in reader):
            method, picture = (cells.pop(name) for name in FIRST)
            failure, about = (cells.pop(name) for name in LAST)
            if about:
                if method in rows:
                    raise ValueError("a method is there twice")
                rows[method], outcomes[method] = json.loads(about), {}
                continue
            if picture in outcomes[method]:
                raise ValueError("a picture is there twice")
            milliseconds = float(cells.pop(CLOCK))
            known = {name: cell for name, cell in cells.items() if cell}
            groups = {n.removeprefix(GROUP): text for n, text in known.items() if n.startswith(GROUP)}
            values = {n: float(text) for n, text in known.items() if not n.startswith(GROUP)}
            outcome = Outcome(picture, groups, milliseconds, values, failure or None)
            outcomes[method][picture] = _outcome(vars(outcome))
        return [_row(method, about, list(outcomes[method].values())) for method, about in rows.items()]


def _row(method: str, about: dict[str, Any], outcomes: list[Outcome]) -> Row:
    if about.pop("pictures") != len(outcomes):
        raise ValueError("pictures are missing")
    row = Row(method=method, outcomes=outcomes, **about)
    texts = [value for name, value in vars(row).items() if name not in ("seed", "outcomes")]
    if not all(isinstance(text, str) for text in texts) or type(row.seed) is not int:
        raise TypeError("a method's circumstances have values of other kinds")
    return row


def _outcome(content: dict[str, Any]) -> Outcome:
    """From the dictionary that `asdict` makes. ValueError, TypeError or AttributeError for others."""
    outcome = Outcome(**content)
    numbers = [outcome.milliseconds, *outcome.values.values()]
    if not all(isinstance(number, int | float) and abs(number) < 1e12 for number in numbers):
        raise ValueError("a value is no finite number of a sensible size")
    texts = [outcome.name, *outcome.values, *outcome.groups, *outcome.groups.values()]
    texts += [] if outcome.failure is None else [outcome.failure]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a name is no text")
    return outcome


def log_file(row: Row, folder: str | Path) -> Path:
    """Where `evaluate` keeps the outcomes of a row while it runs."""
    return Path(folder) / f"{plain_name(row.test_set)}__{plain_name(row.method)}.jsonl"


def resume(log: Path, settings: dict[str, Any]) -> list[Outcome]:
    """The outcomes that are already in the log of an evaluation; a new one starts with the settings.

    Raises ParameterError if it is damaged, or of a run with other settings.
    """
    problem = f"'{shown(log)}' is damaged: delete it, and the evaluation begins anew"
    with guarded(problem, ParameterError):
        lines = log.read_text(encoding="utf-8").split("\n") if log.is_file() else []
        if len(lines) < 2:
            write_whole({log: json.dumps(settings) + "\n"})
            return []
        if json.loads(lines[0]) != settings:
            raise ParameterError(
                f"'{shown(log)}' is of a run with other settings: delete it or give another folder."
            )
        outcomes = [_outcome(json.loads(line)) for line in lines[1:-1]]
        if len({outcome.name for outcome in outcomes}) < len(outcomes):
            raise ParameterError(f"{problem} (a picture is there twice).")
    if lines[-1]:  # what follows the last newline was cut off in writing
        write_whole({log: "\n".join(lines[:-1]) + "\n"})
    return outcomes

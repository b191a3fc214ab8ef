"""Instant checks for the exercises: compare a learner's function with a reference and say what is wrong.

    check("SH basis", my_function)
    hint("SH basis")                    # the idea; again: how to write it; again: the solution
    skip("SH basis")                    # go on with the course's own solution
    progress()                          # what is solved, tried, skipped

prints one line if all is well and raises CheckFailedError otherwise. A notebook registers its exercises where
it asks for them: what to write, the right answer in another form, random inputs, and the usual mistakes.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from facelab.course.notebook import repository
from facelab.support.errors import CheckFailedError, FacelabError


@dataclass(frozen=True, eq=False)
class Exercise:
    """One exercise: what to write, how it is judged."""

    name: str
    task: str
    """the signature and what to return, with shapes and units"""
    reference: Callable[..., Any]
    """the right answer: a tensor, a tuple of tensors or a dictionary of them"""
    inputs: Callable[[torch.Generator], tuple[Any, ...]]
    """random arguments"""
    difficulty: int
    """1 (one line) to 5"""
    minutes: int
    mistakes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """what to say to somebody whose answer is that of this wrong function"""
    canonical: Callable[[Tensor, int], Tensor] = lambda result, position: result
    """brings answers that are equally right, such as the sign of a basis vector, to one form"""
    hint: str = ""
    """how to write it"""
    idea: str = ""
    """what to think of, if the hint would give the answer away"""
    tolerance: float = 1e-4
    """of the error over the largest expected value"""
    rounds: int = 3
    edges: tuple[tuple[Any, ...], ...] = ()
    """arguments that are tried after the random ones: the cases at the edge"""


@dataclass
class Attempt:
    """What a learner has done about one exercise."""

    tries: int = 0
    solved: bool = False
    skipped: bool = False
    hints: int = 0


EXERCISES: dict[str, Exercise] = {}
ATTEMPTS: dict[str, Attempt] = {}


def register(exercise: Exercise) -> Exercise:
    """Make an exercise known to `check`."""
    EXERCISES[exercise.name] = exercise
    return exercise


def uniform(generator: torch.Generator, *shape: int, low: float = -1, high: float = 1) -> Tensor:
    """Random numbers in float64 for an exercise's inputs."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def exercises() -> dict[str, Exercise]:
    """All known exercises by name."""
    return dict(EXERCISES)


def describe(name: str) -> str:
    """The task of an exercise in two lines. Raises FacelabError for an unknown name."""
    exercise = _find(name)
    return (
        f"Exercise {name}   difficulty {_stars(exercise)}, about {exercise.minutes} minutes\n{exercise.task}"
    )


def check(name: str, function: Callable[..., Any], seed: int = 0) -> None:
    """Compare `function` with the reference of exercise `name` on random inputs drawn from `seed`.

    Prints a line on success. Raises CheckFailedError, which says what is wrong and gives a hint, or
    FacelabError for an unknown exercise. An exception inside `function` is raised as it is.
    """
    exercise, attempt = _find(name), ATTEMPTS.setdefault(name, Attempt())
    attempt.tries += 1
    generator = torch.Generator().manual_seed(seed)
    inputs = [exercise.inputs(generator) for _ in range(exercise.rounds)] + list(exercise.edges)
    answers, complaint, changed = [], None, False
    for arguments in inputs:
        copies = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
        answers.append(function(*copies))
        pairs = [(a, b) for a, b in zip(arguments, copies) if isinstance(a, Tensor)]
        changed = changed or any(not a.equal(b) for a, b in pairs)
        complaint = complaint or _complaint(exercise, answers[-1], exercise.reference(*arguments))
    if complaint:
        position, text = complaint
        text = _known_mistake(exercise, position, answers, inputs) or text
    elif changed:
        text = "The arguments were changed in place; work on a copy."
    else:
        attempt.solved = True
        edges = f" and {len(exercise.edges)} at the edge" if exercise.edges else ""
        print(f"✓ {name}: right on {exercise.rounds} random inputs{edges}.")
        return
    first = exercise.idea or exercise.hint
    raise CheckFailedError(f"✗ {name}: {text}" + (f"\nHint: {first}" if first else ""))


def hint(name: str) -> None:
    """Print the next of the exercise's hints: the idea, how to write it, the course's solution.

    Raises FacelabError for an unknown exercise or where the solution is not to be found.
    """
    exercise, attempt = _find(name), ATTEMPTS.setdefault(name, Attempt())
    steps = [text for text in (exercise.idea, exercise.hint) if text]
    print(steps[attempt.hints] if attempt.hints < len(steps) else solution(name))
    attempt.hints = min(attempt.hints + 1, len(steps))


def skip(name: str) -> None:
    """Define the course's own solution of exercise `name` in the notebook that calls, and note it.

    Raises FacelabError for an unknown exercise, ParameterError outside of a clone of the repository.
    """
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    exec(solution(name), frame.f_back.f_globals)
    ATTEMPTS.setdefault(name, Attempt()).skipped = True
    print(f"→ {name}: skipped; the course's solution goes on.")


def solution(name: str) -> str:
    """The source of the course's solution, from the committed notebooks. Errors: see `skip`."""
    for path in sorted(repository("notebooks").glob("[0-9][0-9]_*.ipynb")):
        blank = ""
        for cell in json.loads(path.read_text(encoding="utf8"))["cells"]:
            source = "".join(cell["source"])
            if "solution" in cell["metadata"].get("tags", []):
                blank = source
            elif f'checks.check("{name}"' in source and blank:
                return blank
    raise FacelabError(f"There is no exercise {name!r} with a solution in notebooks/.")


def progress() -> None:
    """Print a line for each exercise of this notebook: difficulty, minutes, what became of it."""
    width = max(map(len, EXERCISES), default=0)
    for name, exercise in EXERCISES.items():
        attempt = ATTEMPTS.get(name, Attempt())
        tries = f"{attempt.tries} {'try' if attempt.tries == 1 else 'tries'}"
        state = "skipped" if attempt.skipped else f"solved, {tries}" if attempt.solved else "open"
        state = f"open, {tries}" if state == "open" and attempt.tries else state
        print(f"{name:{width}}  {_stars(exercise)} {exercise.minutes:3d} min  {state}")
    done = sum(ATTEMPTS.get(name, Attempt()).solved for name in EXERCISES)
    print(f"{done} of {len(EXERCISES)} solved")


def _stars(exercise: Exercise) -> str:
    return "★" * exercise.difficulty + "☆" * (5 - exercise.difficulty)


def _find(name: str) -> Exercise:
    if name not in EXERCISES:
        raise FacelabError(f"There is no exercise {name!r}; choose from {', '.join(EXERCISES)}.")
    return EXERCISES[name]


def _complaint(exercise: Exercise, result: Any, reference: Any) -> tuple[int, str] | None:
    """Which part of `result` is wrong, and how; None if all is well."""
    if result is None:
        text = "The function returns nothing; did you forget `return`?"
        return 0, f'{text} To go on without it: checks.skip("{exercise.name}")'
    if isinstance(reference, dict) and (not isinstance(result, dict) or set(result) != set(reference)):
        return 0, f"Return a dictionary with {', '.join(sorted(reference))}."
    several = isinstance(reference, tuple | dict)
    results, expected = _parts(result, several), _parts(reference, several)
    if len(results) != len(expected):
        return 0, f"Return {len(expected)} tensors, not {len(results)}."
    for i, (got, want) in enumerate(zip(results, expected)):
        try:
            text = _difference(exercise, torch.as_tensor(got), want, i)
        except (TypeError, ValueError, RuntimeError):
            text = f"Return a tensor, not {type(got).__name__}."
        if text:
            name = sorted(reference)[i] if isinstance(reference, dict) else i
            return i, f"Result {name}: {text}" if several else text
    return None


def _difference(exercise: Exercise, got: Tensor, want: Tensor, position: int) -> str:
    """What is wrong with one tensor of the answer, or nothing."""
    if got.shape != want.shape:
        flipped = " (transposed?)" if got.shape == want.shape[::-1] else ""
        return f"The shape is {tuple(got.shape)} but should be {tuple(want.shape)}{flipped}."
    if got.is_floating_point() != want.is_floating_point():
        kind = "floating point" if want.is_floating_point() else "whole numbers"
        return f"The type is {got.dtype} but should be {kind}, such as {want.dtype}."
    if not want.is_floating_point():
        wrong = got.long() != want.long()
        if not wrong.any():
            return ""
        first = tuple(wrong.nonzero()[0].tolist())
        share = 100 * float(wrong.double().mean())
        return f"{share:.1f} % of the values differ; first at {first}: {got[first]} instead of {want[first]}."
    finite = torch.isfinite(want)
    if not (torch.isfinite(got) == finite).all() or not (got[~finite] == want[~finite]).all():
        bad = int((torch.isfinite(got) != finite).sum())
        return f"{bad} of {got.numel()} values are NaN or infinite where they should not be, or the reverse."
    a, b = (torch.where(finite, exercise.canonical(x.double(), position), 0.0) for x in (got, want))
    scale = float(b.abs().max()) or 1.0
    wrong = (a - b).abs() > exercise.tolerance * scale
    if not wrong.any():
        return ""
    factor = float((a * b).sum() / (b * b).sum())
    if factor and ((a / factor - b).abs() <= exercise.tolerance * scale).all():
        return (
            "The sign is wrong."
            if abs(factor + 1) < 1e-6
            else f"All values are {factor:.4g} times the right ones."
        )
    worst = tuple(int(i) for i in torch.unravel_index((a - b).abs().argmax(), a.shape))
    share = 100 * float(wrong.double().mean())
    columns = wrong.reshape(-1, wrong.shape[-1]).any(0).nonzero()[:, 0].tolist()
    only = f" Only column {', '.join(map(str, columns))} is wrong." if len(columns) < a.shape[-1] else ""
    return (
        f"{share:.0f} % of the values are wrong; the worst, at {worst}, is {float(a[worst]):.5g} "
        f"instead of {float(b[worst]):.5g}.{only}"
    )


def _known_mistake(exercise: Exercise, position: int, answers: list[Any], inputs: list[Any]) -> str:
    """The message of the wrong function that gives these answers on all inputs, or nothing."""
    for message, wrong in exercise.mistakes.items():
        if all(_alike(exercise, position, answer, wrong(*x)) for answer, x in zip(answers, inputs)):
            return message
    return ""


def _alike(exercise: Exercise, position: int, answer: Any, wrong: Any) -> bool:
    several = isinstance(wrong, tuple | dict)
    parts, wrong_parts = _parts(answer, several), _parts(wrong, several)
    if len(parts) != len(wrong_parts):
        return False
    try:
        got, want = torch.as_tensor(parts[position]), wrong_parts[position]
    except (TypeError, ValueError, RuntimeError):
        return False
    if got.shape != want.shape:
        return False
    a, b = (exercise.canonical(x.double(), position) for x in (got, want))
    return torch.allclose(a, b, rtol=0, atol=exercise.tolerance * float(b.nan_to_num(posinf=0).abs().max()))


def _parts(result: Any, several: bool) -> tuple[Any, ...]:
    if isinstance(result, dict):
        return tuple(result[name] for name in sorted(result))
    return tuple(result) if isinstance(result, tuple) or (several and isinstance(result, list)) else (result,)

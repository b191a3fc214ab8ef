import ast
import math
import re
from pathlib import Path

import jupytext
import pytest
import torch

from facelab.course import checks
from facelab.course.checks import Exercise, check, describe, exercises, register, uniform
from facelab.support.errors import CheckFailedError, FacelabError

MASTERS = sorted((Path(__file__).parents[1] / "notebooks" / "src").glob("[0-9][0-9]_*.py"))


def names_in(part):
    return {node.id for node in ast.walk(part) if isinstance(node, ast.Name)}


def statements(master):
    """What registers a notebook's exercises: its imports, cells down to their last `register`, and those of
    the notebook's functions that they use."""
    cells = [ast.parse(c.source).body for c in jupytext.read(master).cells if c.cell_type == "code"]
    imports = [s for cell in cells for s in cell if isinstance(s, ast.Import | ast.ImportFrom)]
    functions = {s.name: s for cell in cells for s in cell if isinstance(s, ast.FunctionDef)}
    asking, answers = [], set()
    for cell in cells:
        last = max((i for i, s in enumerate(cell) if "checks.register(" in ast.unparse(s)), default=-1)
        asking += cell[: last + 1]
        answers |= {name for s in cell if "checks.check(" in ast.unparse(s) for name in names_in(s)}
    used, new = {}, answers.union(*map(names_in, asking))
    while new := new & set(functions) - set(used):
        used |= {name: functions[name] for name in new}
        new = set().union(*(names_in(functions[name]) for name in new))
    return imports + list(used.values()) + [s for s in asking if s not in used.values()]


def learn(master):
    """Register the exercises of a notebook without running it; return them with its own solutions."""
    scope, before = {}, set(exercises())
    exec(compile(ast.Module(statements(master), []), master.name, "exec"), scope)
    asked = re.findall(r'checks\.check\("(.+?)", (\w+)\)', master.read_text())
    assert [name for name, _ in asked] == [name for name in exercises() if name not in before], master
    return {name: scope[solution] for name, solution in asked}


OF_MASTER = {master.stem: learn(master) for master in MASTERS}
SOLUTIONS = {name: solution for solutions in OF_MASTER.values() for name, solution in solutions.items()}

# Answers as a learner would write them, with no help from facelab.


def project(points, rotation, translation, focal, principal):
    x, y, z = (points @ rotation.T + translation).unbind(-1)
    return torch.stack([principal[0] - focal * x / z, principal[1] + focal * y / z, -z], -1)


def cross(a, b):
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def barycentric(points, triangle):
    a, b, c = triangle
    areas = [cross(b - points, c - points), cross(c - points, a - points), cross(a - points, b - points)]
    return torch.stack(areas, -1) / cross(b - a, c - a)


def z_buffer(screen, triangles, height, width):
    index = torch.full((height, width), -1)
    nearest = torch.full((height, width), math.inf, dtype=screen.dtype)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack([columns, rows], -1).to(screen) + 0.5
    for t, corners in enumerate(triangles):
        a, b, c = screen[corners, :2]
        if cross(b - a, c - a) >= 0 or screen[corners, 2].min() <= 0:
            continue
        w = barycentric(centres, screen[corners, :2])
        depth = 1 / (w / screen[corners, 2]).sum(-1)
        wins = (w >= 0).all(-1) & (depth < nearest)
        index[wins], nearest[wins] = t, depth[wins]
    return index, nearest


def sh_basis(normals):
    x, y, z = normals.unbind(-1)
    c0, c1, c2, c3, c4 = (math.sqrt(k / math.pi) for k in (1 / 4, 3 / 4, 15 / 4, 5 / 16, 15 / 16))
    terms = [c0 + 0 * x, c1 * y, c1 * z, c1 * x, c2 * x * y, c2 * y * z]
    return torch.stack([*terms, c3 * (3 * z**2 - 1), c2 * x * z, c4 * (x**2 - y**2)], -1)


def gauss_newton(residuals, jacobian):
    return torch.linalg.solve(jacobian.T @ jacobian, -jacobian.T @ residuals)


def pca(population, count):
    mean = population.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(population.T))
    order = values.argsort(descending=True)[:count]
    return mean, -vectors[:, order].T, values[order].sqrt()


ANSWERS = {
    "project points with a perspective camera": project,
    "barycentric coordinates": barycentric,
    "z-buffer of two triangles": z_buffer,
    "SH basis": sh_basis,
    "Gauss-Newton step": gauss_newton,
    "PCA of a population": pca,
    "model-space loss": lambda p, theta, sigma: (sigma * (p - theta)).square().sum(-1),
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_notebooks_solutions_are_right(name, capsys):
    """Each notebook registers what it checks, and nothing else."""
    for seed in range(3):
        check(name, SOLUTIONS[name], seed)
    assert capsys.readouterr().out.startswith(f"✓ {name}")


@pytest.mark.parametrize("name", ANSWERS)
def test_right_answers_pass(name, capsys):
    check(name, ANSWERS[name], seed=1)
    assert capsys.readouterr().out.startswith(f"✓ {name}")


def test_a_float32_answer_and_lists_pass():
    check("SH basis", lambda n: sh_basis(n).float())
    check("Gauss-Newton step", lambda r, j: gauss_newton(r, j).tolist())
    check("PCA of a population", lambda x, k: list(pca(x, k)))


@pytest.mark.parametrize("name", SOLUTIONS)
def test_every_listed_mistake_is_recognised(name):
    """And the right answer is right, whatever the random inputs."""
    exercise = exercises()[name]
    for seed in range(3):
        check(name, exercise.reference, seed=seed)
    assert exercise.hint and exercise.mistakes and 1 <= exercise.difficulty <= 5
    for message, wrong in exercise.mistakes.items():
        with pytest.raises(CheckFailedError) as caught:
            check(name, wrong)
        assert message in str(caught.value) and "Hint: " in str(caught.value)


@pytest.mark.parametrize("stem", OF_MASTER)
def test_each_check_knows_four_mistakes_and_has_two_hints_before_the_solution(stem):
    for name in OF_MASTER[stem]:
        exercise = exercises()[name]
        assert len(exercise.mistakes) >= 4, name
        assert exercise.idea and exercise.hint and exercise.idea != exercise.hint, name


@pytest.fixture
def attempts(monkeypatch):
    """A learner who has tried nothing."""
    monkeypatch.setattr(checks, "ATTEMPTS", {})


@pytest.mark.parametrize("name", SOLUTIONS)
def test_skip_defines_the_course_s_solution(name, capsys, attempts):
    """Where it is called, under the name that the notebook goes on with."""
    function = SOLUTIONS[name].__name__
    scope = {key: value for key, value in SOLUTIONS[name].__globals__.items() if key != function}
    exec(f"from facelab.course import checks\nchecks.skip({name!r})", scope)
    check(name, scope[function])
    assert "skipped" in capsys.readouterr().out and checks.ATTEMPTS[name].skipped


def test_hints_lead_to_the_solution(capsys, attempts):
    for expected in (
        "Set the derivative",
        "torch.linalg.solve",
        "def gauss_newton_step",
        "def gauss_newton_step",
    ):
        checks.hint("Gauss-Newton step")
        assert expected in capsys.readouterr().out
    with pytest.raises(CheckFailedError, match="Hint: Set the derivative"):
        check("Gauss-Newton step", lambda r, j: 0 * j[0])
    with pytest.raises(FacelabError, match="no exercise 'quantum'"):
        checks.hint("quantum")
    with pytest.raises(FacelabError, match="no exercise 'quantum'"):
        checks.skip("quantum")


def test_progress_says_what_was_done(capsys, attempts, monkeypatch):
    names = ("SH basis", "Gauss-Newton step", "PCA of a population", "model-space loss")
    monkeypatch.setattr(checks, "EXERCISES", {name: exercises()[name] for name in names})
    with pytest.raises(CheckFailedError, match=r'go on without it: checks\.skip\("SH basis"\)'):
        check("SH basis", lambda n: None)
    check("SH basis", sh_basis)
    with pytest.raises(CheckFailedError):
        check("PCA of a population", lambda x, k: None)
    checks.ATTEMPTS["model-space loss"] = checks.Attempt(skipped=True)
    capsys.readouterr()
    checks.progress()
    lines = capsys.readouterr().out.splitlines()
    states = [line.rpartition(" min  ")[2] for line in lines[:4]]
    assert states == ["solved, 2 tries", "open", "open, 1 try", "skipped"] and lines[4] == "1 of 4 solved"


def test_cases_at_the_edge_are_tried_and_their_mistakes_named():
    def sign(x):
        return torch.where(x > 0, 1.0, -1.0)

    def inputs(generator):
        return (uniform(generator, 9),)

    edge = (torch.zeros(3, dtype=torch.float64),)
    register(
        Exercise("sign", "f(x)", torch.sign, inputs, 1, 1, mistakes={"Zero has none.": sign}, edges=(edge,))
    )
    try:
        with pytest.raises(CheckFailedError, match="Zero has none"):
            check("sign", sign)
        check("sign", lambda x: (x > 0).double() - (x < 0).double())
    finally:
        del checks.EXERCISES["sign"]


def test_jupyter_shows_a_red_line_instead_of_a_traceback():
    with pytest.raises(CheckFailedError) as caught:
        check(SH, lambda n: -sh_basis(n))
    (shown,) = caught.value._render_traceback_()
    assert shown.startswith("\x1b[31m✗ SH basis: The sign is wrong.") and "Traceback" not in shown


def test_random_inputs():
    drawn = uniform(torch.Generator().manual_seed(0), 500, 2, low=3, high=5)
    assert drawn.shape == (500, 2) and drawn.dtype == torch.float64
    assert 3 <= drawn.min() < 3.1 and 4.9 < drawn.max() <= 5
    assert -1 <= uniform(torch.Generator().manual_seed(0)) <= 1


SH = "SH basis"


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        (SH, lambda n: None, "did you forget"),
        ("noise of breeding", lambda p, n: p["shape"], "Return a dictionary with expression, light, "),
        ("noise of breeding", lambda p, n: p, "Result expression: 100 % of the values are wrong"),
        (SH, lambda n: "nine", "Return a tensor, not str"),
        (SH, lambda n: sh_basis(n).T, r"\(9, 40\) but should be \(40, 9\) \(transposed\?\)"),
        (SH, lambda n: sh_basis(n)[:, :8], r"\(40, 8\) but should be \(40, 9\)"),
        (SH, lambda n: sh_basis(n).long(), "should be floating point"),
        (SH, lambda n: sh_basis(n) / (n[:, :1] > 0), "values are NaN or infinite"),
        (SH, lambda n: -sh_basis(n), "The sign is wrong"),
        (SH, lambda n: 3 * sh_basis(n), "3 times the right ones"),
        (SH, lambda n: sh_basis(n) * torch.tensor([1, 1, 1, 1, 1, 1, 2, 1, 1]), "Only column 6 is wrong"),
        (SH, lambda n: torch.zeros(40, 9), "100 % of the values are wrong; the worst, at"),
        (SH, lambda n: (sh_basis(n), n.zero_())[0], "changed in place"),
        ("PCA of a population", lambda x, k: pca(x, k)[:2], "Return 3 tensors, not 2"),
        ("PCA of a population", lambda x, k: (*pca(x, k)[:2], torch.ones(k)), "Result 2: "),
        ("z-buffer of two triangles", lambda *a: (z_buffer(*a)[0].float(), z_buffer(*a)[1]), "whole numbers"),
        (
            "z-buffer of two triangles",
            lambda *a: (z_buffer(*a)[0], z_buffer(*a)[1].nan_to_num(posinf=0)),
            r"Result 1: .*NaN or infinite where they should not be, or the reverse",
        ),
        (
            "z-buffer of two triangles",
            lambda *a: (z_buffer(*a)[0].roll(1), z_buffer(*a)[1]),
            r"% of the values differ; first at",
        ),
    ],
)
def test_messages_say_what_is_wrong(name, wrong, message):
    with pytest.raises(CheckFailedError, match=message):
        check(name, wrong)


def test_exceptions_of_the_learner_are_not_hidden():
    def unwritten(normals):
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        check(SH, unwritten)


def test_unknown_exercise_and_description():
    with pytest.raises(FacelabError, match=r"choose from .*SH basis"):
        check("quantum", sh_basis)
    text = describe("z-buffer of two triangles")
    assert "★★★☆☆" in text and "15 minutes" in text and "face index" in text


def test_another_exercise_can_be_registered():
    double = Exercise("double", "f(x) -> 2 x", lambda x: 2 * x, lambda g: (torch.rand(3, generator=g),), 1, 1)
    register(double)
    try:
        check("double", lambda x: x + x)
        with pytest.raises(CheckFailedError, match=r"0\.5 times the right ones"):
            check("double", lambda x: x)
    finally:
        del checks.EXERCISES["double"]

"""Rows of the scoreboard: methods on test sets, printed; into results/ with --write.

    python benchmarks/scoreboard.py [--write]                         baselines on the sets that need nothing
    python benchmarks/scoreboard.py --set ict=FOLDER photos=FOLDER    on sets that the user has
    python benchmarks/scoreboard.py --method my_module:MyMethod       another method (docs/adding_a_method.md)
    python benchmarks/scoreboard.py --method mofa inversefacenet      those that are shipped
    python benchmarks/scoreboard.py --method facelab.methods.mofa:FramedMoFA@runs/a.safetensors="trial"

A run that is stopped goes on where it was (see --runs). A row that is written takes the place of the same
method's on the same set. A row of a folder of photographs has the folder's name in its own.
ict wants what data_scripts/convert_ict_facekit.py --borrow-albedo makes of ICT-FaceKit.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch

from facelab.evaluation.scoreboard import evaluate, log_file, markdown, save_row, table
from facelab.evaluation.test_sets import load_test_set
from facelab.methods.base import Method, make_method

from report import commit

RESULTS = Path(__file__).resolve().parents[1] / "results"
BASELINES = ("average face", "landmark fitting", "full fitting")
SETS = ("in_model", "outside", "path_traced")


def named_method(text: str) -> Method:
    """The method that "NAME@checkpoint=label" means; @checkpoint and =label may be left out.

    NAME is one of `METHODS`, or "module:Class" from where Python finds it. Its row is called `label`.
    """
    name, _, checkpoint = text.partition("@")
    path, _, label = checkpoint.partition("=")
    sys.path.insert(0, str(Path.cwd()))
    method = make_method(name, path or None)
    if label:
        method.name = label
    return method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--method", nargs="+", default=BASELINES, metavar="NAME")
    parser.add_argument("--set", nargs="+", default=SETS, metavar="NAME[=FOLDER]")
    parser.add_argument("--limit", type=int, default=60, help="pictures a set (default 60)")
    parser.add_argument("--write", action="store_true", help="keep the rows in --results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: the committed rows")
    parser.add_argument("--runs", type=Path, default=RESULTS.parent / "runs" / "scoreboard")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--preset", default="full", help="what the row says the method was trained with")
    parser.add_argument("--keep", action="store_true", help="so that a later run with a higher limit goes on")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="The picture has .* faces")
    rows = []
    for name in arguments.set:
        name, _, folder = name.partition("=")
        records = load_test_set(name, arguments.limit, folder or None)
        label = f"photos_{Path(folder).name}" if name == "photos" else name
        for kind in arguments.method:
            about = {"preset": arguments.preset, "commit": commit()}
            row = evaluate(named_method(kind), records, label, **about, folder=arguments.runs)
            if arguments.write:
                save_row(row, arguments.results)
            if not arguments.keep:
                log_file(row, arguments.runs).unlink()
            rows.append(row)
            print(markdown(table(rows[-1:])), flush=True)
    print(markdown(table(rows)))


if __name__ == "__main__":
    main()

"""Write the scoreboard's table into README.md, from results/: python benchmarks/readme.py"""

from __future__ import annotations

import re
from pathlib import Path

from facelab.evaluation.scoreboard import Row, load_rows

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SETS = ("in_model", "outside", "path_traced")
COLUMNS = (  # measure, heading, decimals
    ("geometry_mm", "shape, mm", 2),
    ("geometry_scaled_mm", "… size forgiven", 2),
    ("pose_degrees", "pose, °", 1),
    ("nme_percent", "landmarks, % of box", 1),
    ("photometric_rmse", "picture, of 255", 1),
    ("albedo", "skin, relative", 2),
    ("identity", "identity", 2),
)
METHODS = ("average face", "landmark fitting", "full fitting", "MoFA", "inversefacenet")  # in this order


def line(row: Row) -> str:
    """One row of the table, in Markdown."""
    summary = row.summary()
    cells = [
        f"{summary[name]['median']:.{digits}f}" if name in summary else "–" for name, _, digits in COLUMNS
    ]
    pictures = f"{len(row.outcomes)} ({len(row.failures)})"
    return f"| {' | '.join([row.test_set, row.method, pictures, f'{row.milliseconds:.0f}', *cells])} |"


def main() -> None:
    """Replace what stands between the table's marks."""
    rows = [row for row in load_rows(ROOT / "results") if row.test_set in SETS and row.method in METHODS]
    rows.sort(key=lambda row: (SETS.index(row.test_set), METHODS.index(row.method)))
    headings = " | ".join(heading for _, heading, _ in COLUMNS)
    table = [
        "Medians; shape is the RMSE of corresponding vertices after rigid alignment (true size counts), "
        "identity the cosine",
        "of an independent network (SFace; 1 is best). "
        f"{rows[0].hardware.split(',')[0]}, one thread, seeds in `results/*.csv`, "
        f"{max(row.date for row in rows)}.\n",
        f"| set | method | pictures (failed) | ms | {headings} |",
        "|---|---|---|" + "---:|" * (len(COLUMNS) + 1),
        *map(line, rows),
    ]
    begin, end = "<!-- scoreboard -->\n", "\n<!-- /scoreboard -->"
    text, count = re.subn(
        f"{begin}.*?{end}", lambda _: begin + "\n".join(table) + end, README.read_text(), flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"{README} does not have the marks {begin.strip()} and {end.strip()} once.")
    README.write_text(text)


if __name__ == "__main__":
    main()

"""Write the scoreboard's table into README.md, from results/: python benchmarks/readme.py"""

from __future__ import annotations

import re
from pathlib import Path

from facelab.evaluation.scoreboard import Row, load_rows

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PHOTOGRAPHS = "photos_in_the_wild"
COLUMNS = (  # test set, measure, heading, decimals
    ("in_model", "geometry_mm", "shape, mm: in_model", 2),
    ("outside", "geometry_mm", "outside", 2),
    ("path_traced", "geometry_mm", "path_traced", 2),
    ("outside", "albedo", "skin: outside", 2),
    (PHOTOGRAPHS, "nme_inner_percent", "photographs: inner landmarks, %", 2),
    (PHOTOGRAPHS, "colour_distance", "colours", 3),
    (PHOTOGRAPHS, "identity", "identity", 2),
)
METHODS = {  # the rows' names, in this order
    "average face": "an average face on a detector's landmarks",
    "full fitting": "fitting by optimisation",
    "own skin": "… with the skin of the photograph",
    "inversefacenet": "InverseFaceNet (2018)",
    "MoFA": "MoFA (2017)",
    "coarsenet": "CoarseNet (2017)",
    "coarse to fine": "CoarseNet + FineNet (2017)",
    "ganfit": "GANFIT (2019)",
    "specular": "expressions and specular albedos (2022)",
}


def line(name: str, rows: dict[str, Row]) -> str:
    """One method's row of the table, in Markdown."""
    cells = []
    for test_set, measure, _, digits in COLUMNS:
        summary = rows[test_set].summary() if test_set in rows else {}
        cells.append(f"{summary[measure]['median']:.{digits}f}" if measure in summary else "–")
    time = next(iter(rows.values())).milliseconds
    return f"| {METHODS[name]} | {' | '.join(cells)} | {time:,.0f} |"


def main() -> None:
    """Replace what stands between the table's marks."""
    found: dict[str, dict[str, Row]] = {}
    for row in load_rows(ROOT / "results"):
        found.setdefault(row.method, {})[row.test_set] = row
    shown = {name: found[name] for name in METHODS if name in found}
    rows = [row for sets in shown.values() for row in sets.values()]
    counts = {
        name: " or ".join(str(n) for n in sorted({len(r.outcomes) for r in rows if r.test_set == name}))
        for name in dict.fromkeys(test_set for test_set, *_ in COLUMNS)
    }
    pictures = ", ".join(f"{n} of {name.replace(PHOTOGRAPHS, 'photographs')}" for name, n in counts.items())
    headings = " | ".join(heading for _, _, heading, _ in COLUMNS)
    table = [
        "Medians. Shape is the RMSE of corresponding vertices after rigid alignment (true size counts), skin",
        "the error of the diffuse albedo, colours that of the drawn picture, identity the cosine of a judge",
        "that no method asks (SFace; 1 is best). Pictures:",
        f"{pictures}.",
        f"{rows[0].hardware.split(',')[0]}, one thread, {max(row.date for row in rows)}; seeds, commits and",
        "all measures are in `results/*.csv`.\n",
        f"| method | {headings} | ms |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
        *(line(name, sets) for name, sets in shown.items()),
    ]
    begin, end = "<!-- scoreboard -->\n", "\n<!-- /scoreboard -->"
    text, count = re.subn(
        f"{begin}.*?{end.strip()}",
        lambda _: begin + "\n".join(table) + end,
        README.read_text(),
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"{README} does not have the marks {begin.strip()} and {end.strip()} once.")
    README.write_text(text)


if __name__ == "__main__":
    main()

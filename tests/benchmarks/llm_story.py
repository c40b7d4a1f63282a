"""Five techniques in one house, planned over rates and latencies and run at three points.

    python tests/benchmarks/llm_story.py [--quick] [--predict-only] [--write docs/measurements/llm.md]

Runs need root on Linux and two idle cores, and take about five minutes. The last line is one JSON document.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.diffusion.pictures import saved
from tests.benchmarks.llm import pictures, story
from tests.benchmarks.llm.methods import Methods
from tests.benchmarks.sections import made_by, write_section
from tests.benchmarks.trials import options, print_document, teller

TITLE = "Five techniques in one house"


def main() -> None:
    """Plan, run, draw, write, print."""
    parser = options(__doc__, "one rate and one point")
    parser.add_argument("--predict-only", action="store_true", help="run no plans: for a busy machine")
    asked, say = parser.parse_args(), teller()
    methods = Methods(requests=12 if asked.quick else 100)
    rows = story.grid(methods, story.RATES_MBIT[2:3] if asked.quick else story.RATES_MBIT, say=say)
    measured = {"not_measured": "asked for without running", "rows": []}
    if not asked.predict_only:
        measured = story.run(methods, story.POINTS[:1] if asked.quick else story.POINTS, say=say)
    if asked.write:
        figures = asked.write.parent / "figures"
        saved(pictures.grid_figure(rows), figures / "llm-house.svg")
        command = "python tests/benchmarks/llm_story.py" + (" --predict-only" if asked.predict_only else "")
        lines = story.section(methods, rows, measured)
        picture = ["", "![Milliseconds per answer](figures/llm-house.svg)"]
        write_section(asked.write, TITLE, [made_by(command, quick=asked.quick), "", *lines, *picture])
    print_document("llm_story", quick=asked.quick, grid=rows, measured=measured)


if __name__ == "__main__":
    main()

"""Quality of the digits family on trial: six ways to share a run, the surrogate, curves, what links and devices do.

    python tests/benchmarks/quality.py [--quick] [--only PART] [--predict-only] [--write docs/measurements/diffusion.md]

About ten minutes on one core (``--quick``: a shake-down whose figures mean nothing). What is sampled is kept in
``--folder``, so that a run that was cut off goes on; give another folder after training the family anew. ``--write``
replaces the sections of the parts that were run, saves their figures in ``figures/`` beside the page, and leaves the
rest of the page alone. The last line is one JSON
document; a part that was not run is missing in it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.benchmarks.diffusion import changes, curve, ratio, stages, story, surrogate
from tests.benchmarks.diffusion.bench import Bench
from tests.benchmarks.sections import made_by, write_section
from tests.benchmarks.trials import options, print_document, teller

__all__ = ["main"]

#: Part → the title of its section.
PARTS = {
    story: "Six ways to share a run", surrogate: "Surrogate", stages: "Three stages", curve: "Quality against budgets",
    ratio: "Split over multi-stage, measured", changes: "Devices that change",
}  # fmt: skip


def main() -> None:
    """Run the parts asked for, write their sections, print the figures."""
    parser = options(__doc__, "few images and plans")
    names = [part.PART for part in PARTS]
    parser.add_argument("--only", choices=names, action="append", metavar="PART", help=f"one of {', '.join(names)}")
    parser.add_argument("--predict-only", action="store_true", help="story and ratio run no plans: for a busy machine")
    parser.add_argument("--folder", type=Path, default=Path("build/quality"), help="keeps what was sampled")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    figures = asked.write.parent / "figures" if asked.write else None
    bench = Bench(asked.quick, asked.folder / "samples.jsonl", figures, predict_only=asked.predict_only)
    document: dict[str, Any] = {}
    tell = teller()
    for part, title in PARTS.items():
        if asked.only and part.PART not in asked.only:
            continue
        cpu = time.process_time()
        found = part.run(bench, lambda text, name=part.PART: tell(f"{name}: {text}"))
        seconds = {"processor_s": round(time.process_time() - cpu, 1), "sampled": bench.sampled_now}
        document[part.PART] = found | seconds
        bench.sampled_now = 0
        if asked.write:
            command = f"python tests/benchmarks/quality.py --only {part.PART}{' --predict-only' * asked.predict_only}"
            made = made_by(command, quick=asked.quick)
            write_section(asked.write, title, [made, "", *part.section(found)])
    print_document("quality", quick=asked.quick, **document)


if __name__ == "__main__":
    main()

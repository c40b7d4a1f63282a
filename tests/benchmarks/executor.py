"""The executor on trial: predictions against emulated hosts, overhead, faults, correctness, calibration.

    python tests/benchmarks/executor.py [--quick] [--only PART] [--resume] [--write docs/measurements/executor.md]

Needs root on Linux and takes about 20 minutes on two idle cores (``--quick``: a shake-down whose figures mean nothing).
Findings are kept in ``--folder`` as they are made: ``--resume`` goes on after an interruption, and a part that was run
alone joins those of an earlier run. The last line is one JSON document; a part that was not run is null in it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.campaign import calibration, correct, faults, overhead, predict
from tests.benchmarks.campaign.ledger import Ledger
from tests.benchmarks.campaign.page import page
from tests.benchmarks.trials import need_hosts, options, print_document, teller

#: In the order of running: profiles are measured shortly before the plans that they predict.
PARTS = {module.PART: module for module in (predict, overhead, calibration, correct, faults)}


def main() -> None:
    """Run the parts asked for, print the summary, write the page."""
    parser = options(__doc__, "few plans and repeats", folder="executor")
    parser.add_argument("--only", choices=PARTS, action="append", metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    need_hosts()
    ledger, say = Ledger(asked.folder, {"quick": asked.quick, "seed": asked.seed}, asked.resume), teller()
    for name in asked.only or PARTS:
        started = time.perf_counter()
        PARTS[name].run(ledger, asked.quick, asked.seed, lambda text, name=name: say(f"{name}: {text}"))
        before = ledger.get("seconds", name) or {"seconds": 0.0}
        ledger.put("seconds", name, {"seconds": before["seconds"] + time.perf_counter() - started})
    found: dict[str, Any] = {name: part.summary(ledger) for name, part in PARTS.items()}
    seconds = {name: record["seconds"] for name, record in ledger.of("seconds").items()}
    if asked.write:
        asked.write.write_text(page(ledger, found, seconds, asked.quick), encoding="utf-8")
    print_document("executor", quick=asked.quick, seconds=seconds, **found)


if __name__ == "__main__":
    main()

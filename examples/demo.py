"""From this machine to a proven plan to a measured run, by the commands that a user would type.

    python examples/demo.py [FOLDER]          (`make demo` uses build/demo)

1. Three devices are made out of this machine by thread count, and measured as if each were a machine of its own, with
   the models that will run on it; so is the link between two processes.
2. A language model and a diffusion model are planned over them. No device is given memory for a whole model, so both
   have to be split.
3. Each plan is verified, then run by one process per device, and the measurement stands beside the prediction.

The devices are processes of this machine; beyond the thread count nothing is emulated.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
#: Threads of each device; on a machine with one core they are equal.
DEVICES = {"desktop": CORES, "laptop": 1, "phone": 1}

PROMPT_TOKENS, NEW_TOKENS = 48, 24

LLM = f"""\
name: demo-llm
description: A small Llama over three processes of this machine.
model: demo-llm
strategy: pipeline
workload: {{prompt_tokens: {PROMPT_TOKENS}, new_tokens: {NEW_TOKENS}}}
devices:
  - {{profile: desktop.yaml, memory: 200 MiB}}
  - {{profile: laptop.yaml, memory: 200 MiB}}
  - {{profile: phone.yaml, memory: 120 MiB}}
network: loopback.yaml
objective: latency
constraints: {{source: phone}}
"""

DIFFUSION = """\
name: demo-diffusion
description: A family of two small denoisers over three processes of this machine.
model: demo-diffusion
strategy: multi_stage
workload: {steps: 12}
devices:
  - {profile: desktop.yaml, memory: 44 MiB}
  - {profile: laptop.yaml, memory: 24 MiB}
  - {profile: phone.yaml, memory: 32 MiB}
network: loopback.yaml
objective: latency
constraints: {source: phone, quality: 12.0}
"""


def edgeopt(folder: Path, *words: str) -> None:
    """Run one command as a user would, and stop the demo if it fails."""
    print(f"\n$ edgeopt {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "edgeopt", *words], cwd=folder, check=False)
    if done.returncode:
        raise SystemExit(f"demo stopped: the last command ended with exit code {done.returncode}")


def main(folder: Path) -> None:
    """Measure, plan, verify, run, compare."""
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("llm", LLM), ("diffusion", DIFFUSION)):
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    edgeopt(folder, "profile", "link", "loopback", "-o", "loopback.yaml")
    models = ["--model", "demo-llm", "--model", "demo-diffusion"]
    request = ["--prompt-tokens", str(PROMPT_TOKENS), "--new-tokens", str(NEW_TOKENS)]
    for name, threads in DEVICES.items():
        edgeopt(folder, "profile", "device", name, "--threads", str(threads), *models, *request, "-o", f"{name}.yaml")
    for name in ("llm", "diffusion"):
        edgeopt(folder, "solve", f"{name}.yaml", "-o", f"{name}-plan.yaml")
        edgeopt(folder, "verify", f"{name}-plan.yaml")
        edgeopt(folder, "execute", f"{name}-plan.yaml", "--repeat", "7", "-o", f"{name}-report.json")
    summarise([json.loads((folder / f"{name}-report.json").read_text()) for name in ("llm", "diffusion")])
    print(f"files in {folder}; {time.perf_counter() - started:.0f} s in all")


def summarise(reports: list[dict]) -> None:
    """Print each run's error of the total latency, then the median over all measured requests."""
    print("\nTotal latency, predicted against measured")
    errors = []
    for report in reports:
        latency = report["latency_s"]
        runs = [abs(latency["predicted"] - sample) / sample for sample in latency["samples"]]
        errors += runs
        print(
            f"  {report['problem']}: predicted {latency['predicted']:.4f} s, measured {latency['median']:.4f} s "
            f"(median of {len(runs)}), relative error {100 * latency['relative_error']:+.1f} %, "
            f"result {'equals' if report['output']['equal'] else 'DIFFERS from'} the single-process run"
        )
    print(f"median relative error over {len(errors)} runs: {100 * statistics.median(errors):.1f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo").resolve())

"""How true the cost models are: predictions of whole models beside measurements that no prediction has seen.

Run ``python tests/benchmarks/costs.py`` (``--quick``: one thread, one process, two models; ``--device cuda``: on a GPU,
by CUDA events; ``--write FILE``: the table as a page). The last line is one JSON document. Two predictions are judged:

* tables: per-element medians, measured in other processes with other prompts and batches (as ``profile model --on``);
* roofline: the derived figures of the model and the rates of ``profile device``, without any timing of a model.

Processes that profile and processes that run whole models take turns. Whole rounds are timed with nothing inside them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeopt.costs.diffusion import DiffusionCosts
from edgeopt.costs.language import LanguageCosts
from edgeopt.costs.terms import Terms
from edgeopt.profiler import profile_device
from edgeopt.profiler.architectures import derive_model
from edgeopt.profiler.device import usable_cores
from edgeopt.profiler.jobs import ElementAnswer
from edgeopt.profiler.processes import run_jobs
from edgeopt.profiler.timings import Measuring
from edgeopt.profiles.device import Device, Runtime
from edgeopt.profiles.model import CausalLM, Diffusion
from edgeopt.profiles.problem import ImageWorkload, TextWorkload

NEW_TOKENS, STEPS = 9, 4
#: (batch, prompt tokens) that tables are measured at, and that are predicted; batches for denoisers.
TEXT_TABLE = [(batch, prompt) for batch in (1, 2, 4) for prompt in (32, 96)]
TEXT_ASKED = [(1, 64), (2, 80), (3, 64), (4, 48)]
IMAGE_TABLE, IMAGE_ASKED = [1, 2, 4], [1, 2, 3, 4]

CONFIGS = {
    "llama-75m": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 6,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 2816,
        "vocab_size": 8192, "tie_word_embeddings": False, "max_position_embeddings": 2048,
    },
    "dit-8": {
        "_class_name": "DiTTransformer2DModel", "num_attention_heads": 6, "attention_head_dim": 64, "in_channels": 4,
        "out_channels": 4, "num_layers": 8, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 10,
        "norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "activation_fn": "gelu-approximate",
        "attention_bias": True,
    },
    "qwen2-63m": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 640, "num_hidden_layers": 12,
        "num_attention_heads": 10, "num_key_value_heads": 2, "intermediate_size": 1792, "vocab_size": 16384,
        "tie_word_embeddings": True, "max_position_embeddings": 2048,
    },
    "unet-96": {
        "_class_name": "UNet2DModel", "sample_size": 32, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": [96, 192, 384], "num_class_embeds": 11, "norm_num_groups": 32, "attention_head_dim": 64,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    },
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One predicted and measured point; seconds of a prefill, a decode round or a denoising step."""

    model: str
    phase: str
    batch: int
    tokens: int | None
    threads: int
    between: str
    measured_s: float
    tables_s: float
    roofline_s: float
    largest_term: str
    processes: int
    turns_differ: float

    @property
    def tables_error(self) -> float:
        """Signed, relative."""
        return self.tables_s / self.measured_s - 1

    @property
    def roofline_error(self) -> float:
        """Signed, relative."""
        return self.roofline_s / self.measured_s - 1


def loads(model: CausalLM | Diffusion, asked: bool) -> list[TextWorkload | ImageWorkload]:
    """Return the workloads of the tables, or those that are predicted."""
    if isinstance(model, CausalLM):
        points = TEXT_ASKED if asked else TEXT_TABLE
        return [TextWorkload(batch=b, prompt_tokens=p, new_tokens=NEW_TOKENS) for b, p in points]
    return [ImageWorkload(steps=STEPS, images=batch) for batch in (IMAGE_ASKED if asked else IMAGE_TABLE)]


def predictions(model: CausalLM | Diffusion, load: TextWorkload | ImageWorkload, device: Device) -> dict[str, Terms]:
    """Seconds by phase; of a decode round the mean over the request's rounds."""
    if isinstance(model, CausalLM):
        costs = LanguageCosts(model, load)
        decode = costs.decode_terms(device)[0].sum(axis=1)
        mean = Terms(**{name: value.mean() for name, value in decode})
        return {"prefill": costs.prefill_terms(device)[0].sum(), "decode": mean}
    (variant,) = model.variants
    return {"step": DiffusionCosts(model, load).terms(device)[0][variant]}


def observed(model: CausalLM | Diffusion, rounds_s) -> dict[str, float]:
    """Seconds by phase out of whole rounds."""
    if isinstance(model, CausalLM):
        return {"prefill": float(rounds_s[0]), "decode": float(rounds_s[1:].mean())}
    return {"step": float(rounds_s[0]) / STEPS}


def between(model: CausalLM | Diffusion, load: TextWorkload | ImageWorkload) -> str:
    """What the tables are interpolated in for this setting."""
    if isinstance(model, CausalLM):
        return "tokens" if load.batch in {b for b, _ in TEXT_TABLE} else "tokens, batch"
    return "" if load.images in IMAGE_TABLE else "batch"


@dataclass
class Seen:
    """Of one model with one number of threads: per-element tables, and whole rounds, each from several processes."""

    profiled: Measuring
    whole: Measuring

    @property
    def processes(self) -> int:
        """How many processes ran whole models, and as many profiled."""
        return len(self.whole.samples[0])

    @property
    def is_calm(self) -> bool:
        """Whether neither was disturbed."""
        return self.profiled.is_calm and self.whole.is_calm

    def take_turns(self, repeats: int) -> None:
        """Profile in one more process, then run whole models in another."""
        for each in (self.profiled, self.whole):
            job = each.job(repeats, whole=each is self.whole)
            each.add(run_jobs([job], ElementAnswer, 600.0)[0])


def measure(models: list, threads: list[int], arguments: argparse.Namespace, say) -> list[Setting]:
    """Profile and run whole models in turns, then predict; what is disturbed gets up to as many turns again."""
    rates: dict[int, list[Device]] = {count: [] for count in threads}
    seen: dict[tuple[str, int], Seen] = {}
    for count in threads:
        runtime = Runtime(threads=count, accelerator=arguments.device)
        for model in models:
            asked, tables = (Measuring(model, loads(model, asked=which), runtime) for which in (True, False))
            seen[model.name, count] = Seen(profiled=tables, whole=asked)
    for turn in range(2 * arguments.processes):
        again = turn >= arguments.processes
        for count in threads:
            if not again:
                say(f"rates of the machine, {count} threads, turn {turn + 1} of {arguments.processes}")
                dtypes = ("float16",) if arguments.device == "cuda" else ("float32",)
                rates[count].append(profile_device("here", threads=count, dtypes=dtypes, accelerator=arguments.device))
            for model in models:
                each = seen[model.name, count]
                if again and each.is_calm:
                    continue
                which = "once more, disturbed" if again else f"turn {turn + 1} of {arguments.processes}"
                say(f"{model.name}, {count} threads, {which}")
                each.take_turns(arguments.repeats)
    return [
        setting
        for count in threads
        for model in models
        for setting in judge(model, count, rates[count], seen[model.name, count])
    ]


def judge(model: CausalLM | Diffusion, threads: int, rates: list[Device], seen: Seen) -> list[Setting]:
    """Compare every asked workload of one model; of the rates of several turns the one in the middle predicts."""
    known = rates[0].model_copy(update={"timings": seen.profiled.timings("tests/benchmarks/costs.py")})
    turns = [seen.whole.rounds_s(process) for process in range(seen.processes)]
    found = []
    for index, load in enumerate(loads(model, asked=True)):
        tables = predictions(model, load, known)
        roofs = [predictions(model, load, each) for each in rates]
        observations = [observed(model, rounds[index]) for rounds in turns]
        for phase in tables:
            values = [each[phase] for each in observations]
            assert float(tables[phase].measured) > 0, "outside the tables"
            middle = statistics.median(values)
            roof_s = statistics.median(float(each[phase].total) for each in roofs)
            text = isinstance(load, TextWorkload)
            found.append(
                Setting(
                    model=model.name, phase=phase, batch=load.batch if text else load.images,
                    tokens=load.prompt_tokens if text else None, threads=threads, between=between(model, load),
                    measured_s=middle, tables_s=float(tables[phase].total), roofline_s=roof_s,
                    largest_term=max(roofs[0][phase], key=lambda term: float(term[1]))[0],
                    processes=seen.processes, turns_differ=_quartiles(values) / middle,
                )
            )  # fmt: skip
    return found


def _quartiles(values: list[float]) -> float:
    """Range between the quartiles; of two values, between them."""
    if len(values) < 3:
        return max(values) - min(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def summary(settings: list[Setting]) -> dict:
    """Medians and worst cases, over all and by phase."""

    def of(chosen: list[Setting]) -> dict:
        tables, roof = ([abs(getattr(s, name)) for s in chosen] for name in ("tables_error", "roofline_error"))
        return {
            "settings": len(chosen),
            "tables_median": statistics.median(tables), "tables_worst": max(tables),
            "roofline_median": statistics.median(roof), "roofline_worst": max(roof),
            "whole_against_whole_median": statistics.median(s.turns_differ for s in chosen),
        }  # fmt: skip

    def by(name: str, key: Callable[[Setting], Any]) -> dict:
        return {
            name: {
                str(value): of([s for s in settings if key(s) == value]) for value in sorted(set(map(key, settings)))
            }
        }

    return of(settings) | by("phases", lambda s: s.phase) | by("threads", lambda s: s.threads)


def row(s: Setting) -> str:
    """One line of the table."""
    return (
        f"| {s.model} | {s.phase} | {s.batch} | {s.tokens or '–'} | {s.threads} | {1e3 * s.measured_s:.1f} | "
        f"{100 * s.tables_error:+.1f} % | {s.between or '–'} | {100 * s.roofline_error:+.1f} % | {s.largest_term} | "
        f"{100 * s.turns_differ:.1f} % |"
    )


COLUMNS = (
    "model", "phase", "batch", "prompt", "threads", "measured ms", "tables", "interpolated in", "roofline",
    "largest term", "turns differ",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def page(settings: list[Setting], facts: dict, elapsed_s: float, arguments: argparse.Namespace) -> str:
    """The table as a page of the documentation."""
    lines = [
        "# Predictions of cost beside measurements",
        "",
        "Written by `python tests/benchmarks/costs.py --write docs/measurements/costs.md`. Whole-model time of",
        "prefills, decode rounds and denoising steps, with nothing timed inside them, against two predictions that",
        "never saw it:",
        "**tables** are element medians from other processes at other prompts and batches; **roofline** has derived",
        "figures of the model and the rates of `profile device`, no timing of a model. How: [Costs](../costs.md).",
        "",
        f"{date.today().isoformat()}, {usable_cores()} x {platform.processor() or platform.machine()}, "
        f"on {arguments.device}; {arguments.processes} processes of {arguments.repeats} requests each for profile and "
        f"for whole models in turns, up to twice as many where requests differed by more than 10 %; {elapsed_s:.0f} s.",
        "",
        "| | settings | tables, median | worst | roofline, median | worst | whole against whole, median |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    threads = [(f"{count} thread{'s' * (count != '1')}", each) for count, each in facts["threads"].items()]
    for name, each in [("all", facts), *facts["phases"].items(), *threads]:
        shares = ("tables_median", "tables_worst", "roofline_median", "roofline_worst", "whole_against_whole_median")
        lines.append(f"| {name} | {each['settings']} | " + " | ".join(f"{each[key]:.1%}" for key in shares) + " |")
    lines += [
        "",
        "Goals: a median of 5 % for tables and of 20 % for the roofline. *Whole against whole* is how far processes",
        "that run the same whole model lie apart (between quartiles): no prediction can be held to less.",
        "",
        "## Worst cases",
        "",
    ]
    for name in ("tables", "roofline"):
        for worst in sorted(settings, key=lambda s: -abs(getattr(s, f"{name}_error")))[:3]:
            what = f"{worst.model} {worst.phase}, batch {worst.batch}, {worst.threads} threads"
            lines.append(f"- {name}: {what}: {why(worst, name)}")
    return "\n".join([*lines, "", "## All settings", "", HEAD, *map(row, settings), ""])


def why(s: Setting, name: str) -> str:
    """Say what the figures themselves tell about a worst case."""
    error = getattr(s, f"{name}_error")
    told = [f"{error:+.1%}"]
    if s.turns_differ > abs(error) / 2:
        told.append(
            f"processes that run the same whole model differ by {s.turns_differ:.1%}: much of it is the machine"
        )
    if name == "tables" and "batch" in s.between:
        told.append("interpolated in the batch, where libraries switch kernels")
    if name == "roofline":
        told.append(f"the largest term is {s.largest_term}")
        if s.threads > 1 and error < 0:
            told.append("waking threads for each operation is in no term")
    return "; ".join(told)


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=3, help="turns, each a fresh process")
    parser.add_argument("--repeats", type=int, default=2, help="requests timed per process and workload")
    parser.add_argument("--models", nargs="*", choices=CONFIGS, default=None)
    parser.add_argument("--write", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    names = arguments.models or list(CONFIGS)
    threads = [1, 2] if usable_cores() > 1 and arguments.device == "cpu" else [1]
    if arguments.quick:
        arguments.processes, arguments.repeats, threads = 1, 2, [1]
        names = arguments.models or names[:2]
    begun = time.perf_counter()
    dtype = "float16" if arguments.device == "cuda" else "float32"
    models = [
        derive_model(CONFIGS[name], name=name, source="made up for this benchmark, random weights", dtype=dtype)
        for name in names
    ]
    settings = measure(models, threads, arguments, lambda text: print(text, file=sys.stderr, flush=True))
    facts, elapsed_s = summary(settings), time.perf_counter() - begun
    print(HEAD, *map(row, settings), sep="\n")
    if arguments.write:
        arguments.write.write_text(page(settings, facts, elapsed_s, arguments), encoding="utf-8")
    rows = [asdict(s) | {"tables_error": s.tables_error, "roofline_error": s.roofline_error} for s in settings]
    document = {"benchmark": "costs", "device": arguments.device, "elapsed_s": elapsed_s, **facts, "rows": rows}
    print(json.dumps(document, allow_nan=False))


if __name__ == "__main__":
    main()

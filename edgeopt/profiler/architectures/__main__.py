"""Derive the library's models anew: ``python -m edgeopt.profiler.architectures [FOLDER] [NAME ...]``.

A file whose figures have not changed keeps its date and is not written.
"""

from __future__ import annotations

import argparse
import re
import resource
import time
from datetime import date
from pathlib import Path

from edgeopt.files import write_whole
from edgeopt.profiler.architectures import derive_model, known_names, model_text, with_weights
from edgeopt.profiles.model import CausalLM, Diffusion

#: Language models that are also shipped with small weights, since people run them so.
QUANTISED = {"llama-3.1-8b": ("int4",), "llama-3.1-70b": ("int4",)}

_DATE = re.compile(r"on torch's meta device on (\d{4}-\d{2}-\d{2})")


def main() -> None:
    """Write what has changed; say what was done, and what it took."""
    parser = argparse.ArgumentParser(description="Derive the library's model profiles from their configurations.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("profiles/models"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all published models that are known")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(known_names())
    if unknown or not arguments.folder.is_dir():
        parser.error(
            f"no such model: {', '.join(sorted(unknown))}" if unknown else f"no such folder: {arguments.folder}"
        )
    begun = time.perf_counter()
    for name in arguments.names or known_names():
        before = time.perf_counter()
        model = derive_model(name)
        for each in (model, *(with_weights(model, dtype) for dtype in QUANTISED.get(name, ()))):
            changed = update(arguments.folder / f"{each.name}.yaml", each)
            print(
                f"{each.name}: {'written' if changed else 'unchanged'}, {time.perf_counter() - before:.1f} s",
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{time.perf_counter() - begun:.1f} s (CPU {time.process_time():.1f} s), {peak / 1e9:.2f} GB of memory at most"
    )


def update(path: Path, model: CausalLM | Diffusion) -> bool:
    """Write a profile unless the file says the same but for the date; return whether it was written."""
    text = model_text(model)
    if path.is_file():
        before = path.read_text(encoding="utf-8")
        known = _DATE.search(before)
        if known and before == text.replace(f"device on {date.today().isoformat()}", f"device on {known[1]}"):
            return False
    write_whole(path, text)
    return True


if __name__ == "__main__":
    main()

"""What the trials of speculative decoding found: goals beside figures, a row for every setting."""

from __future__ import annotations

import statistics
from typing import Any

__all__ = ["NEW", "PROMPT", "decomposed", "summary", "table"]

#: Tokens of a prompt, and tokens that are made.
PROMPT, NEW = 64, 64


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Goals beside what was found."""
    errors = [abs(row["error"]) for row in rows]
    return {
        "settings": len(rows),
        "texts": sum(row["texts"] for row in rows),
        "all_equal": all(row["equal"] for row in rows),
        "median_speed_up_error": statistics.median(errors),
        "largest_speed_up_error": max(errors),
        "within_10_percent": sum(error <= 0.1 for error in errors),
        "largest_planned_error": max(abs(row["planned_error"]) for row in rows),
        "largest_counted_error": max(abs(row["counted_error"]) for row in rows),
        "largest_above_best": max(row["above_best"] for row in rows),
        "largest_above_best_fair": max(row["above_best_fair"] for row in rows),
        "within_3_percent": sum(row["above_best"] <= 0.03 for row in rows),
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown of the results."""
    found = summary(rows)
    equal = "all" if found["all_equal"] else "NOT ALL"
    lines = [
        "A target of 0.45 million parameters on a server, and a phone that cannot hold it, at fractions of this "
        "machine's speed; links of 100 Mbit/s. Seconds of passes are those before the run, when plans are made, and "
        "after it, on average; acceptance is the profile's; "
        f"texts continue {PROMPT} tokens by {NEW}, on prompts that the acceptance was not measured on. Planned length, "
        "neighbours and the target alone run by turns in the same processes.",
        "",
        "| figure | goal | found |",
        "|---|---|---|",
        f"| texts equal to the target's own | all | {equal} of {found['texts']} |",
        f"| speed-up within 10% of predicted | {len(rows)} of {len(rows)} | "
        f"{found['within_10_percent']} of {len(rows)} (median error "
        f"{found['median_speed_up_error']:.1%}, largest {found['largest_speed_up_error']:.1%}) |",
        "| the same, with the seconds of passes before the run alone | – | largest error "
        f"{found['largest_planned_error']:.1%} |",
        "| the same, predicted with the draft's guesses on the very prompts | – | largest error "
        f"{found['largest_counted_error']:.1%} |",
        f"| planned length the best measured, or within 3% of it | {len(rows)} of {len(rows)} | "
        f"{found['within_3_percent']} of {len(rows)} (largest {found['largest_above_best']:.1%}) |",
        "| the same, without the luck that prompts bring one length or another | – | largest "
        f"{found['largest_above_best_fair']:.1%} |",
        "",
        "Error is predicted / measured − 1 of the speed-up; in brackets with the draft's guesses on the very prompts, "
        "which leaves the seconds of passes and messages. Above best: the planned length's time over the best one's; "
        "in brackets without luck, for which the guesses on all prompts tell how far those that were run are from the "
        "mean. Adaptive: the time of drafts that stop when they doubt, over that of the planned length.",
        "",
        "| draft, target at | latency (ms) | draft on | length | best of | above best | adaptive | speed-up | planned "
        "| error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        s = row["setting"]
        tried = ", ".join(f"**{each}**" if int(each) == row["best"] else each for each in row["seconds"])
        lines.append(
            f"| {s['draft_quota']:.0%}, {s['target_quota']:.0%} | {1e3 * s['latency_s']:g} | {s['draft']} on "
            f"{row['draft_device'] or 'none'} | {row['chosen']} | {tried} | {row['above_best']:.1%} "
            f"({row['above_best_fair']:.1%}) | "
            f"{row['adaptive']:+.1%} | {row['speed_up']:.2f} | {row['predicted_speed_up']:.2f} | {row['error']:+.1%} "
            f"({row['counted_error']:+.1%}) |"
        )
    lines += [
        "",
        "Parts of a request with the planned length, and the target's computing where it decodes alone: milliseconds "
        "planned / measured. *Messages* is all that is neither computing of the draft nor of the target.",
        "",
        "| draft, target at | latency (ms) | draft | drafting | checking | messages | rounds | alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        s, planned, found = row["setting"], row["predicted_parts"], row["parts"]
        cells = [f"{1e3 * planned[name]:.0f}/{1e3 * found[name]:.0f}" for name in found]
        alone = f"{1e3 * row['predicted_alone_parts']['target']:.0f}/{1e3 * row['alone_parts']['target']:.0f}"
        lines.append(
            f"| {s['draft_quota']:.0%}, {s['target_quota']:.0%} | {1e3 * s['latency_s']:g} | {s['draft']} | "
            f"{' | '.join(cells)} | {row['predicted_rounds']:.1f}/{row['rounds']:.1f} | {alone} |"
        )
    return lines


def decomposed(row: dict[str, Any]) -> str:
    """Predicted / measured of every part, in ms."""

    def pairs(found: dict[str, float], planned: dict[str, float]) -> str:
        return ", ".join(f"{name} {1e3 * planned[name]:.0f}/{1e3 * found[name]:.0f}" for name in found)

    return (
        f"{pairs(row['parts'], row['predicted_parts'])}, rounds {row['predicted_rounds']:.1f}/{row['rounds']:.1f}; "
        f"alone {pairs(row['alone_parts'], row['predicted_alone_parts'])}; the machine drifted by {row['drift']:+.0%}, "
        f"planned before it {row['planned_error']:+.1%}"
    )

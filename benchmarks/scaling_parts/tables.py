"""Markdown tables of measured cases and of the projection."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

MEASURED = """\
Images per second of `fit`'s training steps with one process and with two, in turn; medians. The ratio is the median,
over the rounds, of two processes' speed divided by one's in the same round, with its quartiles; the ratio per CPU
second is the same for CPU time, on which other work on the machine has less influence. The all-reduce is that of an
update's gradients on its own, in DDP's buckets. The wait is the time, by DDP's clock, between a process's own gradients
and the end of their exchange; it includes waiting for the slower process. Shares are of two processes' step."""

PROJECTED = """\
**A projection, not a measurement.** Times of a step on one H100 (bfloat16, attack steps as CUDA graphs; the update's
12 ms are assumed), and ring all-reduces with {nvlink:g} GB/s per GPU within nodes of {node} and {network:g} GB/s per
node between them. Ranges are from no overlap of communication and computation to full overlap. Divided: the config's
images per update, shared by the GPUs. Kept: the config's images per update on each GPU, so fewer and larger updates.
Minutes are those of the config's epochs, without validation and test. The bandwidths are assumed. The formulas:
`benchmarks/scaling_parts/projection.py`."""


def format_measured(rows: Sequence[Row]) -> str:
    """Format measured cases, and one line per case that was left out."""
    head = (
        "network, attack", "images per step", "threads", "one, images/s", "two, images/s", "ratio", "ratio per CPU s",
        "gradients, MB", "all-reduce, ms", "share", "wait, ms", "share",
    )  # fmt: skip
    cells = [
        (
            row["case"],
            row["images_per_update"],
            f"{row['threads']['one'][0]}, {' + '.join(map(str, row['threads']['two']))}",
            number(row["one_images_per_second"]),
            number(row["two_images_per_second"]),
            f"**{row['ratio']:.2f}** ({row['ratio_quartiles'][0]:.2f} to {row['ratio_quartiles'][1]:.2f})",
            f"{row['cpu_ratio']:.2f}",
            number(row["gradient_bytes"] / 1e6),
            number(1e3 * row["all_reduce_seconds"]),
            f"{100 * row['all_reduce_share']:.1f}%",
            number(1e3 * row["wait_seconds"]),
            f"{100 * row['wait_share']:.1f}%",
        )
        for row in rows
        if "ratio" in row
    ]
    left_out = [f"- Left out: {row['case']}: {row['left_out']}" for row in rows if "left_out" in row]
    return "\n\n".join(part for part in (MEASURED, format_table(head, cells), "\n".join(left_out)) if part) + "\n"


def format_projection(rows: Sequence[Row], links: dict[str, Any]) -> str:
    """Format the projection: a line per config, number of GPUs and rule for the batch."""
    head = (
        "config", "network", "GPUs", "batch", "images per GPU", "compute, ms", "BatchNorm, ms", "all-reduce, ms",
        "communication", "images/s", "speed over one GPU", "minutes",
    )  # fmt: skip
    cells = [
        (
            f"`{row['config']}`",
            row["network"],
            row["gpus"],
            row["batch_rule"] if row["gpus"] > 1 else "",
            number(row["images_per_gpu"]),
            number(row["compute_ms"]),
            number(row["statistics_ms"]),
            number(row["all_reduce_ms"]),
            f"{100 * row['communication_share']:.0f}%",
            span(row["images_per_second"]),
            span(row["speed_over_one_gpu"]),
            span(sorted(row["minutes"])),
        )
        for row in rows
    ]
    return f"{PROJECTED.format(**links)}\n\n{format_table(head, cells)}\n"


def format_table(head: Sequence[str], cells: Sequence[Sequence[object]]) -> str:
    """Format a Markdown table."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in (head, *cells)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def span(values: Sequence[float]) -> str:
    """Format the least and the largest value, or one if both look the same."""
    shown = dict.fromkeys(number(value) for value in values)
    return " to ".join(shown)


def number(value: float) -> str:
    """Format a number with three digits."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"

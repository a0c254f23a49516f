"""Requirements that a record is compared with, on a GPU and on a CPU."""

from typing import Any

from benchmarks.accelerator_sections.setting import Row

SPEED = {("MNIST CNN", 128): 6.0, ("MNIST CNN", 1024): 1.4, ("ResNet-18", 128): 3.5, ("ResNet-18", 512): 2.2}
FIT, EVALUATE, COUNTS, MEMORY, ON_CPU = 5.0, 4.0, 2, 12.0, 0.97
PEERS = ("paper's loop", "advertorch", "torchattacks", "foolbox", "ART", "pyautoattack")
SAME_IMAGES = ("Rampart, captured, float32", "baseline, float32")


def check_record(rows: list[Row], size: str) -> list[Row]:
    """Return one row per requirement that the rows decide: name, required and measured value, verdict."""
    if size == "full":
        found = [*_check_steps(rows), *_check_fit(rows), *_check_evaluate(rows)]
    elif size == "cpu":
        found = [
            _row(_name(row), f">= {ON_CPU}", row["speed_over_baseline"], row["speed_over_baseline"] >= ON_CPU)
            for row in rows
            if row.get("speed_over_baseline")
            and row.get("contestant", "Rampart").startswith("Rampart")
            and row.get("time", "attack_seconds") == "attack_seconds"
        ]
    else:
        found = []
    return [{"table": "checks"} | row for row in found]


def _name(row: Row) -> str:
    if row["table"] == "attack_step":
        return f"attack step, {row['network']}, batch {row['batch_size']}: {row['contestant']}"
    return f"fit, {row['recipe']}" if row["table"] == "fit" else f"evaluate, {row['time']}"


def _check_steps(rows: list[Row]) -> list[Row]:
    found = []
    for (network, batch_size), required in SPEED.items():
        case = [row for row in rows if row.get("network") == network and row.get("batch_size") == batch_size]
        most = max((row["steps"] for row in case), default=0)
        case, name = [row for row in case if row["steps"] == most], f"{network}, batch {batch_size}"
        ours, baseline, peers = (_fastest(case, names) for names in ("Rampart", "baseline", PEERS))
        if ours and baseline:
            ratio = baseline / ours
            found.append(_row(f"attack step, {name}, over the baseline", f">= {required}", ratio, ratio >= required))
        if ours and peers:
            found.append(_row(f"attack step, {name}, over the fastest peer", "> 1", peers / ours, peers > ours))
        for row in case:
            if row["contestant"] in SAME_IMAGES and "equal_pixels" in row:
                equal = row["equal_pixels"]
                check = f"equal pixels, {name}: {row['contestant']}"
                found.append(_row(check, "1, up to sign ties", equal, equal > 0.999))
    return found


def _fastest(rows: list[Row], names: str | tuple[str, ...]) -> float | None:
    return min((row["ms_per_step"] for row in rows if row["contestant"].startswith(names)), default=None)


def _check_fit(rows: list[Row]) -> list[Row]:
    found = []
    for row in (row for row in rows if row["table"] == "fit"):
        name = f"fit, {row['recipe']}"
        if row["recipe"] == "fast" and row.get("speed_over_baseline"):
            ratio = row["speed_over_baseline"]
            found.append(_row(f"{name}, over the baseline", f">= {FIT}", ratio, ratio >= FIT))
        if row["host_waits"] is not None:
            found.append(_row(f"{name}, host waits", "0", row["host_waits"], row["host_waits"] == 0))
        if row["recipe"].startswith("ResNet-18") and row["rampart_peak_gib"] is not None:
            memory = row["rampart_peak_gib"]
            found.append(_row(f"{name}, GiB", f"< {MEMORY:g}", memory, memory < MEMORY))
    return found


def _check_evaluate(rows: list[Row]) -> list[Row]:
    found = []
    for row in (row for row in rows if row["table"] == "evaluate, compared"):
        if not row["time"].endswith("_seconds"):
            continue
        ratio, apart = row["speed_over_baseline"], abs(row["robust"] - row["baseline_robust"])
        found.append(_row(f"evaluate, {row['time']}, over the baseline", f">= {EVALUATE}", ratio, ratio >= EVALUATE))
        if row["time"] == "wall_seconds":
            found.append(_row("evaluate, robust images apart", f"<= {COUNTS}", apart, apart <= COUNTS))
    return found


def _row(check: str, required: str, measured: Any, fulfilled: bool) -> Row:
    return {"check": check, "required": required, "measured": measured, "fulfilled": fulfilled}

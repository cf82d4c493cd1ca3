"""The closing table of gpu_check.py: machine, stages, and the most important figures."""

from __future__ import annotations

import re
from typing import Any


def table(report: dict[str, Any]) -> str:
    """Returns the closing table: machine, stages, and the most important lines of profile, training and benchmark."""
    machine = report["machine"]
    gpu = machine["gpu"] or {"name": "no GPU", "compute_cap": "-", "driver_version": "-"}
    lines = [
        "",
        f"{gpu['name']} (compute capability {gpu['compute_cap']}), driver {gpu['driver_version']}, "
        f"torch {machine['torch']}",
        f"commit {machine['commit']}, sources {machine['sources'][:12]}",
    ]
    if machine["missing"]:
        lines.append(f"missing: {', '.join(machine['missing'])}")
    if "problem" in report:
        lines.append(report["problem"])
    for name, entry in report["stages"].items():
        output = entry.get("output_end", "")
        cases = re.findall(r"^\d+ of \d+ cases$", output, re.MULTILINE)  # of gpu_small.py; the tool has the last line
        what = entry.get("reason") or ", ".join([*cases, _last_line(output)])
        lines.append(f"{name:<10} {entry['result']:<10} {entry['seconds']:7.1f} s  {what[:100]}")
    lines += profile_lines(report.get("profile", {}))
    lines += training_lines(report.get("train", {}))
    return "\n".join([*lines, *benchmark_lines(report.get("benchmark", {}))])


def profile_lines(record: dict[str, Any]) -> list[str]:
    """Returns a line of what ncu found for each kernel of `gpu_profile.py`."""
    lines = []
    for entry in record.get("kernels", []):
        shown = ", ".join(f"{name} {value:.4g}" for name, value in entry["figures"].items())
        stalls = ", ".join(f"{name} {value:.2f}" for name, value in list(entry["stalls"].items())[:3])
        lines.append(f"{entry['case']}, {entry['kernel']}: {shown}; stalls: {stalls}")
    return lines or ([f"profile: {record['problem']}"] if "problem" in record else [])


def training_lines(record: dict[str, Any]) -> list[str]:
    """Returns a line for each batch size of `gpu_train.py`."""
    lines = []
    for entry in record.get("batches", []):
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in entry.items() if name != "calls")
        lines.append(f"training: {figures}")
    return lines or ([f"training: {record['problem']}"] if "problem" in record else [])


def benchmark_lines(record: dict[str, Any]) -> list[str]:
    """Returns the lines on the first shape of `jkoflow bench`: times, errors and shares of the ceilings."""
    if not record.get("shapes"):
        return [f"benchmark: {record['problem']}"] if "problem" in record else []
    entry = record["shapes"][0]
    shape = ", ".join(f"{name} {value}" for name, value in entry["shape"].items())
    rates = ", ".join(f"{unit} {rate / 1e3:.1f} TFLOP/s" for unit, rate in entry["ceilings_gflops"].items())
    lines = [f"{shape}: us forward | forward+backward | largest error | of the ceiling, likewise ({rates})"]
    for result in entry["peers"]:
        figures = [result.get(direction, {}) for direction in ("forward", "forward+backward")]
        if not any(figures):
            lines.append(f"{result['peer']:<44} {result['status']}: {result['note']}")
            continue
        times = [f"{1e3 * found['ms']:10.1f}" if found else f"{'-':>10}" for found in figures]
        shares = [f"{found['of_floor']:5.0%}" if "of_floor" in found else f"{'-':>5}" for found in figures]
        error = max((error for error in result["errors"].values() if error is not None), default=float("nan"))
        note = "" if result["status"] == "measured" else f" | {result['status']}: {result['note']}"
        lines.append(f"{result['peer']:<44} {' | '.join(times)} | {error:.1e} | {' | '.join(shares)}{note}")
    return lines


def _last_line(text: str) -> str:
    return ([line for line in text.splitlines() if line.strip()] or [""])[-1].strip()

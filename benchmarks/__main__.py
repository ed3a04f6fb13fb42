"""Measure every implementation on every workload: ``python -m benchmarks [--rounds 5] [--only G1,L1]``.

Jobs run one at a time, round-robin, each in a fresh process. Prints the tables and writes ``results.md``.
Fails when two implementations of a workload disagree on the log-likelihood.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

from benchmarks.workloads import WORKLOADS, load

_RELATIVE = {"float64": 1e-9, "float32": 1e-6}
_CHAINS = ("H1", "H2", "H3")
_PEERS = {"G1": "scikit-learn", "G2": "scikit-learn", "L1": "StepMix", "OF": "scikit-learn"}
_PEERS |= dict.fromkeys(_CHAINS, "hmmlearn")
_PACKAGES = ("jax", "numpyro", "numpy", "scipy", "scikit-learn", "stepmix", "hmmlearn")
_COLUMNS = (
    *("iteration, best", "median", "ratio", "warm fit, best", "median"),
    *("process, best", "median", "memory", "log-likelihood"),
)
_METHOD = """\
Every implementation starts from the same parameters on the same data, in float64 unless it says otherwise, and
makes the stated number of EM iterations, without priors or regularisation. Jobs run one at a time, round-robin, each in a fresh process, so that a
busy machine hits all of them alike. *best* is the fastest process, *median* the middle one.

- **iteration**: one E-step and one M-step. For emppl and the hand-written JAX, the time of a fit minus the time of a
  fit with a quarter of the iterations, divided by the difference in iterations: compilation and set-up drop out. For
  scikit-learn, StepMix and hmmlearn, the median time between the starts of successive E-steps. The number of a process is the
  median of its repetitions.
- **warm fit**: the whole call, all iterations and set-up, in a process that has made it before.
- **process**: from the start of Python to the fitted model: interpreter, imports, reading the data, compilation, fit.
- **memory**: peak resident memory of that process.
- **ratio**: best iteration (for Old Faithful, whose iterations are too short for the clock, best warm fit) against
  emppl's; above 1 is slower than emppl.

Threaded linear algebra suffers most from other load on the machine, so read ratios from the *best* columns."""


def implementations(workload: str) -> tuple[str, ...]:
    handwritten = () if workload in _CHAINS else ("handwritten JAX",)
    single = ("emppl in float32",) if workload in _CHAINS else ()
    return ("emppl", *single, *handwritten, *([_PEERS[workload]] if workload in _PEERS else []))


def run_job(workload: str, implementation: str, once: bool) -> dict:
    command = [sys.executable, "-m", "benchmarks.job", workload, implementation, *(["--once"] if once else [])]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{workload} {implementation} failed:\n{done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "once": once, "process_seconds": seconds}


def machine() -> str:
    cpu, memory = platform.processor(), None
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    size = f", {memory:.0f} GiB memory" if memory else ""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    python = f"Python {platform.python_version()}"
    return f"{cpu}, {os.cpu_count()} cores{size}, {platform.system()} {platform.machine()}; {python}, {versions}"


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.2g} us"


def _pair(values: list[float]) -> str:
    return f"{_time(min(values))} | {_time(statistics.median(values))}"


def table(workload: str, rows: list[dict]) -> str:
    """One workload's table in Markdown."""
    work = WORKLOADS[workload]
    lines = [
        f"## {workload}: {work.title}",
        "",
        f"{work.iterations} iterations.",
        "",
        "| | " + " | ".join(_COLUMNS) + " |",
        "|---" * (1 + len(_COLUMNS)) + "|",
    ]
    by_name = {
        name: {
            "warm": [row for row in rows if row["implementation"] == name and not row["once"]],
            "once": [row for row in rows if row["implementation"] == name and row["once"]],
        }
        for name in implementations(workload)
    }
    best = {name: min(row[work.compared] for row in found["warm"]) for name, found in by_name.items()}
    for name, found in by_name.items():
        by_iteration = work.compared == "seconds_per_iteration"
        iteration = _pair([row["seconds_per_iteration"] for row in found["warm"]]) if by_iteration else "- | -"
        warm = _pair([row["warm_fit_seconds"] for row in found["warm"]])
        process = _pair([row["process_seconds"] for row in found["once"]])
        memory = statistics.median(row["peak_rss_mb"] for row in found["once"])
        lines.append(
            f"| {name} | {iteration} | {best[name] / best['emppl']:.2f} | {warm} | {process} | {memory:.0f} MiB "
            f"| {found['once'][0]['log_likelihood']:.6f} |"
        )
    return "\n".join(lines)


def disagreement(rows: list[dict], precision: str) -> float:
    """Largest relative difference to emppl's float64 log-likelihood, over implementations of one precision."""
    reference = next(row["log_likelihood"] for row in rows if row["implementation"] == "emppl")
    values = [
        row["log_likelihood"] for row in rows if row["implementation"].endswith("float32") == (precision == "float32")
    ]
    return max((abs(value / reference - 1) for value in values), default=0.0)


def report(rows: list[dict], rounds: int) -> tuple[str, bool]:
    """The whole report, and whether all log-likelihoods agree."""
    load_average = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    parts = [
        "# Benchmarks",
        f"Written by `python -m benchmarks` on {datetime.date.today()}; {rounds} processes of each kind. {machine()}. "
        f"Load average at the end {load_average}.",
        _METHOD,
    ]
    agree = True
    for workload in WORKLOADS:
        mine = [row for row in rows if row["workload"] == workload]
        if mine:
            parts.append(table(workload, mine))
            for precision in _RELATIVE if workload in _CHAINS else ("float64",):
                difference = disagreement(mine, precision)
                equal = difference <= _RELATIVE[precision]
                agree &= equal
                verdict = "equal" if equal else "**NOT EQUAL**"
                parts.append(f"Log-likelihoods in {precision} are {verdict}: relative difference {difference:.1e}.")
    return "\n\n".join(parts) + "\n", agree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind (default 5)")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, separated by commas")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results.md")
    options = parser.parse_args()
    chosen = options.only.split(",")
    for workload in chosen:
        load(workload)
    rows = []
    for number in range(options.rounds):
        for once in (False, True):
            for workload in chosen:
                for implementation in implementations(workload):
                    rows.append(run_job(workload, implementation, once))
                    row = rows[-1]
                    measured = "process_seconds" if once else WORKLOADS[workload].compared
                    note = f"round {number + 1}: {workload}, {implementation}, {measured} {_time(row[measured])}"
                    print(note, file=sys.stderr, flush=True)
    text, agree = report(rows, options.rounds)
    options.out.write_text(text)
    print(text)
    if not agree:
        raise SystemExit("Implementations disagree on a log-likelihood.")


if __name__ == "__main__":
    main()

"""Writes docs/numpyro_models.md: ``python docs/numpyro_models CHECKOUT``, a checkout of NumPyro's repository.

Every model of its examples and tutorials that observes something is read where it lies and given to ``emppl.EM``, in a
process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import registry
from one import Outcome, outcome
from registry import ENTRIES, Entry

for _module in ("examples_plain", "examples_latent", "notebooks"):
    importlib.import_module(_module)

_SECONDS = 400
_PAGE = pathlib.Path(__file__).parents[1] / "numpyro_models.md"
_CLOSE = 1e-6  # relative: quadrature on both sides

_HEADER = """# NumPyro's own models

Made by `python docs/numpyro_models CHECKOUT`, where CHECKOUT is a checkout of NumPyro's repository: every model of its
examples and tutorials that observes something, read where it lies, source unchanged, given to `emppl.EM` on small
simulated data. *Latent* says whether there is something to sum or to integrate. *Compared* is the log-likelihood (with
the priors where NumPyro's own density is the other side) minus the same from NumPyro's enumeration or from a
marginal written by hand ([marginals.py](numpyro_models/marginals.py)), at the parameters where the run ended.

"""


def in_process(entry: Entry, checkout: pathlib.Path) -> Outcome:
    """The outcome of a model in a process of its own, with a time limit."""
    command = [sys.executable, str(pathlib.Path(__file__).parent), str(checkout), "--one", entry.key]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return Outcome("too slow", f"more than {_SECONDS} seconds")
    lines = done.stdout.strip().split("\n")
    if done.returncode or not lines[-1].startswith("{"):
        return Outcome("fails", (done.stderr.strip().split("\n") or [""])[-1])
    return Outcome(**json.loads(lines[-1]))


def page(rows: list[str]) -> str:
    """The whole page, of the rows of its table."""
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows]
    present = [(latent, outcome) for _, _, latent, outcome, _ in cells if not outcome.startswith("absent")]
    runs = [latent for latent, outcome in present if outcome.startswith("runs")]
    text = _HEADER + (
        f"{len(runs)} of {len(present)} models run; of the {[latent for latent, _ in present].count('yes')} with "
        f"something to sum or to integrate, {runs.count('yes')}. "
        f"Compared: {sum(' (' in compared for *_, compared in cells)}.\n\n"
    )
    return text + "\n".join(["| file | model | latent | outcome | compared |", "|---|---|---|---|---|", *rows]) + "\n"


def row(entry: Entry, found: Outcome) -> str:
    """One row of the table."""
    latent = "yes" if entry.latent else ""
    return " | ".join((_head(entry), latent, _outcome_cell(entry, found), _difference(found))) + " |"


def _head(entry: Entry) -> str:
    file = entry.file.removeprefix("examples/").removeprefix("notebooks/source/")
    return f"| {file} | `{entry.name}`"


def _kept() -> dict[str, str]:
    """Rows of the page as it is."""
    lines = _PAGE.read_text().splitlines() if _PAGE.exists() else []
    return {" | ".join(line.split(" | ")[:2]): line for line in lines if line.startswith("| ")}


def _outcome_cell(entry: Entry, found: Outcome) -> str:
    reason = found.reason.replace("|", "\\|")
    if found.status == "runs":
        said = ", ".join(f"{name}={value!r}" for name, value in entry.options.items())
        return f"runs with `{said}`" if said else "runs as published"
    return f"{found.status}: {reason}"


def _difference(found: Outcome) -> str:
    if found.difference is None:
        return found.reason.replace("|", "\\|") if found.status == "runs" else ""
    return f"{found.difference:.1e} ({found.compared})"


def main() -> None:
    """Run all models, or the one that is named, or those whose key holds a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("--one", help="run this model here, and print its outcome as JSON")
    parser.add_argument("--only", default="", help="run models whose key contains this, and renew their rows")
    parser.add_argument("--jobs", type=int, default=1, help="how many models at a time")
    settings = parser.parse_args()
    if settings.one:
        entry = next(entry for entry in registry.ENTRIES if entry.key == settings.one)
        print(json.dumps(dataclasses.asdict(outcome(entry, settings.checkout))))
        return
    entries = [entry for entry in ENTRIES if settings.only in entry.key]
    with ThreadPoolExecutor(settings.jobs) as pool:
        outcomes = pool.map(functools.partial(in_process, checkout=settings.checkout), entries)
        rows = _kept() if settings.only else {}
        for entry, found in zip(entries, outcomes, strict=True):
            rows[_head(entry)] = row(entry, found)
            print(entry.key, *dataclasses.astuple(found), sep=" | ", flush=True)
    _PAGE.write_text(page([rows[_head(entry)] for entry in ENTRIES if _head(entry) in rows]))


if __name__ == "__main__":
    main()

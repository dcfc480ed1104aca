"""The training command on a tiny log, in this process or in one of its own."""

import json
import os
import subprocess
import sys

import tiny_run
from tiny_run import ROOT

LONGER = {
    "train__num_steps": 40,
    "train__loss": "sampled_softmax",  # has more to resume than the default: the draws
    "train__negatives": "popularity",
    "train__num_negatives": 20,
    "eval__every_steps": 10,
    "eval__batch_users": 64,
    "checkpoint__every_steps": 3,
    "log__every_steps": 5,
}


def flags(log, workdir, **changes):
    """Returns the flags of a run that is long enough to be interrupted."""
    return tiny_run.flags(log, workdir, **(LONGER | changes))


def start(module, *arguments):
    """Starts a command in a process of its own, on one device, compiled as users compile it."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(module, *arguments):
    """Returns what a command that must succeed prints to standard output."""
    process = start(module, *arguments)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def results_of(workdir):
    """Returns results.json without the one value that depends on the clock."""
    results = json.loads((workdir / "results.json").read_text())
    assert results.pop("train_seconds") > 0
    return results

"""Measures speed and memory on this machine, everything in one process and as ratios.

python -m experiments.benchmark throughput --dataset=yelp --json=throughput.jsonl
python -m experiments.benchmark input --dataset=yelp --plot=input.svg
python -m experiments.benchmark attention --lengths=1024,4096,16384,65536 --plot=attention.svg
python -m experiments.benchmark loss --items=10000,100000,1000000 --plot=loss.svg
python -m experiments.benchmark step --lengths=64,1024,4096 --plot=step.svg
python -m experiments.benchmark twins --lengths=50,200,1000 --dtype=bfloat16
python -m experiments.benchmark evaluation --dataset=yelp
python -m experiments.benchmark latency --json=latency.jsonl
python -m experiments.benchmark bounded --workdir=runs/ml_1m
python -m experiments.benchmark kernels --tokens=1048576 --dtype=bfloat16
python -m experiments.benchmark tune --output=tiles.json
python -m experiments.benchmark gpu-report --few --output=report
python -m experiments.benchmark devices --devices=1,2

`COMMAND --help` lists the options. Every measurement is printed as one line of JSON, and all of
them as a table at the end.
"""

import importlib
from collections.abc import Sequence

from experiments import _cli

# Only the command's own module is imported: most need no library of data sets.
COMMANDS = {
    "throughput": "training on packed rows against padded rows",
    "input": "the input pipeline against the training step",
    "attention": "Blossom attention against dense attention",
    "loss": "losses, as the catalogue grows",
    "step": "the training step, as the catalogue and the histories grow",
    "twins": "Blossom against its dense twin by length: a training step, a recommendation",
    "evaluation": "a full-ranking evaluation against an epoch of training",
    "latency": "a recommendation after one more event, against encoding the whole history",
    "bounded": "the error of states that forget, on a trained run",
    "kernels": "each GPU kernel of attention by itself",
    "tune": "tiles of the GPU kernels",
    "devices": "the training step on several devices against one",
    "gpu-report": "on one GPU: attention, and training with it",
}


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = _cli.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text)
        if argv[:1] == [name]:
            module = importlib.import_module(f"experiments.benchmark.{name.replace('-', '_')}")
            subparser.description = module.__doc__
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    _cli.run(main)

"""Measures speed and memory on this machine, everything in one process and as ratios.

python -m experiments.benchmark throughput --dataset=yelp --json=throughput.jsonl
python -m experiments.benchmark attention --lengths=1024,4096,16384,65536 --plot=attention.svg

`COMMAND --help` lists the options. Every measurement is printed as one line of JSON, and all of
them as a table at the end.
"""

from collections.abc import Sequence

from experiments import _cli
from experiments.benchmark import attention, measure, throughput

COMMANDS = {"throughput": throughput, "attention": attention}


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = _cli.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        text = module.__doc__ or ""
        subparser = subparsers.add_parser(name, help=text.partition("\n")[0], description=text)
        subparser.add_argument("--json", metavar="FILE", help="also write the lines of JSON here")
        subparser.add_argument(
            "--rounds",
            type=measure.positive,
            default=3,
            help="turns of two calls, 3 by default",
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    _cli.run(main)

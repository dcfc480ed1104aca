"""Exports the model of a run to a folder that needs no code of ours.

    python -m experiments.export --workdir=runs/yelp --output=exports/yelp

The folder holds params/ (Orbax), params.npz, items.json, config.json, README.md (a model card with
the test metrics), program.stablehlo, and load.py, which runs that with jax, numpy and flatbuffers
alone, on a CPU, an NVIDIA GPU or a TPU: python exports/yelp/load.py ID,ID,ID
"""

import pathlib
from collections.abc import Sequence

from blossom_jax import export, trained_model
from blossom_jax.errors import UserError
from experiments import _cli, _model_card, _workdir


def main(argv: Sequence[str]) -> None:
    """Writes the export of one checkpoint."""
    parser = _cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--workdir", required=True, type=_cli.folder, metavar="DIR", help="folder of a run"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder to be made")
    parser.add_argument("--step", type=int, metavar="N", help="of the checkpoint; default the best")
    arguments = parser.parse_args(argv)
    workdir, output = pathlib.Path(arguments.workdir), pathlib.Path(arguments.output)
    export.refuse_existing(output)
    if trained_model.is_export(workdir):
        raise UserError(f"--workdir={workdir} is an export already: name the folder of its run")
    model = trained_model.load(workdir, step=arguments.step)
    export.write(model, output, _model_card.describe(model, _workdir.read_results(workdir)))
    print(
        f"{output}: the model after step {model.step:,}, {model.catalogue.num_items:,} items; "
        f"try python {output / export.LOADER} {_model_card.example(model.catalogue)}"
    )


if __name__ == "__main__":
    _cli.run(main)

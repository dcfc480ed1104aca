"""Says in Markdown what an exported model is, how good it is, and how to use it."""

import itertools
import shlex

from flax import nnx

from blossom_jax.catalogue import Catalogue
from blossom_jax.model import num_params
from blossom_jax.trained_model import TrainedModel
from experiments import _results


def example(items: Catalogue) -> str:
    """Returns a history as a shell takes it: raw ids that hold no comma, which separates them."""
    plain = (raw for raw in items.item_ids if "," not in raw)
    return shlex.quote(",".join(itertools.islice(plain, 3)))


def describe(model: TrainedModel, results: dict | None) -> str:
    """Returns a model card.

    Args:
      model: What is exported.
      results: results.json of its run; None where that is not finished.
    """
    items, sizes = model.catalogue, model.model_config
    parameters = num_params(nnx.merge(model.graphdef, model.params))
    return f"""# {sizes.attention} attention on {items.dataset}

A sequential recommender: it scores {items.num_items:,} items as the next one after a history of
items. BlossomRec in JAX (arXiv 2512.13368), {parameters:,} parameters, as they were after
step {model.step:,} of training. It sees the last {sizes.history_length:,} events of a history.

## Use

```bash
pip install jax numpy flatbuffers
python load.py {example(items)}   # raw ids, in time order
```

`load.py` has the same as `load(DIR).recommend(histories, top_k)`, and reads `items.json` (raw ids),
`params.npz` and `program.stablehlo`. `params/` holds the same parameters for Orbax. `config.json`
is the config of the run.

## Metrics

{_metrics(model, results)}
## Data

{_data(model, results)}
Popular items are overrepresented in what such a model recommends, and items that were not in the
log are never recommended.
"""


def _metrics(model: TrainedModel, results: dict | None) -> str:
    if results is None or results["best_step"] != model.step:
        why = "its run was not finished" if results is None else "another checkpoint was tested"
        return (
            f"Not measured on the test targets: {why}. To do so:\n"
            "`python -m experiments.evaluate --workdir=DIR` on this folder.\n"
        )
    return (
        "On the test targets; `full` ranks among the items that are new to the user, `full_keep`\n"
        "among all, `uniN` among N drawn ones.\n\n"
        f"```\n{_results.describe_run(results)}\n```\n\n"
        f"Seed {results['seed']}, jax {results['jax']}, commit {results['commit'] or 'unknown'}.\n"
    )


def _data(model: TrainedModel, results: dict | None) -> str:
    items = model.catalogue
    lines = [
        f"{items.dataset}: {items.counts.sum():,} events of {items.num_items:,} items to train on.",
        f"Content hash of the log: `{model.data}`.",
    ]
    if results:
        lines.append(f"Split: {results['protocol']['rule']}, {results['num_users']:,} users.")
        lines += [f"{terms}." for terms in [results["data"].get("terms")] if terms]
    return "\n".join(lines) + "\n"

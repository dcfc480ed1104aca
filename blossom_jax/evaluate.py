"""Evaluation: each user is encoded once and ranked under all protocols in the same pass."""

import concurrent.futures
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from blossom_jax import memory, sharding
from blossom_jax.coverage import NOWHERE, note_places
from blossom_jax.data.history_batches import BatchShape
from blossom_jax.negatives import Negatives
from blossom_jax.protocol_metrics import KS, Ranks
from blossom_jax.ranking import Catalogue, first_places, rank_targets

Params = Any  # a pytree
Batch = dict[str, Any]  # of arrays, from evaluation_batches
Encode = Callable[[Params, Batch], tuple[Float[Array, "u M"], Float[Array, "R M"] | None]]

# No trials to choose the programs of matrix products: they take minutes where an evaluation takes
# seconds, and another choice the next time could order near ties otherwise. Untried, products by
# cuBLAS are faster than XLA's own: a training step of three seeds took 7.7 ms in place of 20.8.
_GPU_OPTIONS: dict[str, str | bool] = {
    "xla_gpu_autotune_level": "0",
    "xla_gpu_enable_triton_gemm": False,
}


def encode_last(graphdef: nnx.GraphDef) -> Encode:
    """Returns the function that encodes each user's history into what scores the next item.

    Args:
      graphdef: Of a BlossomRec, without its parameters.

    Returns:
      `(params, batch) -> (hidden, table)`, for `Evaluator`.
    """

    def encode(params, batch):
        model = nnx.merge(graphdef, params)
        hidden = model.encode_next(batch["item_ids"], batch["positions"], batch["last"])
        return sharding.laid_out(hidden, sharding.ROWS), model.item_embedding.embedding[...]

    return encode


def last_scores(graphdef: nnx.GraphDef) -> Callable[[Params, Batch], Float[Array, "u items"]]:
    """Returns the function that scores every item as the one after each user's history.

    Args:
      graphdef: Of a BlossomRec, without its parameters.
    """
    encode = encode_last(graphdef)

    def score(params, batch):
        hidden, _ = encode(params, batch)
        return sharding.laid_out(nnx.merge(graphdef, params).scores(hidden), sharding.BATCH_ROWS)

    return score


class Evaluator:
    """Ranks the targets of any users, for any parameters of one model."""

    def __init__(
        self,
        encode: Encode,
        *,
        num_items: int,
        mesh: jax.sharding.Mesh,
        ks: Sequence[int] = KS,
        chunk: int = 2**15,
        with_loss: bool = True,
    ):
        """Prepares one program; it is compiled for each shape of batch, and again for coverage.

        Args:
          encode: `(params, batch) -> (hidden [u, M], table [R, M])`: their products are the
            scores, item k at row k. Or (scores [u, R], None), where there is no table.
          num_items: V, size of the catalogue.
          mesh: Devices over which the users of a batch, and the table, are split.
          ks: Where the rankings are cut off whose coverage is asked for.
          chunk: Items that are scored at once on each device; it changes no rank.
          with_loss: Whether the scores are logits, so that a softmax of them means something.
        """
        self._num_items = num_items
        self._mesh = mesh
        rank = functools.partial(
            _rank_and_note,
            encode=encode,
            catalogue=Catalogue(num_items, chunk, mesh),
            num_places=min(max(ks), num_items),
            mesh=mesh,
            with_loss=with_loss,
        )
        self._rank = jax.jit(rank, donate_argnums=2, out_shardings=sharding.replicated(mesh))
        self._programs = {}

    def prepare(
        self,
        params: Params,
        shapes: Iterable[BatchShape],
        negatives_shape: tuple[int, ...],
        *,
        with_coverage: bool = False,
    ) -> int:
        """Compiles the programs for all batches ahead of them.

        Args:
          params: Of the model, or ShapeDtypeStructs with the shardings that they will have.
          shapes: From `evaluation_shapes`.
          negatives_shape: (protocols, negatives of a user).
          with_coverage: As in the calls to come.

        Returns:
          Bytes that the largest program holds at once on one device, the parameters included.
        """
        place = sharding.batch_sharding(self._mesh)
        places = self._no_places(with_coverage)
        needed, lowered = [], {}
        for users, *tokens, seen in shapes:
            sizes = {"item_ids": tokens, "positions": tokens, "last": [users], "target": [users]}
            sizes |= {"seen": [users, seen], "negatives": [users, *negatives_shape]}
            inputs = {
                name: jax.ShapeDtypeStruct(tuple(size), jnp.int32, sharding=place)
                for name, size in sizes.items()
            }
            key = _key(inputs, places)
            needed.append(key)
            if key not in self._programs:
                lowered[key] = self._rank.lower(params, inputs, places)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            self._programs |= zip(lowered, pool.map(self._compile, lowered.values()), strict=True)
        return max((memory.program_bytes(self._programs[key]) for key in needed), default=0)

    def _compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        on_gpu = sharding.platform_of(self._mesh) == "gpu"
        return lowered.compile(compiler_options=_GPU_OPTIONS if on_gpu else None)

    def _program(self, params, inputs, places):
        key = _key(inputs, places)
        if key not in self._programs:
            self._programs[key] = self._compile(self._rank.lower(params, inputs, places))
        return self._programs[key]

    def _no_places(self, with_coverage):
        names = ("full", "full_keep") if with_coverage else ()
        places = {name: np.full(self._num_items + 1, NOWHERE, np.int32) for name in names}
        return sharding.put_whole(places, sharding.replicated(self._mesh))

    def __call__(
        self,
        params: Params,
        batches: Iterable[Batch],
        negatives: Negatives,
        *,
        with_coverage: bool = False,
    ) -> Ranks:
        """Ranks every user's target.

        Args:
          params: Of the model, laid out over the mesh.
          batches: From `evaluation_batches`; between them, every user of `negatives` once.
          negatives: From `negatives.draw`, for the same users.
          with_coverage: Whether to note the best places of items, which takes longer.

        Returns:
          Ranks in the order of `negatives`.

        Raises:
          ValueError: If a user is missing.
        """
        places = self._no_places(with_coverage)
        found = []
        for batch in batches:
            user = batch["history"]
            inputs = {name: array for name, array in batch.items() if name != "history"}
            inputs["negatives"] = negatives.items[user]
            inputs["seen"] = _different(inputs["seen"])
            inputs = sharding.put_whole(inputs, sharding.batch_sharding(self._mesh))
            rank, places = self._program(params, inputs, places)(params, inputs, places)
            found.append((user, rank))  # the device is still at work on it

        return Ranks(
            **_by_user(found, negatives),
            num_items=self._num_items,
            num_negatives=negatives.items.shape[-1],
            num_seen=negatives.num_seen,
            best_places=jax.device_get(places),
        )


def _key(inputs, places):
    """Tells batches apart that need programs of their own."""
    return *places, *(array.shape for _, array in sorted(inputs.items()))


def _rank_and_note(
    params, batch, best_places, *, encode, catalogue, num_places: int, mesh, with_loss: bool
):
    """Ranks the targets of a batch; notes the best places of items where there are any so far."""
    with sharding.traced_on(mesh):
        hidden, table = encode(params, batch)
    target, seen = batch["target"], batch["seen"]
    negatives = batch["negatives"]
    ranks = rank_targets(hidden, table, target, seen, negatives, catalogue, with_loss=with_loss)
    left_out = {"full": seen, "full_keep": jnp.zeros_like(seen[:, :1])}
    noted = {}
    for name, best in best_places.items():  # none where no coverage is asked for
        score, item = first_places(hidden, table, left_out[name], catalogue, k=num_places)
        is_place = (target > 0)[:, None] & (score > -jnp.inf)
        noted[name] = note_places(best, item, is_place)
    found = {name: value for name, value in ranks._asdict().items() if value is not None}
    return found, noted


def _by_user(
    found: Sequence[tuple[Int[np.ndarray, "u"], dict[str, Array]]], negatives: Negatives
) -> dict[str, Any]:
    """Puts what was found for the users of each batch (-1 = none) in the order of the negatives."""
    num_users, num_protocols, _ = negatives.items.shape
    widths = {"full": (), "full_keep": (), "sampled": (num_protocols,), "loss": ()}
    first = found[0][1] if found else widths
    ranks: dict[str, Any] = {name: np.full((num_users, *widths[name]), np.nan) for name in first}
    for user, rank in found:
        for name, values in rank.items():
            ranks[name][user[user >= 0]] = np.asarray(values)[user >= 0]
    if missing := int(np.isnan(ranks["full"]).sum()):
        raise ValueError(f"the batches leave out {missing} of {num_users} users")
    sampled = dict(zip(negatives.names, ranks["sampled"].T, strict=True))
    return ranks | {"sampled": sampled}


def _different(items: Int[np.ndarray, "u s"]) -> Int[np.ndarray, "u s"]:
    """Keeps each item of a row once; 0 stands for the others."""
    items = np.sort(items, axis=1)
    items[:, 1:][items[:, 1:] == items[:, :-1]] = 0
    return items

"""The pictures of what gates and selection decide, for users of the test."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from blossom_jax import inspection, trained_model
from experiments import _setup, _workdir
from experiments.sweep.runs import Run

NUM_USERS = 128  # whose gates are averaged
NUM_SHOWN = 3  # whose selections are drawn
_HEADS = ("#b83b6a", "#2f5d8a", "#dba63f", "#86a468", "#9382b4", "#b58a6a", "#4d4d4d", "#5bb0a8")


_SELECTED = LinearSegmentedColormap.from_list("selected", ("#ecaec4", "#b83b6a", "#5a1233"))


class Decided(NamedTuple):
    """What a model decided about some users.

    Attributes:
      layers: From `inspection.decisions`, as NumPy arrays.
      items: int32[users, L], 0 = padding.
      lengths: Events of each user that the model sees.
      item_ids: Raw id of item k at k - 1.
      user_ids: Raw id of each user.
      block_size: S.
    """

    layers: list[dict[str, np.ndarray]]
    items: Int[np.ndarray, "users L"]
    lengths: Int[np.ndarray, "users"]
    item_ids: np.ndarray
    user_ids: np.ndarray
    block_size: int


def decide(run: Run) -> Decided:
    """Lets the best checkpoint of a run read the histories of some users, drawn by a fixed seed.

    Raises:
      UserError: The checkpoint, or the data, cannot be read.
    """
    model = trained_model.load(run.folder)
    config = _workdir.read_config(run.folder)
    interactions, split = _setup.load_data(config)
    _setup.check_data(interactions, run.results["data"]["content_hash"])
    users, target = split.test
    drawn = np.random.default_rng(0).permutation(len(users))[:NUM_USERS]
    begin, end = interactions.offsets[users[drawn]], target[drawn]
    lengths = np.minimum(end - begin, config.model.max_length)
    column = np.arange(lengths.max())
    present = column < lengths[:, None]
    event = np.where(present, (end - lengths)[:, None] + column, 0)
    items = np.where(present, interactions.items[event], 0).astype(np.int32)
    positions = np.where(present, column, -1).astype(np.int32)
    layers = inspection.decisions(
        nnx.merge(model.graphdef, model.params), jnp.asarray(items), jnp.asarray(positions)
    )
    return Decided(
        [{name: np.asarray(values) for name, values in layer.items()} for layer in layers],
        items,
        lengths,
        interactions.item_ids,
        interactions.user_ids[users[drawn]],
        config.model.selection_block_size,
    )


def draw_gates(decided: Decided) -> Figure:
    """Draws the mean gates of each layer and head, against place in the history and its length."""
    layers = [layer["gates"] for layer in decided.layers]
    figure = Figure(figsize=(9.5, 2.6 * len(layers) + 0.5), layout="constrained", dpi=130)
    panels = figure.subplots(len(layers), 4, sharey=True, squeeze=False)
    place = np.arange(decided.items.shape[1])
    present = place < decided.lengths[:, None]
    last = decided.lengths - 1
    for n, gates in enumerate(layers):
        at_last = gates[np.arange(len(last)), last]
        for path, name in enumerate(("long-term", "short-term")):
            by_place, by_length = panels[n, path], panels[n, 2 + path]
            for head, colour in zip(range(gates.shape[2]), _colours(), strict=False):
                line = {"color": colour, "linewidth": 1.3, "label": f"head {head}"}
                values = np.where(present, gates[..., head, path], np.nan)
                by_place.plot(*_binned(place + 1, values.T), **line)
                by_length.plot(
                    *_binned(decided.lengths, at_last[:, head, path, None]), marker=".", **line
                )
            by_place.set_title(f"layer {n}, {name}, by place", loc="left", fontsize=8.5)
            by_length.set_title(f"layer {n}, {name}, by length", loc="left", fontsize=8.5)
    for axes in panels.flat:
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1)
        axes.axhline(0.5, color="0.7", linewidth=0.8, zorder=0)
        axes.tick_params(labelsize=7.5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    for axes, below in zip(panels[-1], 2 * ["place of the event"] + 2 * ["length"], strict=True):
        axes.set_xlabel(below, fontsize=8)
    handles, _ = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=8)
    return figure


def _colours() -> Any:
    return iter(_HEADS * 8)


def _binned(
    where: Int[np.ndarray, "n"], values: Float[np.ndarray, "n m"]
) -> tuple[list[float], list[float]]:
    """Averages rows of values whose place is similar: within a quarter of a power of two."""
    bins = np.round(4 * np.log2(where)).astype(int)
    found = [(np.mean(where[bins == b]), values[bins == b]) for b in np.unique(bins)]
    kept = [(float(at), float(np.nanmean(v))) for at, v in found if not np.isnan(v).all()]
    return [at for at, _ in kept], [value for _, value in kept]


def draw_selection(decided: Decided) -> Figure:
    """Draws which blocks each event of some long histories selects, in each layer."""
    users, layers = longest(decided), decided.layers
    num_heads = layers[0]["slots"].shape[2]
    colours = _SELECTED.resampled(num_heads)
    figure = Figure(figsize=(9.5, 3.1 * len(users)), layout="constrained", dpi=130)
    panels = figure.subplots(len(users), len(layers), squeeze=False)
    for row, user in enumerate(users):
        for n, layer in enumerate(layers):
            axes, heat = panels[row, n], selected(decided, layer["slots"], user).sum(axis=1)
            num_events, num_blocks = heat.shape
            image = axes.imshow(
                np.ma.masked_equal(heat, 0),
                aspect="auto",
                vmin=0.5,
                vmax=num_heads + 0.5,
                cmap=colours,
                extent=(0, num_blocks, num_events, 0),
                interpolation="nearest",
            )
            own = np.arange(num_events + 1)
            axes.plot(own / decided.block_size, own, color="#2f5d8a", linewidth=0.8)
            axes.set_title(f"user {decided.user_ids[user]}, layer {n}", loc="left", fontsize=9)
            axes.set_xlabel(f"block of {decided.block_size} events", fontsize=8)
            axes.set_ylabel("event that selects", fontsize=8)
            every = np.arange(0, num_blocks, -(-num_blocks // 16))
            axes.set_xticks(every + 0.5, every)
            axes.tick_params(labelsize=7.5)
    bar = figure.colorbar(image, ax=panels, shrink=0.5, aspect=30, ticks=range(1, num_heads + 1))
    bar.set_label("key/value heads that select the block", fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    return figure


def longest(decided: Decided) -> list[int]:
    """Returns the users whose selections are shown."""
    return np.argsort(-decided.lengths, kind="stable")[:NUM_SHOWN].tolist()


def selected(
    decided: Decided, slots: Int[np.ndarray, "users L G N"], user: int
) -> Bool[np.ndarray, "events G blocks"]:
    """Tells which blocks each event of a user selects with each key/value head."""
    length = decided.lengths[user]
    num_blocks = -(-length // decided.block_size)
    block = np.arange(num_blocks)
    return (slots[user, :length, :, :, None] == block).any(axis=2)


def last_selection(decided: Decided, user: int) -> list[tuple[int, int, list[str]]]:
    """Returns (layer, block, ids of its items) of what a user's last event selects with any head.

    The last event is what predicts the next item.
    """
    found = []
    for n, layer in enumerate(decided.layers):
        blocks = selected(decided, layer["slots"], user)[-1].any(axis=0)
        for block in np.flatnonzero(blocks).tolist():
            begin = block * decided.block_size
            items = decided.items[user, begin : begin + decided.block_size]
            found.append((n, block, [str(decided.item_ids[item - 1]) for item in items if item]))
    return found


def has(decided: Decided, name: str) -> bool:
    """Tells whether every layer decides about "gates", or about "slots"."""
    return all(name in layer for layer in decided.layers)

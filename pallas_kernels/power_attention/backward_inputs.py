"""What both kernels read that find gradients near a query: of the short-term path and own block.

Neither adds to memory that another program writes: `near_queries`, in triton_backward_queries.py,
walks the queries and finds their gradient; `near_keys`, in triton_backward_keys.py, walks the keys
and finds theirs.
"""

from typing import Any, NamedTuple

from pallas_kernels.path_totals import PathTotals, read_delta
from pallas_kernels.triton_tools import NOTHING, read


class BackwardInputs(NamedTuple):
    """Arrays of the kernels.

    Attributes:
      q: [B * L * H, D].
      k: [B * L * G, D].
      v: [B * L * G, D].
      d_out: [B * L * H, D].
      positions: int32[B * L].
      totals: `PathTotals` by path.
      parts: gradients of the selected blocks to add. For queries [pairs * R, D], with the slots;
        for keys and values [B * G * slots * 2 * S, D] by slot, see `block_row`. None without any.
    """

    q: Any
    k: Any
    v: Any
    d_out: Any
    positions: Any
    totals: dict[str, PathTotals]
    parts: Any


class Queries(NamedTuple):
    """A tile of query heads: q and d_out [rows, D], and `PathTotals` [rows] by path."""

    q: Any
    d_out: Any
    totals: dict[str, PathTotals]


def read_queries(x: BackwardInputs, row, real, paths) -> Queries:
    """Reads a tile of query heads; 0 and `NOTHING` where they are not real."""
    totals = {
        name: PathTotals(
            read(x.totals[name].log_total, row, real, other=NOTHING),
            read_delta(x.totals[name], row, real),
        )
        for name in paths
    }
    q, d_out = (read(ref, row, real, columns=x.q.shape[1]) for ref in (x.q, x.d_out))
    return Queries(q, d_out, totals)

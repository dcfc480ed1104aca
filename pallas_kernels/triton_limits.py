"""What the Triton kernels cannot serve, said before anything is traced."""

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.capable import MOST_SHARED_MEMORY
from pallas_kernels.triton_tools import padded_head

MOST_ELEMENTS = 2**31 - 1  # of an array: the kernels' offsets are int32
DTYPES = ("bfloat16", "float32")
LARGEST_HEAD = 128
LARGEST_GROUP = 16
LARGEST_BAND = 128  # tokens of a block or a window: all of them are held at once
LARGEST_SELECTION = 64
LONGEST_ROW = 2**17
_OFFSETS = "offsets are int32: below 2**31"


def refusal(
    q,
    num_kv_heads: int,
    *,
    causal: bool,
    block_size: int = 0,
    window: int = 1,
    num_selected: int = 0,
    summary_keys=None,
) -> str | None:
    """Says which rule a call breaks, with the value; None if the kernels can serve it.

    Args:
      q: [B, L, H, D].
      num_kv_heads: G.
      causal: whether a query sees only its past.
      block_size: S, 0 where no blocks are attended.
      window: W.
      num_selected: N, 0 where none are chosen.
      summary_keys: [B, slots, G, D], None where none are chosen.
    """
    batch, length, heads, head_size = q.shape
    parts = row_elements(q, num_kv_heads, block_size=block_size, num_selected=num_selected)
    chosen = batch * length * num_kv_heads * num_selected
    shared = shared_memory(q, block_size) if block_size else 0
    rules = (
        (not causal, f"{causal=}: its kernels are causal"),
        *(
            (str(x.dtype) not in DTYPES, f"{name} of {x.dtype} is neither {' nor '.join(DTYPES)}")
            for name, x in (("q", q), ("summary_keys", summary_keys))
            if x is not None
        ),
        (head_size > LARGEST_HEAD, f"{head_size=} is above {LARGEST_HEAD}"),
        (heads // num_kv_heads > LARGEST_GROUP, f"{heads // num_kv_heads} query heads share a key"),
        (block_size > LARGEST_BAND, f"{block_size=} is above {LARGEST_BAND}"),
        (
            shared > MOST_SHARED_MEMORY,
            f"{block_size=} with {head_size=} in {q.dtype} needs {shared} bytes of shared memory, "
            f"and no GPU has more than {MOST_SHARED_MEMORY}",
        ),
        (window > LARGEST_BAND, f"{window=} is above {LARGEST_BAND}"),
        (num_selected > LARGEST_SELECTION, f"{num_selected=} is above {LARGEST_SELECTION}"),
        (length > LONGEST_ROW, f"rows of {length=} are above {LONGEST_ROW}"),
        (parts > MOST_ELEMENTS, f"a row has {parts} elements of selected blocks; {_OFFSETS}"),
        (chosen > MOST_ELEMENTS, f"{chosen} blocks are selected; {_OFFSETS}"),
    )
    return next((reason for broken, reason in rules if broken), None)


def shared_memory(q, block_size: int) -> int:
    """Bytes of shared memory that a program of the kernels that walk blocks needs, at most.

    Found by compiling them for A100, L4, H200 and B200: 6 bytes for each entry of a block's keys in
    bf16, 24 in f32, whose products take each operand in parts, and some room for queries.

    Args:
      q: [B, L, H, D], for its head size and dtype.
      block_size: S.
    """
    block = padded_head(q.shape[-1]) * padded_head(block_size)
    narrow = q.dtype == jnp.bfloat16
    return block * (6 if narrow else 24) + (16 if narrow else 24) * 1024


def row_elements(q, num_kv_heads: int, *, block_size: int = 0, num_selected: int = 0) -> int:
    """Counts the elements of the largest array that a row of the batch has in the kernels.

    That is q, or what its selected blocks give to its queries, or to its keys and values.

    Args:
      q: [B, L, H, D].
      num_kv_heads: G.
      block_size: S, 0 where no blocks are attended.
      num_selected: N, 0 where none are chosen.
    """
    _, length, heads, head_size = q.shape
    to_queries = length * heads * max(1, num_selected)
    to_keys_and_values = 2 * pl.cdiv(length, max(1, block_size)) * block_size * num_kv_heads
    return max(to_queries, to_keys_and_values) * padded_head(head_size)


def row_groups(q, of_a_row: int) -> int:
    """Returns in how many groups of equal size rows are to be attended, one after the other.

    Args:
      q: [B, L, H, D], which `refusal` does not refuse.
      of_a_row: from `row_elements`.
    """
    most = MOST_ELEMENTS // max(1, of_a_row)  # rows at a time
    batch = q.shape[0]
    fitting = (n for n in range(1, batch + 1) if batch % n == 0 and batch <= n * most)
    return next(fitting)

"""What the Triton kernels cannot serve, said before anything is traced."""

LARGEST_HEAD = 128
LARGEST_GROUP = 16
LARGEST_BAND = 128  # tokens of a block or a window: all of them are held at once
LARGEST_SELECTION = 64
LONGEST_ROW = 2**17


def refusal(
    q,
    num_kv_heads: int,
    *,
    causal: bool,
    block_size: int = 1,
    window: int = 1,
    num_selected: int = 1,
) -> str | None:
    """Says which rule a call breaks, with the value; None if the kernels can serve it.

    Args:
      q: [B, L, H, D].
      num_kv_heads: G.
      causal: whether a query sees only its past.
      block_size: S.
      window: W.
      num_selected: N.
    """
    batch, length, heads, head_size = q.shape
    parts = batch * length * heads * max(16, head_size) * num_selected
    rules = (
        (not causal, f"{causal=}: its kernels are causal"),
        (str(q.dtype) not in ("bfloat16", "float32"), f"{q.dtype} is neither bfloat16 nor float32"),
        (head_size > LARGEST_HEAD, f"{head_size=} is above {LARGEST_HEAD}"),
        (heads // num_kv_heads > LARGEST_GROUP, f"{heads // num_kv_heads} query heads share a key"),
        (block_size > LARGEST_BAND, f"{block_size=} is above {LARGEST_BAND}"),
        (window > LARGEST_BAND, f"{window=} is above {LARGEST_BAND}"),
        (num_selected > LARGEST_SELECTION, f"{num_selected=} is above {LARGEST_SELECTION}"),
        (length > LONGEST_ROW, f"rows of {length=} are above {LONGEST_ROW}"),
        (parts >= 2**31, f"{parts} elements of selected blocks; offsets are int32: below 2**31"),
    )
    return next((reason for broken, reason in rules if broken), None)

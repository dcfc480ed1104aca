"""What every Pallas Triton kernel here shares: launching, exact products, rows of query heads.

They read whole arrays by computed row numbers, under masks, so no array is padded to a tile. Of
[B, L, heads, D] attention's see a matrix of D columns, with row `(b * L + token) * heads + head`.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.capable import where_triton_runs

# It is deprecated since jax 0.11, and the only backend for GPUs that reads by an index.
warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)

NOTHING = 1e30  # log-sum-exp of a query that attends nothing: exp2(logit - NOTHING) is 0
LOG2_E = math.log2(math.e)  # kernels keep logits in powers of two, the GPU's own exponential
LEAST_TILE = 16  # rows, columns and depth of the smallest product


class Heads(NamedTuple):
    """Sizes that tell which rows of an array belong to which token and head.

    Attributes:
      length: L, tokens in a row of the batch.
      kv_heads: G.
      group: R, query heads that share a key/value head, H / G.
    """

    length: int
    kv_heads: int
    group: int

    @property
    def padded_group(self) -> int:
        """Rows that a program sets aside for a group."""
        return pl.next_power_of_2(self.group)

    @property
    def single(self) -> "Heads":
        """The heads of k and v."""
        return self._replace(group=1)


class Tile(NamedTuple):
    """The query heads that a program works on, token by token: [rows] each.

    Attributes:
      token: int32, index in the batch row.
      position: int32, position in the sequence, -1 for padding and for rows without a query.
      key_row: int32, row of the token in k and v, which is also its number among (token, g).
      row: int32, row of the query head in q.
      inside: bool, whether the arrays have such a row.
    """

    token: Any
    position: Any
    key_row: Any
    row: Any
    inside: Any


def launch(
    kernel: Callable,
    arrays: Any,
    out_shape: Any,
    *,
    name: str,
    programs: int,
    num_warps: int,
    num_stages: int,
    interpret: bool,
    in_place: int = 0,
    **static: Any,
) -> Any:
    """Runs `kernel(arrays, out, interpret=interpret, **static)` on a one-dimensional grid.

    Args:
      kernel: reads refs in a tree like `arrays`, writes refs in a tree like `out_shape`.
      arrays: a tree of arrays.
      out_shape: a tree of ShapeDtypeStructs.
      name: what profilers call it.
      programs: size of the grid.
      num_warps: warps of 32 threads in a program.
      num_stages: depth of the pipeline in loops over products.
      interpret: runs the kernel operation by operation on any device, for tests.
      in_place: over how many of the arrays, from the first on, the kernel writes its own.
      **static: sizes known when compiling.

    Raises:
      NotImplementedError: when lowered for a GPU that cannot run it.
    """

    def body(x, out):
        kernel(x, out["out"], interpret=interpret, **static)

    call = pl.pallas_call(
        body,
        out_shape={"out": out_shape},  # a tuple would be handed over as several arguments
        grid=(programs,),
        name=name,
        interpret=interpret,
        input_output_aliases={n: n for n in range(in_place)},
        compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=num_stages),
    )
    if not interpret:
        first, *rest = jax.tree.leaves(arrays)
        arrays = jax.tree.unflatten(jax.tree.structure(arrays), [where_triton_runs(first), *rest])
    return call(arrays)["out"]


def dot(a, b, interpret: bool, *, transpose_a: bool = False, transpose_b: bool = False):
    """Multiplies two tiles into f32; f32 operands keep nearly all their bits.

    Three TF32 products stand for one of f32, on the tensor cores: relative error about 1e-6.
    """
    contract = ((0 if transpose_a else 1,), (1 if transpose_b else 0,)), ((), ())
    precision: jax.lax.PrecisionLike = None
    if a.dtype == jnp.float32:
        precision = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        if interpret:  # the host has no such product
            precision = jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(
        a, b, contract, precision=precision, preferred_element_type=jnp.float32
    )


def _instruction(name: str, interpret: bool, equal: Callable, *args):
    """Runs one PTX instruction on f32 of one shape, or what equals it."""
    if interpret:
        return equal(*args)
    shape = jnp.broadcast_shapes(*(x.shape for x in args))
    [result] = plgpu.elementwise_inline_asm(
        f"{name} {', '.join(f'${n}' for n in range(len(args) + 1))};",
        args=[jnp.broadcast_to(x, shape) for x in args],
        constraints=",".join(["=f"] + ["f"] * len(args)),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, jnp.float32)],
    )
    return result


def exp2(x, interpret: bool):
    """Raises 2 to a power; results below 2**-126 become 0."""
    return _instruction("ex2.approx.ftz.f32", interpret, jnp.exp2, x)


def log2(x, interpret: bool):
    """Takes the logarithm of normal numbers, to 2**-22."""
    return _instruction("lg2.approx.ftz.f32", interpret, jnp.log2, x)


def reciprocal(x, interpret: bool):
    """Divides 1 by normal numbers, to the last bit but one."""
    return _instruction("rcp.approx.ftz.f32", interpret, lambda x: 1.0 / x, x)


def fma(a, b, c, interpret: bool):
    """Returns a * b + c, broadcast, in one instruction: XLA's Triton does not contract the two."""
    return _instruction("fma.rn.f32", interpret, lambda a, b, c: a * b + c, a, b, c)


def fms(a, b, c, interpret: bool):
    """Returns a * b - c in one instruction: the compiler behind Triton folds the negation in."""
    if interpret:
        return a * b - c
    shape = jnp.broadcast_shapes(*(jnp.shape(x) for x in (a, b, c)))
    [result] = plgpu.elementwise_inline_asm(
        "{ .reg .f32 t; neg.f32 t, $3; fma.rn.f32 $0, $1, $2, t; }",
        args=[jnp.broadcast_to(x, shape) for x in (a, b, c)],
        constraints="=f,f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, jnp.float32)],
    )
    return result


def widen(x, interpret: bool):
    """Widens a tile to f32; bf16 in one instruction an entry, of two that share a register."""
    if interpret or x.dtype != jnp.bfloat16:
        return x.astype(jnp.float32)
    [result] = plgpu.elementwise_inline_asm(
        "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
        args=[x],
        constraints="=&r,=r,r",
        pack=2,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.float32)],
    )
    return result


def block_row(block, which: int, offset, block_size: int):
    """Returns a row of [blocks * 2 * S, D], which holds a block's keys, then its values.

    Args:
      block: its number.
      which: 0 for a key, 1 for a value.
      offset: of the token in the block.
      block_size: S.
    """
    return (block * 2 + which) * block_size + offset


def hold(x, program):
    """Returns what was read; keeps it in registers until here.

    Triton stores an operand of a product to shared memory as soon as it is read, and waits for it:
    then reads that follow it in the program begin only when it has come. It does not look through
    a choice that it cannot foresee; the compiler behind it can, so that no instruction is left.

    Args:
      x: a tile or a vector.
      program: number of the program, which is never below 0.
    """
    always = jnp.broadcast_to(program >= 0, x.shape)
    return jnp.where(always, x, jnp.zeros((), x.dtype))


def read(ref, rows, real, other=0.0, columns: int | None = None):
    """Reads rows of a matrix, or entries of a vector where `columns` is None; `other` if not real.

    Args:
      ref: [n, D] or [n].
      rows: int32[rows].
      real: bool[rows]; None if all are.
      other: stands where nothing is read.
      columns: D.
    """
    at: tuple = (rows,)
    if columns is not None:
        column = jax.lax.broadcasted_iota(jnp.int32, (rows.size, columns), 1)
        at = jnp.broadcast_to(rows[:, None], column.shape), column
        real = None if real is None else jnp.broadcast_to(real[:, None], column.shape)
    if real is None:
        return plgpu.load(ref.at[at])
    return plgpu.load(ref.at[at], mask=real, other=other)


def write(ref, rows, real, value) -> None:
    """Writes what `read` reads, in the array's dtype."""
    value = value.astype(ref.dtype)
    if value.ndim == 1:
        plgpu.store(ref.at[rows], value, mask=real)
        return
    column = jax.lax.broadcasted_iota(jnp.int32, value.shape, 1)
    rows = jnp.broadcast_to(rows[:, None], value.shape)
    real = jnp.broadcast_to(real[:, None], value.shape)
    plgpu.store(ref.at[rows, column], value, mask=real)


def read_tile(positions, first, tokens: int, b, g, heads: Heads, members=None, part=0) -> Tile:
    """Finds the query heads of `tokens` tokens from `first` on.

    Args:
      positions: ref of int32[B * L].
      first: index of the first token in its batch row; may be below 0 or past the end.
      tokens: how many.
      b: batch row.
      g: key/value head.
      heads: sizes.
      members: how many of the group's heads; all of them if None.
      part: which of the group's parts of so many heads.
    """
    members = heads.group if members is None else members
    width = pl.next_power_of_2(members)
    row = jnp.arange(tokens * width, dtype=jnp.int32)
    token, member = first + row // width, part * members + row % width
    inside = (token >= 0) & (token < heads.length) & (row % width < members)
    at = b * heads.length + token
    key_row = at * heads.kv_heads + g
    position = read(positions, at, inside, other=-1)
    return Tile(token, position, key_row, key_row * heads.group + member, inside)


def warps_for(elements: int, per_thread: int, *, least: int, most: int = 8) -> int:
    """Chooses the warps that leave each thread so many elements of a tile."""
    return min(most, max(least, pl.next_power_of_2(pl.cdiv(elements, 32 * per_thread))))


def shape(q, k, block_size: int) -> dict[str, Any]:
    """Returns what the tiles of the kernels depend on, as `tuned.choose` looks it up."""
    return {
        "head_size": padded_head(q.shape[-1]),
        "dtype": str(q.dtype),
        "group": q.shape[2] // k.shape[2],
        "block_size": block_size,
        "length": q.shape[1],
    }


def to_matrix(x):
    """Views [B, L, heads, D] as a matrix of D columns."""
    return x.reshape(-1, x.shape[-1])


def pad_head(x):
    """Pads the last axis to a power of two of at least 16."""
    missing = padded_head(x.shape[-1]) - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def padded_head(size: int) -> int:
    """Returns the size of a head in the kernels."""
    return max(LEAST_TILE, pl.next_power_of_2(size))

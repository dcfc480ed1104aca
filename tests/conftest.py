"""Prepares JAX for the whole test suite, before any test module imports it."""

import importlib.metadata
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Tests of sharding need several devices; the host can play eight.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = os.environ.get("BLOSSOM_TEST_PLATFORM", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
# Compiling programs that run for a moment is most of the work. Here they become slower machine
# code, up to jaxlib 0.10 by XLA's former emitters of fusions, which compile in half the time. 0
# compiles them as users do, and so test_train's processes always are.
quick = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
version = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
if quick and version < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import hypothesis  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# A first call compiles, which no deadline foresees; the same commit gives the same examples.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

# The shapes that these modules name are checked whenever a test calls them.
_ARRAY_MODULES = ("attention", "dense_attention", "gate", "compression", "layers", "model")
_ARRAY_MODULES += ("metrics", "evaluate", "negatives")
_ARRAY_MODULES += ("selectors", "summary_attention", "ranking")
_ARRAY_MODULES += ("blocks", "baselines.gru", "baselines.hstu", "baselines.item_knn")
_ARRAY_MODULES += ("baselines.linear_attention", "baselines.mamba", "baselines.masking")
_ARRAY_MODULES += ("baselines.rankers",)
_ARRAY_MODULES += ("popularity", "coverage", "buckets", "data.ragged", "data.packing")
_ARRAY_MODULES += ("data.windows", "data.split", "incremental", "incremental_recommender")
_ARRAY_MODULES += ("losses.cross_entropy", "losses.sampled", "losses.negatives", "losses.objective")
_ARRAY_MODULES += ("data.train_batches", "data.evaluation_batches")
_ARRAY_MODULES += ("data.history_batches", "packed_rows", "last_attention")
# The ops' api.py is left out: its own checks are tested with shapes that are wrong.
_OPS = ("power_attention", "block_selection", "selected_attention", "blossom_attention")
_CHECKED = [f"pallas_kernels.{op}.{module}" for op in _OPS for module in ("reference", "xla")]
_CHECKED += ["pallas_kernels.blossom_attention.paths", "pallas_kernels.blossom_attention.xla_band"]
_CHECKED += ["pallas_kernels.positions", "pallas_kernels.decode"]
_CHECKED += [f"pallas_kernels.{name}" for name in ("masked_softmax", "streamed", "tiles")]
_CHECKED += [f"blossom_jax.{name}" for name in _ARRAY_MODULES]
install_import_hook(_CHECKED, "beartype.beartype")

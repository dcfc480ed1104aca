"""Keeps compiled programs on disk, so that the next start finds them."""

import os

import jax

from blossom_jax.data.load import default_cache_dir


def enable() -> None:
    """Keeps programs in BlossomRec's cache folder, unless $JAX_COMPILATION_CACHE_DIR is set."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

"""Where the CUDA plugin is, and the environment in which programs are compiled with it."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE_FOLDER = ROOT / "build" / "gpu_compile"
# `make` installs the plugin here, apart: among the other packages it would have every program that
# imports jax complain that there is no CUDA.
APART = pathlib.Path(sys.prefix) / "gpu_compile"
MISSING = 'no CUDA plugin to compile with: make gpu-compile, or pip install -e ".[gpu-compile]"'
_PLUGINS = ("xla_cuda12", "xla_cuda13")


def timeout() -> int:
    """Returns the seconds after which a compilation is ended."""
    return int(os.environ.get("GPU_COMPILE_TIMEOUT", "600"))


def plugin_folder() -> pathlib.Path | None:
    """Returns the folder of packages that has the plugin, or None."""
    for folder in (*map(pathlib.Path, sys.path), APART):
        if any((folder / "jax_plugins" / plugin).is_dir() for plugin in _PLUGINS):
            return folder
    return None


def begin_anew_with_plugin(module: str) -> None:
    """Runs a module again in an environment that has the plugin, if only this one has not.

    Args:
      module: that is run, as `python -m` names it.
    """
    if str(APART) not in sys.path and plugin_folder() == APART:
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, worker_environment())


def worker_environment() -> dict[str, str]:
    """Returns the variables for `gpu_compile.worker`.

    Raises:
      FileNotFoundError: the plugin is not installed.
    """
    plugin = plugin_folder()
    if plugin is None:
        raise FileNotFoundError(MISSING)
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return kept | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT, plugin))),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",  # which the tests ask for, to compile for the CPU
        "OPENBLAS_NUM_THREADS": "1",  # a fork has the thread that forked, and no other
    }

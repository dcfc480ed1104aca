"""Reads the golden files: what the authors' code computes in float64, with its gradients."""

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent.parent / "golden"
ATTENTION_FILES = sorted(path.stem for path in FOLDER.glob("attention_*.npz"))
SIZES = (
    "num_heads",
    "num_kv_heads",
    "compress_block_size",
    "compress_stride",
    "selection_block_size",
    "num_selected_blocks",
)


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def section(file: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Returns what stands after `name/`."""
    return {key.removeprefix(f"{name}/"): file[key] for key in file if key.startswith(f"{name}/")}


def sizes(file: dict[str, np.ndarray]) -> dict:
    """Returns the keyword arguments of `attention_from_state_dict`."""
    hyper = section(file, "hyper")
    return {name: int(hyper[name]) for name in SIZES}


def positions_of(mask: np.ndarray) -> np.ndarray:
    """Returns positions of right-padded rows from their mask [B, L]."""
    return np.where(mask, np.arange(mask.shape[1]), -1).astype(np.int32)


def relative_error(got, want) -> float:
    """Returns the relative Frobenius error against a float64 array."""
    return float(np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want))

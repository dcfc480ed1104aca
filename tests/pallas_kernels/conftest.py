"""What tests of compilation for GPUs share."""

import os
from collections.abc import Iterator

import pytest
from gpu_compile import environment
from gpu_compile.client import Worker


@pytest.fixture(scope="session")
def gpu_compiler() -> Iterator[Worker]:
    """Compiles for GPUs that are not here. `make test` has it installed, and demands it."""
    if environment.plugin_folder() is None:
        if os.environ.get("GPU_COMPILE_REQUIRED"):
            pytest.fail(environment.MISSING)
        pytest.skip(environment.MISSING)
    with Worker() as worker:
        yield worker

"""What is known of a program that was compiled for a GPU, and whether it is good enough."""

import dataclasses

from gpu_compile.targets import GPUS


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a Triton kernel became on one GPU.

    Attributes:
      name: as given to `pallas_call`.
      threads: of a program of the grid.
      registers: of a thread.
      shared_memory: bytes of a program.
      spills: instructions that move registers to memory and back.
      tensor_core: tensor core instructions, and how often each stands in the code.
      products: products of two tiles in its source.
    """

    name: str
    threads: int
    registers: int
    shared_memory: int
    spills: int
    tensor_core: dict[str, int]
    products: int

    def problems(self, gpu: str) -> list[str]:
        """Says what keeps the kernel from being fast on a GPU."""
        limit = GPUS[gpu].shared_memory_limit
        found = []
        if self.spills:
            found.append(f"{self.name}: spills {self.spills} times at {self.registers} registers")
        if self.shared_memory > limit:
            found.append(f"{self.name}: {self.shared_memory} bytes of shared memory, over {limit}")
        if self.products and not self.tensor_core:
            found.append(f"{self.name}: {self.products} products, but no tensor core instruction")
        return found


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of compiling a program.

    Attributes:
      program: its name.
      gpu: key of `GPUS`.
      kernels: those that compiled, in the order of their launch; None if it was not asked.
      memory: bytes that XLA plans for the whole program, by what they hold; None if not asked.
      failures: messages of what did not compile.
      seconds: that it took.
    """

    program: str
    gpu: str
    kernels: list[Kernel] | None = None
    memory: dict[str, int] | None = None
    failures: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def from_json(cls, fields: dict) -> "Report":
        """Undoes `dataclasses.asdict`."""
        kernels = fields["kernels"]
        if kernels is not None:
            kernels = [Kernel(**kernel) for kernel in kernels]
        return cls(**fields | {"kernels": kernels})

    @property
    def problems(self) -> list[str]:
        """Says all that keeps the program from being proven."""
        found = list(self.failures)
        if self.kernels is not None:
            found += [problem for kernel in self.kernels for problem in kernel.problems(self.gpu)]
            if not found and not self.kernels:
                found.append("no Triton kernel in it")
        return found

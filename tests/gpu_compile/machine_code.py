"""Reads registers and instructions off the machine code of a kernel."""

import collections
import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile

from gpu_compile.environment import APART

# Products on tensor cores, from Ampere's HMMA and Hopper's HGMMA to Blackwell's UTCHMMA.
_TENSOR_CORE = re.compile(r"(UTC)?[HIQDO]G?MMA")
_SPILLS = ("STL", "LDL")  # stores to and loads from a thread's own memory
_REGISTERS = re.compile(r"\bREG:(\d+)")
_OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9]+)")


@dataclasses.dataclass(frozen=True)
class MachineCode:
    """One kernel.

    Attributes:
      registers: of a thread.
      opcodes: how often each instruction stands in it.
    """

    registers: int
    opcodes: dict[str, int]

    @property
    def spills(self) -> int:
        """Instructions that move registers to memory and back."""
        return sum(self.opcodes.get(opcode, 0) for opcode in _SPILLS)

    @property
    def tensor_core(self) -> dict[str, int]:
        """Those instructions that use tensor cores."""
        used = self.opcodes.items()
        return {opcode: count for opcode, count in used if _TENSOR_CORE.fullmatch(opcode)}


def disassemble(cubin: bytes) -> MachineCode:
    """Reads an ELF file of one kernel.

    Args:
      cubin: the file, from `executable.cubins`.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        (registers,) = _REGISTERS.findall(_run("cuobjdump", "-res-usage", file.name))
        opcodes = collections.Counter(_OPCODE.findall(_run("nvdisasm", "-c", file.name)))
    return MachineCode(int(registers), dict(opcodes))


def _run(tool: str, *arguments: str) -> str:
    command = [_tool(tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _tool(name: str) -> str:
    """Finds a tool where its package puts it, below some folder of packages."""
    for folder in (*map(pathlib.Path, sys.path), APART):
        for found in folder.glob(f"nvidia/*/bin/{name}"):
            return str(found)
    raise FileNotFoundError(f"no {name}: pip install nvidia-cuda-{name}")

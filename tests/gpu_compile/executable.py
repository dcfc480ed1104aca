"""Finds the machine code inside an executable that XLA has serialized.

XLA writes a Riegeli file whose records are compressed with Snappy; a program is such a file inside
another. Neither format is worth a dependency here: whatever decompresses is searched for ELF files.
"""

import re
import struct
from collections.abc import Iterator

_RIEGELI = bytes.fromhex("83af70d10d884a3f")  # how the first block of a file begins, after 24 bytes
_BLOCK, _BLOCK_HEADER = 65536, 24
_CUDA_ELF = re.compile(rb"\x7fELF\x02.{11}..\xbe\x00", re.DOTALL)  # 64 bits, machine 190
_CHUNK_HEADERS = 4000  # bytes within which the first compressed chunk has begun
_LARGEST = 1 << 28


def cubins(serialized: bytes) -> Iterator[bytes]:
    """Yields the ELF files for CUDA in a serialized executable: one a kernel, as XLA compiles them.

    Args:
      serialized: from `jax.stages.Compiled.runtime_executable().serialize()`.
    """
    payload = _unpack(serialized, depth=4)
    for found in _CUDA_ELF.finditer(payload):
        yield payload[found.start() : found.start() + _elf_size(payload, found.start())]


def _unpack(data: bytes, depth: int) -> bytes:
    """Returns the innermost content that has an ELF file, or nothing."""
    # A file inside comes first: compressed, an ELF file may still begin as one.
    for found in re.finditer(re.escape(_RIEGELI), data) if depth else ():
        for content in _decompressed(_without_block_headers(data[found.start() :])):
            if payload := _unpack(content, depth - 1):
                return payload
    return data if _CUDA_ELF.search(data) else b""


def _without_block_headers(file: bytes) -> bytes:
    starts = range(0, len(file), _BLOCK)
    return b"".join(file[start + _BLOCK_HEADER : start + _BLOCK] for start in starts)


def _decompressed(chunks: bytes) -> Iterator[bytes]:
    """Yields whatever decompresses, from wherever it begins."""
    for start in range(min(len(chunks), _CHUNK_HEADERS)):
        try:
            yield unsnappy(chunks, start)
        except (ValueError, IndexError):
            continue


def _elf_size(data: bytes, start: int) -> int:
    """Returns where the last of an ELF file's two header tables ends."""
    programs, sections = struct.unpack_from("<QQ", data, start + 32)
    counts = struct.unpack_from("<HHHH", data, start + 54)
    program_size, num_programs, section_size, num_sections = counts
    return max(programs + program_size * num_programs, sections + section_size * num_sections)


def unsnappy(data: bytes, start: int = 0) -> bytes:
    """Decompresses a raw Snappy block; what follows it is left alone.

    Args:
      data: has the block.
      start: where it begins.

    Raises:
      ValueError: no such block begins there; or IndexError, where it runs off the end.
    """
    size, at = _varint(data, start)
    if not 256 < size < _LARGEST:
        raise ValueError(f"{size=} is none that a chunk has")
    out = bytearray()
    while len(out) < size:
        length, offset, at = _element(data, at)
        if offset is None:
            out += data[at : at + length]
            at += length
        elif not 0 < offset <= len(out):
            raise ValueError(f"{offset=} reaches before the block")
        else:  # a copy may overlap what it writes
            seed = out[-offset:]
            out += (seed * (length // offset + 1))[:length]
    if len(out) != size:
        raise ValueError(f"{len(out)} bytes, not {size=}")
    return bytes(out)


def _element(data: bytes, at: int) -> tuple[int, int | None, int]:
    """Reads a tag: (length, offset of a copy or None for literal bytes, where the tag ends)."""
    tag, at = data[at], at + 1
    kind, high = tag & 3, tag >> 2
    if kind == 0:
        extra = max(high - 59, 0)  # bytes that give a longer length
        length = int.from_bytes(data[at : at + extra], "little") if extra else high
        return length + 1, None, at + extra
    if kind == 1:
        return (high & 7) + 4, (tag >> 5) << 8 | data[at], at + 1
    width = 2 if kind == 2 else 4
    return high + 1, int.from_bytes(data[at : at + width], "little"), at + width


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at

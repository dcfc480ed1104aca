"""Finds the machine code inside an executable that XLA has serialized.

XLA writes a Riegeli file whose records are compressed with Snappy; a program is such a file inside
another. Neither format is worth a dependency here: of each, what XLA writes is read. See
https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md
"""

import re
import struct
from collections.abc import Iterator

_RIEGELI = bytes.fromhex("83af70d10d884a3f")  # how a file begins
_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 65536, 24, 40
_CUDA_ELF = re.compile(rb"\x7fELF\x02.{11}..\xbe\x00", re.DOTALL)  # 64 bits, machine 190
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
        for content in _chunks(_without_block_headers(data[found.start() :])):
            if payload := _unpack(content, depth - 1):
                return payload
    return data if _CUDA_ELF.search(data) else b""


def _without_block_headers(file: bytes) -> bytes:
    starts = range(0, len(file), _BLOCK)
    return b"".join(file[start + _BLOCK_HEADER : start + _BLOCK] for start in starts)


def _chunks(file: bytes) -> Iterator[bytes]:
    """Yields the records of each chunk, joined; what follows the file itself is no chunk."""
    at = 0
    while at + _CHUNK_HEADER <= len(file):
        size, kind = struct.unpack_from("<8xQ8xB", file, at)
        at += _CHUNK_HEADER
        if at + size > len(file):
            return
        if kind == ord("r"):
            yield _records(file[at : at + size])
        at += size


def _records(chunk: bytes) -> bytes:
    """Returns the records of a simple chunk: its sizes come first, then its values."""
    sizes, at = _varint(chunk, 1)
    at += sizes
    if chunk[0] == 0:  # not compressed
        return chunk[at:]
    if chunk[0] != ord("s"):
        raise ValueError(f"compressed by {chunk[:1]!r}, not by Snappy")
    _, at = _varint(chunk, at)
    return unsnappy(chunk, at)


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
    if size > _LARGEST:
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

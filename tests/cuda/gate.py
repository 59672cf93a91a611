"""The compile gate: what a kernel becomes on an H100, without having one.

Triton compiles for sm_90 on any machine, and the tools that it brings read the machine code. A
kernel passes if it keeps everything in registers (no spill, no local memory) and its shared memory
fits. The compiler itself lets both through.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

#: Shared memory that one block can have on sm_90, in bytes.
SHARED_LIMIT = 232_448
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """What the machine code of a kernel needs."""

    registers: int
    stack: int
    local: int
    shared: int
    spills: int
    wgmma: int
    ptx: str


class Refused(AssertionError):
    """A kernel does not fit the machine."""


def compile_for_sm90(
    kernel, signature, constants, *, num_warps=4, num_stages=3, aligned=()
) -> Compiled:
    """Compile `kernel` for sm_90.

    `signature` gives each argument's type (`"*i64"`, `"i32"`, ...), `constants` the constexpr
    arguments, `aligned` the names of arguments divisible by 16, as a launch finds them.
    """
    names = list(kernel.arg_names)
    types = {name: "constexpr" if name in constants else signature[name] for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=types, constexprs=values, attrs=attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (_read(option, file.name) for option in ("--dump-resource-usage", "-sass"))
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Compiled(
        registers=found["REG"],
        stack=found["STACK"],
        local=found["LOCAL"],
        shared=compiled.metadata.shared,
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        wgmma=len(re.findall(r"wgmma\.mma_async", compiled.asm["ptx"])),
        ptx=compiled.asm["ptx"],
    )


def _read(option: str, name: str) -> str:
    command = [str(_TOOLS / "cuobjdump"), option, name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def admit(compiled: Compiled) -> None:
    """Raise `Refused` unless the kernel runs from registers and fits into shared memory."""
    if compiled.spills or compiled.local:
        raise Refused(f"{compiled.spills} spill instructions, {compiled.local} bytes local memory")
    if compiled.shared > SHARED_LIMIT:
        raise Refused(f"{compiled.shared} bytes of shared memory, at most {SHARED_LIMIT}")

"""The two compilers behind one interface: NVRTC (a library, first choice) and nvcc (a program)."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from .units import CSRC, Unit

NVRTC_MIN = (12, 4)

# Version ranges [low, high) that compile the kernels badly, with what they do. Resources of the
# versions outside are read in CI (tests/hopper/test_hopper_resources.py).
REFUSED_VERSIONS: tuple[tuple[tuple[int, int], tuple[int, int], str], ...] = (
    ((13, 4), (13, 6), "it spills registers in the main loop; 12.8 and 13.0 to 13.3 do not"),
)


class CompileError(RuntimeError):
    """A compiler rejected a unit; the message holds its log."""


@dataclass(frozen=True)
class Compiled:
    cubin: bytes
    log: str


class Compiler(Protocol):
    """``fingerprint`` names the compiler, its version and its flags: it is part of the key."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def compile(self, unit: Unit, root: Path = CSRC) -> Compiled: ...


def version_reason(name: str, version: tuple[int, int]) -> str | None:
    """Why this compiler version is refused, None when it may be used."""
    text = ".".join(map(str, version))
    if version < NVRTC_MIN:
        need = ".".join(map(str, NVRTC_MIN))
        return f"{name} {text} is too old for these kernels: they need >= {need}"
    for low, high, why in REFUSED_VERSIONS:
        if low <= version < high:
            return f"{name} {text} is refused: {why}"
    return None


class Nvrtc:
    """NVRTC through cuda-bindings; constructing it loads the library (ImportError, RuntimeError
    or CompileError where it is missing or refused). ``any_version`` takes a refused one too."""

    name = "nvrtc"
    flags = ("--std=c++17", "--ptxas-options=-v")

    def __init__(self, any_version: bool = False) -> None:
        from cuda.bindings import nvrtc

        self._nvrtc: Any = nvrtc
        error, major, minor = nvrtc.nvrtcVersion()
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"nvrtcVersion: {error}")
        self.version = (int(major), int(minor))
        reason = None if any_version else version_reason("NVRTC", self.version)
        if reason:
            raise CompileError(reason)

    @property
    def fingerprint(self) -> str:
        return f"nvrtc {self.version[0]}.{self.version[1]} {' '.join(self.flags)}"

    def compile(self, unit: Unit, root: Path = CSRC) -> Compiled:
        nvrtc = self._nvrtc
        options = [f"--gpu-architecture={unit.arch}", *self.flags, f"--include-path={root}"]
        options += [f"--include-path={(root / unit.source).parent}"]
        options += [f"--define-macro={d}" for d in unit.defines]
        source = (root / unit.source).read_bytes()
        program = self._call(nvrtc.nvrtcCreateProgram(source, unit.source.encode(), 0, [], []))
        try:
            encoded = [o.encode() for o in options]
            (result,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
            log = bytearray(self._call(nvrtc.nvrtcGetProgramLogSize(program)))
            self._call(nvrtc.nvrtcGetProgramLog(program, log))
            text = log.rstrip(b"\0").decode(errors="replace")
            if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                raise CompileError(f"{self.fingerprint} could not compile {unit.name}:\n{text}")
            cubin = bytearray(self._call(nvrtc.nvrtcGetCUBINSize(program)))
            self._call(nvrtc.nvrtcGetCUBIN(program, cubin))
            return Compiled(bytes(cubin), text)
        finally:
            nvrtc.nvrtcDestroyProgram(program)

    def _call(self, result: tuple[Any, ...]) -> Any:
        if result[0] != self._nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"NVRTC answered {result[0]}")
        return result[1] if len(result) > 1 else None


class Nvcc:
    """nvcc of a CUDA toolkit, for machines without NVRTC and for builds ahead of time."""

    name = "nvcc"
    flags = ("-std=c++17", "-O3", "-cubin", "-Xptxas", "-v")

    def __init__(self, program: str) -> None:
        self.program = program
        if reason := version_reason("nvcc", self.version):
            raise CompileError(reason)

    @classmethod
    def find(cls) -> str | None:
        """Path of nvcc: on PATH, or where the toolkit installs itself."""
        usual = Path("/usr/local/cuda/bin/nvcc")
        return shutil.which("nvcc") or (str(usual) if usual.is_file() else None)

    @cached_property
    def version(self) -> tuple[int, int]:
        text = self._run([self.program, "--version"])
        found = re.search(r"release (\d+)\.(\d+)", text)
        if not found:
            raise CompileError(f"{self.program} --version did not name its release:\n{text}")
        return int(found[1]), int(found[2])

    @property
    def fingerprint(self) -> str:
        return f"nvcc {self.version[0]}.{self.version[1]} {' '.join(self.flags)}"

    def command(self, unit: Unit, output: Path, root: Path = CSRC) -> list[str]:
        virtual = unit.arch.replace("sm_", "compute_")
        return [
            self.program,
            *self.flags,
            f"-gencode=arch={virtual},code={unit.arch}",
            f"-I{root}",
            *(f"-D{d}" for d in unit.defines),
            str(root / unit.source),
            "-o",
            str(output),
        ]

    def compile(self, unit: Unit, root: Path = CSRC) -> Compiled:
        with tempfile.TemporaryDirectory(prefix="flashmla-hub-nvcc-") as folder:
            output = Path(folder) / "unit.cubin"
            log = self._run(self.command(unit, output, root))
            return Compiled(output.read_bytes(), log)

    def _run(self, command: list[str]) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise CompileError(f"{command[0]}: {error}") from error
        log = done.stdout + done.stderr
        if done.returncode:
            raise CompileError(f"{' '.join(command)} failed with {done.returncode}:\n{log}")
        return log


def find_compilers() -> tuple[list[Compiler], list[str]]:
    """The usable compilers in order of preference, and why each of the others is not."""
    found: list[Compiler] = []
    reasons: list[str] = []
    try:
        found.append(Nvrtc())
    except Exception as error:  # cuda-bindings raises its own types for a missing library
        reasons.append(f"NVRTC: {error}")
    program = Nvcc.find()
    if program is None:
        reasons.append("nvcc: not on PATH and not in /usr/local/cuda/bin")
    else:
        try:
            found.append(Nvcc(program))
        except CompileError as error:
            reasons.append(f"nvcc: {error}")
    return found, reasons

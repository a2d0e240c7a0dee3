"""The two compilers behind one interface: NVRTC (a library, first choice) and nvcc (a program)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from .units import CSRC, Unit

NVRTC_MIN = (12, 4)

# What compiles every kernel without a spill: docs/kernels/compilers.md has the table, made by
# tools/compiler_table. The other versions are used where no such compiler is, with a note.
CLEAN = ((12, 8), (13, 4))  # [from, to)


class CompileError(RuntimeError):
    """A compiler rejected a unit; the message holds its log."""


@dataclass(frozen=True)
class Compiled:
    cubin: bytes
    log: str


class Compiler(Protocol):
    """``fingerprint`` names the compiler, its version and its flags: it is part of the key.
    ``spills``: what is known against this version, '' where it compiles cleanly."""

    name: str
    spills: str

    @property
    def fingerprint(self) -> str: ...

    def compile(self, unit: Unit, root: Path = CSRC) -> Compiled: ...


def version_reason(name: str, version: tuple[int, int]) -> str | None:
    """Why this compiler version is refused, None when it may be used."""
    text = ".".join(map(str, version))
    if version < NVRTC_MIN:
        need = ".".join(map(str, NVRTC_MIN))
        return f"{name} {text} is too old for these kernels: they need >= {need}"
    return None


def version_note(version: tuple[int, int]) -> str:
    """What is known against a version that may be used, '' where nothing is."""
    low, high = CLEAN
    if low <= version < high:
        return ""
    text, first, end = (".".join(map(str, v)) for v in (version, low, high))
    return (
        f"{text} spills some registers, mostly of the warps that load (right, perhaps slower); "
        f"{first} and later below {end} do not: pip install 'nvidia-cuda-nvrtc<{end}'"
    )


class Nvrtc:
    """NVRTC through cuda-bindings; constructing it loads the library (ImportError, RuntimeError
    or CompileError where it is missing or too old)."""

    name = "nvrtc"
    flags = ("--std=c++17", "--ptxas-options=-v")

    def __init__(self) -> None:
        from cuda.bindings import nvrtc

        self._nvrtc: Any = nvrtc
        error, major, minor = nvrtc.nvrtcVersion()
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"nvrtcVersion: {error}")
        self.version = (int(major), int(minor))
        if reason := version_reason("NVRTC", self.version):
            raise CompileError(reason)
        self.spills = version_note(self.version)

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
        self.spills = version_note(self.version)

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
        _sweep()
        with tempfile.TemporaryDirectory(prefix=_TEMP_PREFIX) as folder:
            output = Path(folder) / "unit.cubin"
            log = self._run(self.command(unit, output, root))
            return Compiled(output.read_bytes(), log)

    def _run(self, command: list[str]) -> str:
        try:
            code, log = run_to_the_end(command)
        except OSError as error:
            raise CompileError(f"{command[0]}: {error}") from error
        if code:
            raise CompileError(f"{' '.join(command)} failed with {code}:\n{log}")
        return log


_TEMP_PREFIX = "flashmla-hub-nvcc-"
_TEMP_MAX_AGE_S = 3600.0

# nvcc starts further programs, which live on when it, or this process, is killed. This runs it in a
# group of its own and kills the group when the pipe from this process closes, however it ends.
_SUPERVISOR = """
import os, signal, subprocess, sys, threading
def watch():
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
code = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)
os._exit(code if code >= 0 else 128 - code)
"""


def run_to_the_end(command: list[str]) -> tuple[int, str]:
    """(exit status, output) of a program that ends with this process, its children too.

    Raises:
        OSError: it cannot be started.
    """
    if not hasattr(os, "killpg"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(errno.ENOENT, "not found or not executable", command[0])
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _SUPERVISOR, *command], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        try:
            log = child.stdout.read()
            return child.wait(), log
        except BaseException:
            with contextlib.suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)
            raise


def _sweep() -> None:
    """Remove the folders of builds that were killed."""
    horizon = time.time() - _TEMP_MAX_AGE_S
    for leftover in Path(tempfile.gettempdir()).glob(_TEMP_PREFIX + "*"):
        with contextlib.suppress(OSError):
            if leftover.lstat().st_mtime < horizon:
                shutil.rmtree(leftover, ignore_errors=True)


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

"""What this machine lacks to build and launch the kernels, and how to get it.

Looks at the driver's version, at distribution metadata and for nvcc; imports no vendor library.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .build import AOT_FOLDER
from .compilers import Nvcc, version_reason
from .driver import driver_version

DRIVER_MIN = (12, 4)
NVRTC_DISTRIBUTIONS = {12: "nvidia-cuda-nvrtc-cu12", 13: "nvidia-cuda-nvrtc"}
_SYSTEM_NVRTC = "/usr/local/cuda/lib64/libnvrtc.so"


def _version(distribution: str) -> tuple[int, int] | None:
    try:
        words = importlib.metadata.version(distribution).split(".")
        return int(words[0]), int(words[1])
    except (importlib.metadata.PackageNotFoundError, ValueError, IndexError):
        return None


@dataclass(frozen=True)
class Environment:
    """The probes, replaceable one by one in tests."""

    driver: Callable[[], tuple[int, int] | None] = driver_version
    distribution: Callable[[str], tuple[int, int] | None] = _version
    nvcc: Callable[[], str | None] = Nvcc.find
    system_nvrtc: Callable[[], bool] = Path(_SYSTEM_NVRTC).exists
    aot_folder: Path = field(default=AOT_FOLDER)

    def reasons(self) -> tuple[str, ...]:
        """Everything that is missing, each with what to install; () when ready."""
        driver = self.driver()
        found: list[str] = []
        if driver is None:
            found.append(
                "NVIDIA driver: libcuda.so.1 not found; install a driver for CUDA "
                f">= {_dotted(DRIVER_MIN)}"
            )
        elif driver < DRIVER_MIN:
            found.append(
                f"NVIDIA driver: it speaks CUDA {_dotted(driver)}, these kernels need "
                f">= {_dotted(DRIVER_MIN)}; update the driver"
            )
        extra = "cuda12" if driver is not None and driver[0] < 13 else "cuda13"
        install = f"pip install 'flashmla-hub[{extra}]'"
        bindings = self.distribution("cuda-bindings")
        if bindings is None:
            found.append(f"cuda-bindings: not installed; {install}")
        if reason := self._compiler_reason(driver, bindings):
            found.append(f"{reason}; {install}")
        return tuple(found)

    def _compiler_reason(
        self, driver: tuple[int, int] | None, bindings: tuple[int, int] | None
    ) -> str | None:
        """Why no cubin can be had: no NVRTC that fits, no nvcc, none built ahead of time."""
        if self.nvcc() is not None or any(self.aot_folder.glob("*.cubin")):
            return None
        major = bindings[0] if bindings else (driver or (13, 0))[0]
        name = NVRTC_DISTRIBUTIONS.get(major, NVRTC_DISTRIBUTIONS[13])
        nvrtc = self.distribution(name)
        if nvrtc is None:
            if self.system_nvrtc():
                return None
            return f"NVRTC: {name} is not installed, and no nvcc was found"
        if driver is not None and nvrtc[0] > driver[0]:
            return (
                f"NVRTC {_dotted(nvrtc)} makes cubins for CUDA {nvrtc[0]} drivers, this one "
                f"speaks CUDA {_dotted(driver)}"
            )
        return version_reason("NVRTC", nvrtc)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"

"""Packaging. The top-level folders are installed under the package's name; torch is not imported.

``python setup.py install``, FlashMLA's own line, is ``pip install`` of this folder: setuptools' own
command of that name installs no dependencies (new ones), or fails on the way (old ones), and
Python 3.12 and later bring no setuptools at all. What stands behind ``install`` goes to pip.

``FLASHMLA_HUB_AOT=1`` compiles the CUDA kernels with nvcc into the wheel (see
``backends/hopper/aot.py``); without it they are compiled at first use, and no toolkit is needed.
"""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if sys.argv[1:2] == ["install"]:
    pip = [sys.executable, "-m", "pip", "install", *sys.argv[2:], str(ROOT)]
    print("setup.py install:", *pip, flush=True)
    sys.exit(subprocess.call(pip))

from setuptools import find_packages, setup  # noqa: E402  # after install, which needs none

# import name under flashmla_hub -> folder of the repository
FOLDERS = ("backends", "conformance", "csrc", "examples")


def packages() -> tuple[list[str], dict[str, str]]:
    """(all packages, package_dir): each folder, and what lies below it, nested under the hub."""
    found = find_packages(str(ROOT), include=["flashmla_hub", "flashmla_hub.*"])
    where = {"flashmla_hub": "flashmla_hub"}
    for folder in FOLDERS:
        where[f"flashmla_hub.{folder}"] = folder
        found.append(f"flashmla_hub.{folder}")
        found += [f"flashmla_hub.{folder}.{name}" for name in find_packages(str(ROOT / folder))]
    return found, where


def entry_points() -> dict[str, list[str]]:
    """The console script, the built-in plugins of ``backends/__init__.py``, the engines' hooks."""
    tree = ast.parse((ROOT / "backends" / "__init__.py").read_text())
    table = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "BUILTINS"
    )
    return {
        "console_scripts": ["flashmla-hub = flashmla_hub.cli:main"],
        "flashmla_hub.backends": [f"{name} = {value}" for name, value in table.items()],
        "pytest11": ["flashmla_hub_conformance = _flashmla_hub_pytest"],
        "vllm.general_plugins": ["flashmla_hub = flashmla_hub.engines.vllm:register"],
        "sglang.srt.plugins": ["flashmla_hub = flashmla_hub.engines.sglang:register"],
    }


def version() -> str:
    return str(runpy.run_path(str(ROOT / "flashmla_hub" / "version.py"))["__version__"])


def command_classes() -> dict[str, type]:
    """With FLASHMLA_HUB_AOT set, build_py also compiles every kernel into the build folder."""
    if os.environ.get("FLASHMLA_HUB_AOT", "").strip().lower() not in ("1", "true", "yes", "on"):
        return {}
    sys.path.insert(0, str(ROOT))
    from backends.hopper.aot import BuildWithCubins

    return {"build_py": BuildWithCubins}


names, directories = packages()
commands = command_classes()
setup(
    name="flashmla-hub",
    version=version(),
    description="DeepSeek's MLA decode attention on whatever accelerator is there",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    author="The flashmla_hub authors",
    keywords=["attention", "MLA", "FlashMLA", "DeepSeek", "CUDA", "Triton", "ROCm", "conformance"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=names,
    py_modules=["_flashmla_hub_pytest"],
    package_dir=directories,
    package_data={
        "flashmla_hub": ["py.typed"],
        "flashmla_hub.cli": ["templates/**/*"],
        "flashmla_hub.csrc": ["**/*.cu", "**/*.h", "**/*.cuh", "*.md"],
        "flashmla_hub.conformance": ["**/*.txt", "**/*.json", "**/*.j2", "**/*.css", "**/*.js"],
        "flashmla_hub.backends": ["**/*.json", "**/*.cubin"],
    },
    install_requires=["torch>=2.6", "pluggy>=1.5", "rich>=13", "numpy>=1.26", "filelock>=3.12"],
    extras_require={
        "demo": ["transformers>=5.17"],
        "report": ["jinja2>=3.1", "matplotlib>=3.8"],
        "triton": ["triton>=3.6,<4"],
        "cuda12": ["cuda-bindings>=12.4,<13", "nvidia-cuda-nvrtc-cu12>=12.4"],
        "cuda13": ["cuda-bindings>=13,<14", "nvidia-cuda-nvrtc>=13,<13.4"],
        "vllm": ["vllm>=0.29"],
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "hypothesis>=6.100",
            "ninja",
            "triton>=3.6,<4",
            "transformers>=5.17",
            "jinja2>=3.1",
            "matplotlib>=3.8",
            "cuda-bindings>=12.4",
            "nvidia-cuda-nvrtc",
        ],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26"],
        "dev": ["ruff>=0.8", "mypy>=1.13", "clang-format>=18", "build"],
    },
    entry_points=entry_points(),
    cmdclass=commands,
    setup_requires=["ninja"] if commands else [],
)

"""The core names no vendor and imports no backend; import directions and sizes hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flashmla_hub

ROOT = Path(flashmla_hub.__file__).resolve().parents[1]
if not (ROOT / "setup.py").is_file():
    pytest.skip("needs a checkout", allow_module_level=True)

CORE = sorted((ROOT / "flashmla_hub").rglob("*.py"))
BACKENDS = sorted((ROOT / "backends").rglob("*.py"))
CONFORMANCE = sorted((ROOT / "conformance").rglob("*.py"))
VENDORS = re.compile(
    r"nvidia|\bamd\b|metax|moore|musa|hygon|iluvatar|intellifusion|ascend(?!ing)|hopper|rocm|aiter"
    r"|kunlun|cambricon|enflame|\bt_head\b|\bthead\b|corex|flashinfer|flaggems",
    re.IGNORECASE,
)
# Longer than 300 lines, each with its reason.
LONG = {
    "tests/engines/stub_vllm.py": "one engine's names, recorded in one place",
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def code(path: Path) -> str:
    """The source without docstrings and comments: prose may give examples."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                value.value = ""
    return ast.unparse(tree)


def test_the_core_names_no_vendor_and_no_backend():
    engines = ROOT / "flashmla_hub" / "engines"  # an engine's own words for devices and backends
    examples = ("explain.py", "doctor.py")  # help texts, distribution names in a bug report
    for path in CORE:
        if engines in path.parents or path.name in examples:
            continue
        found = sorted(
            {m.group(0).lower() for m in VENDORS.finditer(code(path))} - {"torch.version.musa"}
        )
        versions = {"identify.py": {"musa"}, "version.py": set()}  # torch's own attributes
        found = [f for f in found if f not in versions.get(path.name, set())]
        assert not found, f"{path.relative_to(ROOT)} names {found}"


def test_the_core_imports_no_backend_and_no_suite():
    for path in CORE:
        for name in imports(path):
            assert not name.startswith("flashmla_hub.backends"), f"{path}: {name}"
            if "conformance" not in path.name and path.name not in ("verify.py", "board.py"):
                assert not name.startswith("flashmla_hub.conformance"), f"{path}: {name}"


def test_backends_never_import_each_other():
    for path in BACKENDS:
        own = path.relative_to(ROOT / "backends").parts[0]
        for name in imports(path):
            if name.startswith("flashmla_hub.backends."):
                other = name.split(".")[2]
                assert other == own or other.startswith("_"), f"{path}: {name}"


def test_the_suite_names_no_backend_and_uses_public_things():
    for path in CONFORMANCE:
        for name in imports(path):
            assert not name.startswith("flashmla_hub.backends"), f"{path}: {name}"


def test_the_environment_is_read_in_one_place():
    for path in [*CORE, *BACKENDS, *CONFORMANCE]:
        if path.name == "config.py" and path.parent.name == "flashmla_hub":
            continue
        found = re.findall(r"os\.environ|getenv", code(path))
        assert not found, f"{path.relative_to(ROOT)} reads the environment"


def test_files_stay_readable():
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.cu", "*.cuh", "*.h"], cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("needs git")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.exists() and name not in LONG:
            lines = len(path.read_text().splitlines())
            assert lines <= 350, f"{name} has {lines} lines: split it by role, or give the reason"


def in_fresh_process(statement: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_and_asking_imports_no_triton_and_no_vendor_library():
    allowed = "import sys, torch; before = set(sys.modules); import flashmla_hub as hub;"
    ask = (
        "hub.backends(); hub.devices(); [hub.explain(hub.KernelKey(), device=d) for d in "
        "('nvidia:sm_90', 'amd:gfx942', 'metax:xcore1000', 'moore_threads:mp_31')];"
    )
    show = (
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new & {'triton', 'cuda', 'aiter', 'flash_mla', 'torch_musa', 'torch_npu',"
        "'flashinfer', 'ixformer', 'flag_gems', 'transformers', 'vllm', 'sglang', 'tylang'}))"
    )
    assert in_fresh_process(allowed + show).strip() == "[]"
    assert in_fresh_process(allowed + ask + show).strip() == "[]"


def test_nothing_outside_the_standard_library_is_imported_beside_the_requirements():
    extra = in_fresh_process(
        "import sys, torch; before = set(sys.modules); import flashmla_hub;"
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    names = set(ast.literal_eval(extra)) - set(sys.stdlib_module_names)
    assert names <= {"flashmla_hub", "pluggy", "numpy"}, names


def test_no_linux_only_import_on_the_way_to_the_demo():
    """What other systems lack must not be imported by the core, the CLI or the torch backend."""
    absent = ("fcntl", "resource", "pwd", "grp", "termios", "readline", "posix")
    block = f"import sys; [sys.modules.__setitem__(m, None) for m in {absent!r}];"
    done = in_fresh_process(
        f"import torch; {block} import flashmla_hub as hub; hub.devices(); hub.backends();"
        "import flashmla_hub.cli.demo, flashmla_hub.cli.devices, flashmla_hub.cli.doctor;"
        "print('fine')"
    )
    assert done.strip() == "fine"

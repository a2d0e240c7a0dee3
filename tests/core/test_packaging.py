"""Every way to install works: wheel, sdist, plain, editable, and FlashMLA's setup.py install."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import flashmla_hub

ROOT = Path(flashmla_hub.__file__).resolve().parents[1]
if not (ROOT / "setup.py").is_file():
    pytest.skip("needs a checkout", allow_module_level=True)

CHECK = """
import importlib.metadata as m, pathlib, flashmla_hub as hub
from flashmla_hub.backends import BUILTINS
import flashmla_hub.conformance, flashmla_hub.examples.deepseek_decode
assert not [q for q in hub.registry.state().quarantined], hub.registry.state().quarantined
eps = {e.name: e.value for e in m.distribution("flashmla-hub").entry_points
       if e.group == "flashmla_hub.backends"}
assert eps == BUILTINS, (eps, BUILTINS)
import flashmla_hub.csrc
csrc = pathlib.Path(flashmla_hub.csrc.__file__).parent
assert list(csrc.rglob("*.cu")) and list(csrc.rglob("*.h")), csrc
from flashmla_hub.cli import new_backend
assert list(new_backend._TEMPLATES.glob("*.tmpl"))
print("fine", pathlib.Path(hub.__file__).parent)
"""


def run(*words: object, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(w) for w in words], cwd=cwd, capture_output=True, text=True, check=False,
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the tracked files: building must not leave anything in the checkout."""
    target = tmp_path_factory.mktemp("source") / "hub"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("needs git")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out,
        source, cwd=source)  # fmt: skip
    return next(out.glob("*.whl"))


def test_the_wheel_holds_what_is_needed_at_run_time(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        "flashmla_hub/py.typed", "flashmla_hub/backends/__init__.py",
        "flashmla_hub/conformance/__init__.py", "flashmla_hub/examples/deepseek_decode.py",
        "flashmla_hub/cli/templates/backend/plugin.py.tmpl",
    }  # fmt: skip
    assert expected <= names
    assert any(n.startswith("flashmla_hub/csrc/") and n.endswith(".cu") for n in names)
    assert any(n.startswith("flashmla_hub/conformance/mustpass/") for n in names)
    tops = {n.partition("/")[0] for n in names if not n.endswith("/")}
    # the second is pytest's way in, which stands outside so that pytest does not import torch
    ours = {t for t in tops if not t.endswith(".dist-info")}
    assert ours == {"flashmla_hub", "_flashmla_hub_pytest.py"}


def environment(folder: Path) -> Path:
    """A venv that sees this one's packages (torch is 1 GB) but not this checkout."""
    builder = venv.EnvBuilder(with_pip=False)
    builder.create(folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    own = Path(
        run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip()
    )
    here = next(p for p in sys.path if p.endswith("site-packages"))
    (own / "parent.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    return python


HOW = {
    "wheel": lambda python, source, wheel: ["-m", "pip", "install", "--no-deps", wheel],
    "plain": lambda python, source, wheel: [
        "-m", "pip", "install", "--no-deps", "--no-build-isolation", source],
    "editable": lambda python, source, wheel: [
        "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", source],
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("how", HOW)
def test_install(how, source, wheel, tmp_path):
    python = environment(tmp_path / "env")
    words = HOW[how](python, source, wheel)
    run(python, *words, *(["--ignore-installed"] if "pip" in words else []), cwd=source)
    told = run(python, "-c", CHECK, cwd=tmp_path)
    assert told.startswith("fine")
    assert str(ROOT) not in told
    assert "torch" in run(python, "-m", "flashmla_hub", "backends", "--json", cwd=tmp_path)


def test_setup_py_install_is_pip(source):
    """Without setuptools too, and what stands behind goes to pip."""
    told = run(sys.executable, "-c", SETUP_WITHOUT_SETUPTOOLS, cwd=source)
    assert "-m pip install --help" in told
    assert "Usage:" in told


SETUP_WITHOUT_SETUPTOOLS = """
import runpy, sys
sys.modules["setuptools"] = None
sys.argv = ["setup.py", "install", "--help"]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.mark.full
@pytest.mark.parametrize("setuptools", ["the venv's own", "newest"])
def test_flash_mlas_two_commands_in_a_fresh_environment(setuptools, source, tmp_path):
    """As the README prints them, in a venv that sees no package but those it installs."""
    readme = (source / "README.md").read_text()
    for line in ("python setup.py install", "python tests/test_flash_mla.py"):
        assert line in readme
    env = tmp_path / "env"
    venv.EnvBuilder(with_pip=True).create(env)
    python = env / ("Scripts" if os.name == "nt" else "bin") / "python"
    if setuptools == "newest":
        run(python, "-m", "pip", "install", "-q", "-U", "setuptools", "wheel", cwd=tmp_path)
    run(python, "setup.py", "install", cwd=source, PIP_CONSTRAINT="constraints-cpu.txt")
    told = run(python, "tests/test_flash_mla.py", cwd=source)
    assert "8 shapes right on cpu" in told
    assert run(python, "-c", CHECK, cwd=tmp_path).startswith("fine")


PYTHONS = [p for minor in range(10, 15) if (p := shutil.which(f"python3.{minor}"))]


@pytest.mark.full
@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).name)
def test_the_wheel_works_on_every_python_that_is_here(python, wheel, tmp_path):
    """Whole: with its dependencies, in an environment that sees nothing else."""
    own = fresh(tmp_path / "env", python, wheel, PIP_CONSTRAINT=str(ROOT / "constraints-cpu.txt"))
    assert run(own, "-c", CHECK, cwd=tmp_path).startswith("fine")
    told = run(own, "-m", "flashmla_hub", "explain", "--device", "amd:gfx942", cwd=tmp_path)
    assert told.startswith("selected amd")


def fresh(folder: Path, python: str, *packages: object, **env: str) -> Path:
    """The Python of a new environment that holds ``packages`` with their dependencies."""
    run(python, "-m", "venv", folder, cwd=folder.parent)
    own = folder / "bin" / "python"
    run(own, "-m", "pip", "install", "-q", "--no-cache-dir", *packages, cwd=folder.parent, **env)
    return own


VERSIONS = {
    "oldest": ("torch==2.6.*", "numpy==1.26.*"),
    "newest": ("torch", "numpy>=2"),  # as far as this machine's pip looks
}


@pytest.mark.full
@pytest.mark.timeout(3600)  # a torch with its libraries is 3 GB
@pytest.mark.parametrize("versions", VERSIONS)
def test_the_wheel_is_used_with(versions, wheel, tmp_path, request):
    """Whole environments too: the calls against the oracle, doctor, and the kit up to L1."""
    if versions == "oldest" and sys.version_info >= (3, 13):
        pytest.skip("no numpy 1.26 for this Python")
    folder = tmp_path / "env"
    request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))  # 6 GB
    python = fresh(folder, sys.executable, wheel, *VERSIONS[versions])
    assert run(python, "-c", CHECK, cwd=tmp_path).startswith("fine")
    tests = ROOT / "tests"
    told = run(python, tests / "core" / "first_calls.py", cwd=tmp_path, PYTHONPATH=str(tests))
    assert told.startswith("right with torch ")
    hub = python.parent / "flashmla-hub"
    doctor = run(hub, "doctor", cwd=tmp_path)
    judged = run(hub, "conformance", "--backend", "torch", "--level", "L1", cwd=tmp_path)
    print(told, doctor, judged)  # what ran, for pytest -s
    assert "torch" in doctor


def test_the_sdist_has_the_documents_and_the_wheel_its_facts(source, wheel, tmp_path):
    run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=source)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"docs/tutorial.md", "mkdocs.yml", "CONTRIBUTING.md", "tests/oracle.py"} <= names
    facts = email.message_from_string(
        next(
            zipfile.ZipFile(wheel).read(name).decode()
            for name in zipfile.ZipFile(wheel).namelist()
            if name.endswith("METADATA")
        )
    )
    assert facts["Keywords"]
    assert "Typing :: Typed" in facts.get_all("Classifier")
    assert not facts.get_all("Project-URL"), "no address is given that does not exist"


@pytest.mark.full
def test_sdist_builds_the_same_wheel(source, wheel, tmp_path):
    run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=source)
    archive = next(tmp_path.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    unpacked = next((tmp_path / "unpacked").iterdir())
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w",
        tmp_path, unpacked, cwd=unpacked)  # fmt: skip
    rebuilt = next(tmp_path.glob("*.whl"))
    names = [set(zipfile.ZipFile(w).namelist()) for w in (wheel, rebuilt)]
    assert names[0] == names[1]

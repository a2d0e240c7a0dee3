"""A Triton whose Gluon lacks a name serves with the plain form and says so; our own mistakes do not
pass for a name that is missing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from flashmla_hub.backends.triton import config, gluon_bound, gluon_names, plugin
from flashmla_hub.backends.triton.bound import kernel_for
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import KernelKey

H100 = DeviceInfo("nvidia", "sm_90", "cuda", multiprocessors=132, simulated=True)
FOLDER = Path(gluon_names.__file__).parent
MODULES = [*FOLDER.glob("gluon_[!nb]*.py"), *FOLDER.glob("hopper_*.py"), FOLDER / "descriptors.py"]


@pytest.fixture
def without(monkeypatch) -> Iterator[str]:
    """A Triton without one of the names."""
    monkeypatch.setitem(gluon_names.NAMES, gluon_names.GLUON, ("jit", "gone|also_gone"))
    gluon_names.missing.cache_clear()
    yield "gone"
    gluon_names.missing.cache_clear()


def used() -> Iterator[tuple[str, str]]:
    """(module of Triton, name) of everything the Gluon modules take from it."""
    modules = {"gl": f"{gluon_names.GLUON}.language"}
    for kind in ("mbarrier", "tma"):
        modules[kind] = f"{gluon_names.GLUON}.language.nvidia.hopper.{kind}"
    modules["async_copy"] = f"{gluon_names.GLUON}.language.nvidia.ampere.async_copy"
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("triton."):
                yield from ((str(node.module), alias.name) for alias in node.names)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                yield from ((modules[n], node.attr) for n in [node.value.id] if n in modules)


def test_every_name_that_is_used_is_looked_for() -> None:
    known = {
        (place, name)
        for place, names in gluon_names.NAMES.items()
        for each in names
        for name in each.split("|")
    }
    unknown = set(used()) - known - {("triton.experimental", "gluon")}
    assert len(MODULES) >= 7
    assert not unknown


def test_the_installed_triton_has_them() -> None:
    assert gluon_names.missing() is None
    assert gluon_bound.notes() == ()


@pytest.mark.parametrize("change", [{}, {"h_q": 16}, {"op": "sparse_decode", "topk": 64}], ids=str)
def test_the_plain_form_serves_and_explain_says_why(change: dict, without: str) -> None:
    key = KernelKey(**change)
    kernel = kernel_for(key, H100, config.config_for(key, H100))
    assert "gluon" not in [name for name, _, _ in kernel.launchers()]
    (note,) = plugin.TritonBackend().notes(H100)
    assert without in note
    ampere = DeviceInfo("nvidia", "sm_80", "cuda", simulated=True)
    assert plugin.TritonBackend().notes(ampere) == ()


def test_a_mistake_of_our_own_surfaces(monkeypatch) -> None:
    def broken(*args: object) -> None:
        raise AttributeError("ours")

    monkeypatch.setattr(gluon_bound, "_pairs", broken)
    with pytest.raises(AttributeError, match="ours"):
        gluon_bound.form_of(KernelKey(), config.config_for(KernelKey(), H100), 2, (32,))

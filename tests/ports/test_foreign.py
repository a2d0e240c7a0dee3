"""``flashmla_hub.foreign``: the real package beside a drop-in of the same name."""

from __future__ import annotations

import importlib
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from flashmla_hub import foreign
from tests.simulated_ports.install import install

LATE = "def late():\n    from foreign_fake.leaf import NAME\n    import foreign_fake.leaf as m\n"
FILES = {
    "foreign_fake/__init__.py": (
        "from foreign_fake.interface import answer, late\nfrom .leaf import *\nimport foreign_ext\n"
    ),
    "foreign_fake/interface.py": (
        "import dataclasses\nimport foreign_ext\nimport foreign_fake.leaf\n"
        "@dataclasses.dataclass\nclass Meta:\n    n: int = 0\n"
        "def answer():\n    return foreign_ext.WHO\n" + LATE + "    return NAME, m.NAME\n"
    ),
    "foreign_fake/leaf.py": "NAME = __file__\n",
    "foreign_ext.py": "WHO = __file__\n",
}


class DropIn:
    """A finder that answers to the contested name, as the hub's drop-in does."""

    def __init__(self) -> None:
        setattr(self, foreign.DROP_IN_MARK, True)
        self.module = ModuleType("foreign_fake")
        setattr(self.module, foreign.DROP_IN_MARK, True)

    def find_spec(self, name, path=None, target=None):
        if name != "foreign_fake":
            return None
        return ModuleSpec(name, self)

    def create_module(self, spec):
        return self.module

    def exec_module(self, module):
        pass


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for table in ("_loaded", "_importers", "_hidden"):
        monkeypatch.setattr(foreign, table, {})
    yield
    for name in [m for m in sys.modules if m.partition(".")[0] in ("foreign_fake", "foreign_ext")]:
        del sys.modules[name]


@pytest.fixture
def drop_in(monkeypatch):
    finder = DropIn()
    monkeypatch.setattr(foreign, "CONTESTED", frozenset({"foreign_fake"}))
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    return finder


def put(tmp_path: Path, monkeypatch, label: str) -> Path:
    folder = install(tmp_path / label, "foreign_fake", f"1.0+{label}", FILES)
    monkeypatch.syspath_prepend(str(folder))
    return folder.resolve()


def test_shares_the_users_copy_where_nobody_contests_the_name(tmp_path, monkeypatch):
    put(tmp_path, monkeypatch, "a")
    module = foreign.load("foreign_fake")
    import foreign_fake

    assert module is foreign_fake
    assert foreign.load("foreign_fake.leaf") is sys.modules["foreign_fake.leaf"]


def test_steps_around_the_drop_in_and_leaves_it_in_view(tmp_path, monkeypatch, drop_in):
    folder = put(tmp_path, monkeypatch, "a")
    import foreign_fake

    assert foreign_fake is drop_in.module
    before = set(sys.modules)
    (distribution,) = foreign.distributions("foreign-fake")
    module = foreign.load("foreign_fake", distribution)
    assert Path(module.answer()).is_relative_to(folder)
    assert sys.modules["foreign_fake"] is drop_in.module
    assert not {m for m in set(sys.modules) - before if m.startswith("foreign_")}
    assert foreign.load("foreign_fake", distribution) is module


def test_absolute_imports_inside_functions_find_the_package_itself(tmp_path, monkeypatch, drop_in):
    folder = put(tmp_path, monkeypatch, "a")
    module = foreign.load("foreign_fake")
    assert module.late() == (str(folder / "foreign_fake/leaf.py"),) * 2


def test_each_distribution_of_one_name_gets_its_own_modules(tmp_path, monkeypatch):
    folders = [put(tmp_path, monkeypatch, label) for label in "ab"]
    found = {foreign.root(d): d for d in foreign.distributions("foreign_fake")}
    assert set(found) == set(folders)
    for folder in folders:
        module = foreign.load("foreign_fake", found[folder])
        assert Path(module.answer()).is_relative_to(folder)
        assert Path(module.late()[0]).is_relative_to(folder)


@pytest.fixture
def contested(monkeypatch):
    monkeypatch.setattr(foreign, "CONTESTED", frozenset({"foreign_fake"}))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))


def test_a_contested_name_is_private_until_the_user_imports_the_same(
    tmp_path, monkeypatch, contested
):
    """So that the drop-in can still take the name over, and nothing is imported twice."""
    put(tmp_path, monkeypatch, "a")
    module = foreign.load("foreign_fake")
    assert "foreign_fake" not in sys.modules
    import foreign_fake
    import foreign_fake.leaf

    assert foreign_fake is module
    assert foreign_fake.leaf is foreign.load("foreign_fake.leaf")
    import foreign_fake.interface

    assert sys.modules["foreign_fake.interface"] is module.interface
    assert foreign.load("foreign_fake") is module


def test_the_user_gets_his_own_package_where_the_port_is_another(tmp_path, monkeypatch, contested):
    put(tmp_path, monkeypatch, "a")
    first = put(tmp_path, monkeypatch, "b")
    ports = {foreign.root(d): d for d in foreign.distributions("foreign_fake")}
    hidden = foreign.load("foreign_fake", next(d for r, d in ports.items() if r != first))
    import foreign_fake
    import foreign_fake.leaf

    assert foreign_fake is not hidden
    assert Path(foreign_fake.answer()).is_relative_to(first)
    assert Path(foreign_fake.leaf.__file__).is_relative_to(first)


def test_a_submodule_of_the_drop_in_is_not_the_ports(tmp_path, monkeypatch, drop_in):
    put(tmp_path, monkeypatch, "a")
    foreign.load("foreign_fake")
    drop_in.module.__path__ = []
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("foreign_fake.leaf")


def test_hides_what_the_user_imported_first_without_importing_it_twice(tmp_path, monkeypatch):
    put(tmp_path, monkeypatch, "a")
    import foreign_fake

    foreign.hide("foreign_fake")
    assert "foreign_fake" not in sys.modules
    monkeypatch.setattr(foreign, "CONTESTED", frozenset({"foreign_fake"}))
    monkeypatch.setattr(sys, "meta_path", [DropIn(), *sys.meta_path])
    assert foreign.load("foreign_fake") is foreign_fake
    assert foreign.load("foreign_fake.leaf") is foreign_fake.leaf


def test_other_threads_never_see_the_real_package(tmp_path, monkeypatch, drop_in):
    put(tmp_path, monkeypatch, "a")
    (tmp_path / "a/foreign_fake/leaf.py").write_text("import time\ntime.sleep(0.05)\nNAME = 1\n")
    seen, loaded, stop = [], [], threading.Event()

    def user():
        while not stop.is_set():
            import foreign_fake

            seen.append(foreign_fake)

    watcher = threading.Thread(target=user)
    loaders = [
        threading.Thread(target=lambda: loaded.append(foreign.load("foreign_fake")))
        for _ in range(4)
    ]
    for thread in (watcher, *loaders):
        thread.start()
    for thread in loaders:
        thread.join()
    stop.set()
    watcher.join()
    assert set(map(id, loaded)) == {id(loaded[0])} and len(loaded) == 4
    assert set(map(id, seen)) == {id(drop_in.module)}


def test_a_package_that_fails_to_import_says_so_each_time(tmp_path, monkeypatch, drop_in):
    put(tmp_path, monkeypatch, "a")
    (tmp_path / "a/foreign_ext.py").write_text("raise OSError('driver missing')\n")
    for _ in range(2):
        with pytest.raises(OSError, match="driver missing"):
            foreign.load("foreign_fake")
    assert not foreign._importers[None].modules.get("foreign_fake")


def test_an_absent_package_is_an_import_error(drop_in):
    with pytest.raises(ImportError, match="foreign_fake"):
        foreign.load("foreign_fake")


def test_editable_installs_are_rooted_in_their_checkout(tmp_path, monkeypatch):
    checkout = install(tmp_path / "src", "foreign_fake", "1.0", FILES)
    site = install(tmp_path / "site", "foreign_fake", "1.0", {})
    (site / "foreign_fake-1.0.dist-info/direct_url.json").write_text(
        f'{{"url": "{checkout.as_uri()}", "dir_info": {{"editable": true}}}}'
    )
    monkeypatch.syspath_prepend(str(site))
    (distribution,) = foreign.distributions("foreign_fake")
    assert foreign.root(distribution) == checkout.resolve()
    assert Path(foreign.load("foreign_fake", distribution).answer()).is_relative_to(checkout)


def test_reads_metadata_and_source_without_importing(tmp_path, monkeypatch):
    put(tmp_path, monkeypatch, "a")
    (distribution,) = foreign.distributions("foreign_fake")
    assert foreign.top_level(distribution) == {"foreign_fake", "foreign_ext"}
    assert "def answer" in (foreign.source(distribution, "foreign_fake/interface.py") or "")
    assert foreign.source(distribution, "foreign_fake/absent.py") is None
    assert "foreign_fake" not in sys.modules

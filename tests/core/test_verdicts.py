"""A plugin that was good and is not any more: edited after its verdict, or bad in the host only."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from test_plugins import GOOD, ROOT, install, statuses

from flashmla_hub import config, loading, marks, plugins, registry, verdicts

# what replaces a module that had a good verdict -> what is said of it then
EDITS = {
    "sleeps": ("import time; time.sleep(600)", "import did not finish in"),
    "exits": ("import os; os._exit(3)", "import ended with 3"),
    "raises": ("raise ValueError('edited')", "plugin.py:1"),
    "hookexits": (
        GOOD.replace("NAME", "hookexits").replace("return [Good()]", "import os; os._exit(7)"),
        "hooks ended with 7",
    ),
    "asksexits": (
        GOOD.replace("NAME", "asksexits").replace(
            "return (Capabilities(),)", "import os; os._exit(8)"
        ),
        "capabilities of asksexits ended with 8",
    ),
}


def package(folder: Path, name: str, source: str) -> Path:
    """A package whose entry point is ``plugin.py``, as new-backend writes one."""
    install(folder, name, None)
    entry = folder / f"hub_{name}-1.0.dist-info" / "entry_points.txt"
    entry.write_text(f"[flashmla_hub.backends]\n{name} = pack_{name}.plugin\n")
    (folder / f"pack_{name}").mkdir()
    (folder / f"pack_{name}" / "__init__.py").write_text("")
    plugin = folder / f"pack_{name}" / "plugin.py"
    plugin.write_text(source)
    return plugin


def keep_good_verdicts(folder: Path, cache: Path, monkeypatch) -> None:
    """As if each plugin had been judged good in its present state."""
    monkeypatch.syspath_prepend(str(folder))
    with config.override(cache_dir=cache):
        for found in plugins.discover()[0]:
            if not found.builtin:
                verdicts._keep(verdicts.folder(), verdicts.fingerprint(found), found, "")


def test_edited_after_a_good_verdict(tmp_path, monkeypatch):
    folder, cache = tmp_path / "site", tmp_path / "cache"
    files = {name: package(folder, name, GOOD.replace("NAME", name)) for name in EDITS}
    package(folder, "good", GOOD.replace("NAME", "good"))
    keep_good_verdicts(folder, cache, monkeypatch)
    for name, path in files.items():
        path.write_text(textwrap.dedent(EDITS[name][0]))
    with config.override(cache_dir=cache, plugin_timeout=4.0):
        state = loading.load_all()
        found = {q.name: q.reason for q in state.quarantined}
        for name, (_, reason) in EDITS.items():
            assert reason in found[name], (name, found[name])
        assert {"good", "torch"} <= set(state.entries)
        # what hung is not waited for again
        started = time.monotonic()
        known = verdicts._judge(*candidate("sleeps"))
        assert "did not finish" in known
        assert time.monotonic() - started < 5


def candidate(name: str) -> tuple[plugins.Found, str]:
    found = next(f for f in plugins.discover()[0] if f.name == name)
    return found, verdicts.fingerprint(found)


def test_exits_in_the_host_only(tmp_path, monkeypatch):
    """The child's verdict is good; the process that imports it dies, the next one names it."""
    folder, cache = tmp_path / "site", tmp_path / "cache"
    package(folder, "sly", "import os; os._exit(9)")
    keep_good_verdicts(folder, cache, monkeypatch)
    command = [sys.executable, "-m", "flashmla_hub", "devices"]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "FLASHMLA_HUB_CACHE_DIR": str(cache),
    }
    assert subprocess.run(command, env=env, cwd=folder, check=False).returncode == 9
    status, reason = statuses(folder, cache)["sly"]
    assert status == "quarantined"
    assert "a process ended during import of sly" in reason
    assert f"remove {cache}" in reason
    # a changed file is a new plugin
    (folder / "pack_sly" / "plugin.py").write_text(GOOD.replace("NAME", "sly"))
    with config.override(cache_dir=cache):
        assert "sly" in loading.load_all().entries


def test_hangs_in_the_host_only(tmp_path, monkeypatch):
    folder, cache = tmp_path / "site", tmp_path / "cache"
    package(folder, "slow", "import time; time.sleep(600)")
    keep_good_verdicts(folder, cache, monkeypatch)
    with config.override(cache_dir=cache, plugin_timeout=1.0):
        first = {q.name: q.reason for q in loading.load_all().quarantined}["slow"]
        assert "import did not finish in 1 s" in first
        started = time.monotonic()
        second = {q.name: q.reason for q in loading.load_all().quarantined}["slow"]
        assert time.monotonic() - started < 1.0
        assert "import of slow" in second


def test_every_file_of_the_package_is_in_the_fingerprint(tmp_path, monkeypatch):
    plugin = package(tmp_path, "many", GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = plugins.Found("many", "pack_many.plugin", "hub-many", "1.0")
    seen = {verdicts.fingerprint(found)}
    deep = plugin.parent / "kernels" / "deep"
    deep.mkdir(parents=True)
    (deep / "k.json").write_text("{}")
    seen.add(verdicts.fingerprint(found))
    (deep / "k.json").write_text("[]")  # the size is the same
    seen.add(verdicts.fingerprint(found))
    plugin.touch()
    seen.add(verdicts.fingerprint(found))
    cached = plugin.parent / "__pycache__"
    cached.mkdir()
    (cached / "x.pyc").write_text("")
    assert verdicts.fingerprint(found) in seen
    assert len(seen) == 4


def _die_with_a_mark(folder: str) -> None:
    with marks.mark(Path(folder), "stem", "import of acme"):
        os._exit(0)


def _hold_a_mark(folder: str, ready, done) -> None:
    with marks.mark(Path(folder), "stem", "import of acme"):
        ready.set()
        done.wait(30)


@pytest.mark.skipif(marks.fcntl is None, reason="needs file locks")
def test_marks_tell_the_dead_from_the_living(tmp_path):
    spawn = multiprocessing.get_context("fork")
    assert marks.death(tmp_path, "stem") is None
    ready, done = spawn.Event(), spawn.Event()
    living = spawn.Process(target=_hold_a_mark, args=(str(tmp_path), ready, done))
    living.start()
    assert ready.wait(30)
    assert marks.death(tmp_path, "stem") is None
    done.set()
    living.join()
    assert not list(tmp_path.iterdir())
    for count in (1, 2):
        dead = spawn.Process(target=_die_with_a_mark, args=(str(tmp_path),))
        dead.start()
        dead.join()
        died = marks.death(tmp_path, "stem")
        assert died is not None
        assert (died.question, died.deaths) == ("import of acme", count)
    marks.forget(tmp_path, "stem")
    assert marks.death(tmp_path, "stem") is None


def test_a_damaged_record_is_no_death(tmp_path):
    for content in ("", "{", "[" * 100_000, json.dumps({"question": "x"}), json.dumps([])):
        (tmp_path / "stem.dead").write_text(content)
        assert marks.death(tmp_path, "stem") is None


def test_this_processes_plugins_are_untouched():
    assert registry.state().entries["torch"].builtin

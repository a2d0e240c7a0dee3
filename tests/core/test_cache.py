"""The cache folder: whose it is, what may lie in it, and how it is to be without one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from core_helpers import Narrow

import flashmla_hub as hub
from flashmla_hub import cache, config, files, tuning
from flashmla_hub.backends.hopper import tuned as hopper
from flashmla_hub.backends.triton import tuned as triton
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import choice_key
from flashmla_hub.testing import registered

H100 = DeviceInfo("nvidia", "sm_90", "cuda", name="H100")
KEY = hub.KernelKey(dtype="float32", h_q=4, page_block_size=8)


def test_a_write_is_whole_or_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a" / "b"
    files.write_atomically(path, "one")
    files.write_atomically(path, b"two")
    assert files.read_regular(path) == b"two"

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(path, "three")
    assert [p.name for p in path.parent.iterdir()] == ["b"]
    assert path.read_text() == "two"


def test_a_write_that_fails_half_way_leaks_no_file(tmp_path):
    with pytest.raises(TypeError):
        tuning.write_json(tmp_path / "t.json", {"x": object()})
    assert not list(tmp_path.iterdir())


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "long").write_bytes(b"x" * 100)
    for name in ("pipe", "folder", "link", "nothing"):
        with pytest.raises(OSError, match=name):
            files.read_regular(tmp_path / name)
    with pytest.raises(OSError, match="at most 10"):
        files.read_regular(tmp_path / "long", 10)


def test_no_cache_at_all_without_a_home(monkeypatch, caplog):
    """No HOME, and a user id that the table of users does not have."""
    pwd = pytest.importorskip("pwd")

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    settings = config.from_environment({})
    assert settings.cache_dir is None
    monkeypatch.setattr(cache, "_told", set())
    with config.scoped(config=settings):
        assert hub.explain(hub.KernelKey()).selected == "torch"
        assert cache.folder("hopper") is cache.folder("tuning") is None
    assert caplog.text.count("the cache is not used: this user has no home folder") == 1
    with pytest.raises(hub.InvalidRequestError, match="FLASHMLA_HUB_CACHE_DIR"):
        config.from_environment({"FLASHMLA_HUB_CACHE_DIR": "~/x"})


def test_without_a_cache_everything_works_in_memory():
    with config.override(cache_dir=None), registered(Narrow("port", rank=99)):
        assert hub.explain(KEY).selected == "port"
        assert cache.folder("tuning") is None
        assert tuning.path_for(H100) is None
        assert hopper.FILE.get("x", H100) is None
        with pytest.raises(OSError, match="no home folder"):
            hopper.FILE.keep("x", H100, hopper.Tuning())


def test_a_cache_that_others_can_write_to_is_not_used_and_told_once(tmp_path, caplog):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    with config.override(cache_dir=tmp_path / "shared"):
        assert cache.folder("tuning") is None
        assert cache.folder("hopper") is None
        assert "chmod go-w" in cache.problem()
    assert caplog.text.count("can be written by others") == 1


def test_a_cache_that_is_a_file_is_not_used(tmp_path):
    (tmp_path / "file").write_text("")
    with config.override(cache_dir=tmp_path / "file"):
        assert cache.folder("tuning") is None


def put(path: Path | None, text: str) -> None:
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)


ODD_TABLES = [
    "", "{damaged", "[" * 200_000, "null", "[1]", '{"version": 2}', '{"version": 1e999}',
    '{"version": 2, "preferred": 7}', '{"version": 2, "preferred": {"x": 7}}',
    '{"version": 2, "preferred": {"x": ["one"]}}', '{"version": "2", "preferred": {}}',
    "1" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ODD_TABLES)))
def test_an_odd_table_of_this_machine_is_ignored_with_a_reason(number, caplog):
    tuning._load.cache_clear()
    put(tuning.path_for(hub.devices()[0]), ODD_TABLES[number])
    with registered(Narrow("one", rank=50)):
        assert hub.explain(choice_key(KEY, 1, 4096)).selected == "one"
    assert "is ignored" in caplog.text


def test_a_pipe_in_the_tables_place_is_ignored():
    path = tuning.path_for(hub.devices()[0])
    put(path, "")
    path.unlink()
    os.mkfifo(path)
    try:
        assert hub.explain(choice_key(KEY, 1, 4096)).selected == "torch"
    finally:
        path.unlink()


BAD_NUMBERS = [-1, 1 << 62, 1.5, "2", None, True, [1], {}]


@pytest.mark.parametrize("field", list(hopper.LIMITS))
def test_a_value_of_hoppers_table_that_the_schedule_cannot_take_is_refused(field):
    good = hopper.Tuning()
    fields = {name: getattr(good, name) for name in hopper.LIMITS}
    assert hopper._parse(fields) == good
    for bad in [*BAD_NUMBERS, *([0, 3] if field == "min_part_blocks" else [])]:
        with pytest.raises((ValueError, TypeError)):
            hopper._parse({**fields, field: bad})
    del fields[field]
    with pytest.raises(KeyError):
        hopper._parse(fields)


def test_a_value_of_tritons_table_that_no_kernel_can_take_is_refused():
    import dataclasses

    base = triton.config_for(hub.KernelKey(), H100)
    good = json.loads(json.dumps(dataclasses.asdict(base)))
    assert triton._parse(good) == base
    for field in dataclasses.fields(base):
        bads = (
            BAD_NUMBERS if type(getattr(base, field.name)) is int else [1, "x", None, 0.5, {1: 2}]
        )
        for bad in bads:
            with pytest.raises((ValueError, TypeError)):
                triton._parse({**good, field.name: bad})
    with pytest.raises(ValueError, match="options"):
        triton._parse({**good, "options": [["shell", 1]]})
    with pytest.raises((ValueError, TypeError)):
        triton._parse({**good, "block_n": 48})


def test_a_bad_value_on_disk_falls_back_to_what_is_shipped(caplog):
    put(
        hopper.FILE.path(H100),
        json.dumps({"version": 1, "configs": {"g": {**hopper.LIMITS, "min_part_blocks": 0}}}),
    )
    assert hopper.FILE.get("g", H100) is None
    assert "are ignored" in caplog.text


def test_a_file_of_configurations_stays_bounded(monkeypatch):
    monkeypatch.setattr(tuning, "MAX_ENTRIES", 3)
    device = DeviceInfo("nvidia", "sm_90", "cuda", name="bounded")
    for number in range(6):
        hopper.FILE.keep(f"g{number}", device, hopper.Tuning())
    kept = [n for n in range(6) if hopper.FILE.get(f"g{n}", device)]
    assert kept == [3, 4, 5]

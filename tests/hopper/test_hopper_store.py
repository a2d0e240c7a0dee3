"""The cache of compiled kernels: an entry is whole or absent, whatever happens to its writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flashmla_hub.backends.hopper import store as stores
from flashmla_hub.backends.hopper.entry import MAGIC, Entry, decode, encode
from flashmla_hub.backends.hopper.store import CubinStore

ENTRY = Entry("decode-test", "d1", "nvrtc 13.0", bytes(range(256)) * 16)


def run_python(code: str, *args: str) -> subprocess.Popen[str]:
    """A child that has the store at hand as ``store`` and its arguments in ``sys.argv``."""
    head = textwrap.dedent(
        """
        import os, sys, time
        from pathlib import Path
        from flashmla_hub.backends.hopper.entry import Entry
        from flashmla_hub.backends.hopper.store import CubinStore
        store = CubinStore(Path(sys.argv[1]))
        entry = Entry("decode-test", "d1", "nvrtc 13.0", bytes(range(256)) * 16)
        """
    )
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code), *args],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_is_saved_is_loaded_by_another_store(tmp_path: Path) -> None:
    CubinStore(tmp_path).save("k", ENTRY)
    assert CubinStore(tmp_path).load("k") == ENTRY
    assert CubinStore(tmp_path).load("other") is None


def test_an_entry_cut_short_at_any_byte_is_absent() -> None:
    data = encode("k", ENTRY)
    assert decode("k", data) == ENTRY
    for length in [*range(300), *range(300, len(data), 97), len(data) - 1]:
        assert decode("k", data[:length]) is None, f"accepted {length} of {len(data)} bytes"


def test_a_changed_byte_is_noticed_anywhere_in_payload_and_header() -> None:
    data = encode("k", ENTRY)
    payload = len(data) - len(ENTRY.cubin)
    for at in [0, 5, 30, *range(payload, len(data), 211), len(data) - 1]:
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        assert decode("k", bytes(damaged)) != ENTRY, f"byte {at} of {len(data)}"
    assert decode("k", data + b"x") is None


def test_an_entry_under_the_wrong_name_is_absent(tmp_path: Path) -> None:
    store = CubinStore(tmp_path)
    store.save("k", ENTRY)
    (tmp_path / "k.cubin").rename(tmp_path / "other.cubin")
    assert store.load("other") is None


def test_a_damaged_entry_is_replaced_by_the_next_save(tmp_path: Path) -> None:
    store = CubinStore(tmp_path)
    store.save("k", ENTRY)
    path = tmp_path / "k.cubin"
    path.write_bytes(path.read_bytes()[:-7])
    assert store.load("k") is None
    store.save("k", ENTRY)
    assert store.load("k") == ENTRY


def test_a_folder_that_cannot_be_written_falls_back_to_memory_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file" / "cache", None):
        store = CubinStore(folder)
        caplog.clear()
        store.save("k", ENTRY)
        store.save("k2", ENTRY)
        assert len(caplog.records) == (folder is not None)
        assert "FLASHMLA_HUB_CACHE_DIR" in caplog.text or folder is None
        assert store.load("k") == ENTRY
        store.discard("k")
        assert store.load("k") is None


def odd_entries(path: Path) -> dict[str, Callable[[], object]]:
    """What may stand where an entry belongs."""

    def sparse() -> None:
        with path.open("wb") as file:
            file.truncate(100 << 30)

    return {
        "a pipe": lambda: os.mkfifo(path),
        "a folder": path.mkdir,
        "a link to an endless file": lambda: path.symlink_to("/dev/zero"),
        "a link to nowhere": lambda: path.symlink_to(path.parent / "nothing"),
        "100 GB of nothing": sparse,
        "a header nested a thousand deep": lambda: path.write_bytes(
            MAGIC + b"[" * 100_000 + b"\nx"
        ),
        "a header of another kind": lambda: path.write_bytes(MAGIC + b"[1]\nx"),
    }


@pytest.mark.parametrize("kind", odd_entries(Path()))
def test_whatever_stands_in_an_entrys_place_is_absent(tmp_path: Path, kind: str) -> None:
    store = CubinStore(tmp_path)
    path = store.path("k")
    assert path is not None
    odd_entries(path)[kind]()
    assert store.load("k") is None
    store.save("k", ENTRY)
    assert store.load("k") == ENTRY
    store.discard("k")


def test_the_folder_is_made_for_this_user_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        CubinStore(tmp_path / "cache" / "hopper").save("k", ENTRY)
    finally:
        os.umask(before)
    for folder in (tmp_path / "cache", tmp_path / "cache" / "hopper"):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache" / "hopper" / "k.cubin").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("shared", ["cache", "cache/hopper"])
def test_nothing_is_loaded_from_a_folder_that_others_can_write_to(
    tmp_path: Path, shared: str, caplog: pytest.LogCaptureFixture
) -> None:
    CubinStore(tmp_path / "cache" / "hopper").save("k", ENTRY)
    (tmp_path / shared).chmod(0o777)
    store = CubinStore(tmp_path / "cache" / "hopper")
    assert store.load("k") is None
    assert "can be written by others" in caplog.text
    store.save("k", ENTRY)
    assert store.load("k") == ENTRY  # from memory


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid(), reason="needs root to chown")
def test_nothing_is_loaded_from_another_users_folder_or_file(tmp_path: Path) -> None:
    CubinStore(tmp_path / "theirs" / "hopper").save("k", ENTRY)
    os.chown(tmp_path / "theirs" / "hopper", 12345, 12345)
    assert CubinStore(tmp_path / "theirs" / "hopper").load("k") is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "hopper").symlink_to(tmp_path / "theirs" / "hopper")
    assert CubinStore(tmp_path / "mine" / "hopper").load("k") is None
    CubinStore(tmp_path / "own" / "hopper").save("k", ENTRY)
    os.chown(tmp_path / "own" / "hopper" / "k.cubin", 12345, 12345)
    assert CubinStore(tmp_path / "own" / "hopper").load("k") is None


def test_the_number_of_entries_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_FILES", 5)
    monkeypatch.setattr(stores, "MAX_IN_MEMORY", 3)
    for folder, most in ((tmp_path, 5), (None, 3)):
        store = CubinStore(folder)
        for number in range(9):
            store.save(f"k{number}", ENTRY)
            if folder is not None:
                path = store.path(f"k{number}")
                assert path is not None
                os.utime(path, (number, number))
        kept = [n for n in range(9) if store.load(f"k{n}") is not None]
        assert kept == list(range(9 - most, 9))


def test_killed_in_the_middle_of_a_write_leaves_no_entry_and_no_obstacle(tmp_path: Path) -> None:
    child = run_python(
        """
        def stop_here(fd):
            print("written, not yet in place", flush=True)
            time.sleep(60)
        os.fsync = stop_here
        store.save("k", entry)
        """,
        str(tmp_path),
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith("written")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    left = list(tmp_path.iterdir())
    assert len(left) == 1, "the writer's temporary file"
    store = CubinStore(tmp_path)
    assert store.load("k") is None
    store.save("k", ENTRY)
    assert store.load("k") == ENTRY
    assert left[0].exists(), "a young temporary file may have a living writer"
    long_ago = time.time() - 7200
    os.utime(left[0], (long_ago, long_ago))
    store.save("k2", ENTRY)
    assert not left[0].exists()


def test_killed_at_random_moments_an_entry_is_whole_or_absent(tmp_path: Path) -> None:
    for moment_ms in (3, 23):
        child = run_python(
            """
            print("go", flush=True)
            while True:
                store.save("k", entry)
                store.discard("k")
            """,
            str(tmp_path),
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(moment_ms / 1e3)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        store = CubinStore(tmp_path)
        whole_or_absent = not (tmp_path / "k.cubin").exists() or store.load("k") == ENTRY
        assert whole_or_absent, f"killed after {moment_ms} ms"


def test_two_processes_writing_one_entry_never_show_half_of_it(tmp_path: Path) -> None:
    code = """
        for _ in range(30):
            store.save("k", entry)
            assert store.load("k") == entry
        """
    children = [run_python(code, str(tmp_path)) for _ in range(2)]
    store = CubinStore(tmp_path)
    seen = 0
    while any(child.poll() is None for child in children):
        if (tmp_path / "k.cubin").exists():
            assert store.load("k") == ENTRY
            seen += 1
    assert [child.returncode for child in children] == [0, 0]
    assert seen
    assert [p.name for p in tmp_path.iterdir()] == ["k.cubin"]

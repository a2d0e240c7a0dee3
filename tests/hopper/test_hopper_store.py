"""The cache of compiled kernels: an entry is whole or absent, whatever happens to its writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest

from flashmla_hub.backends.hopper.store import CubinStore, Entry, decode, encode

ENTRY = Entry("decode-test", "d1", "nvrtc 13.0", bytes(range(256)) * 16)


def run_python(code: str, *args: str) -> subprocess.Popen[str]:
    """A child that has the store at hand as ``store`` and its arguments in ``sys.argv``."""
    head = textwrap.dedent(
        """
        import os, sys, time
        from pathlib import Path
        from backends.hopper.store import CubinStore, Entry
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
    store.path("k").rename(store.path("other"))
    assert store.load("other") is None


def test_a_damaged_entry_is_replaced_by_the_next_save(tmp_path: Path) -> None:
    store = CubinStore(tmp_path)
    store.save("k", ENTRY)
    store.path("k").write_bytes(store.path("k").read_bytes()[:-7])
    assert store.load("k") is None
    store.save("k", ENTRY)
    assert store.load("k") == ENTRY


def test_a_folder_that_cannot_be_written_falls_back_to_memory_with_one_warning(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = CubinStore(tmp_path / "file" / "cache")
    with pytest.warns(RuntimeWarning, match="FLASHMLA_HUB_CACHE_DIR"):
        store.save("k", ENTRY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.save("k2", ENTRY)
    assert store.load("k") == ENTRY
    store.discard("k")
    assert store.load("k") is None


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
    for moment_ms in (0, 3, 11, 23):
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
        whole_or_absent = not store.path("k").exists() or store.load("k") == ENTRY
        assert whole_or_absent, f"killed after {moment_ms} ms"


def test_two_processes_writing_one_entry_never_show_half_of_it(tmp_path: Path) -> None:
    code = """
        for _ in range(100):
            store.save("k", entry)
            assert store.load("k") == entry
        """
    children = [run_python(code, str(tmp_path)) for _ in range(2)]
    store = CubinStore(tmp_path)
    seen = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(child.poll() is None for child in children):
            if store.path("k").exists():
                assert store.load("k") == ENTRY
                seen += 1
    assert [child.returncode for child in children] == [0, 0]
    assert seen
    assert [p.name for p in tmp_path.iterdir()] == ["k.cubin"]

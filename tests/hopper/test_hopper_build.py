"""From a unit to a loaded cubin: the order of sources, and what happens when one fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flashmla_hub.backends.hopper import aot
from flashmla_hub.backends.hopper.build import Builder, BuildError, cache_key
from flashmla_hub.backends.hopper.compilers import (
    Compiled,
    CompileError,
    Nvcc,
    Nvrtc,
    version_note,
    version_reason,
)
from flashmla_hub.backends.hopper.driver import CubinRefused
from flashmla_hub.backends.hopper.entry import Entry, encode
from flashmla_hub.backends.hopper.store import CubinStore
from flashmla_hub.backends.hopper.units import Unit, source_closure

UNIT = Unit("test", "a/kernel.cu", ("VALUE=2",), ("kernel",))


class FakeCompiler:
    spills = ""

    def __init__(self, name: str, version: str = "1", works: bool = True) -> None:
        self.name, self.fingerprint, self.works, self.calls = name, f"{name} {version}", works, 0

    def compile(self, unit: Unit, root: Path) -> Compiled:
        self.calls += 1
        if not self.works:
            raise CompileError(f"{self.name} found an error in {unit.source}")
        return Compiled(f"{self.fingerprint} {unit.digest(root)}".encode(), "")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    root = tmp_path / "csrc"
    (root / "a").mkdir(parents=True)
    (root / "a/kernel.cu").write_text(
        '#include "near.h"\n#include "common.h"\n#include <toolkit.h>\n'
        'extern "C" __global__ void kernel(int* p) { *p = VALUE + NEAR + COMMON; }\n'
    )
    (root / "a/near.h").write_text('#pragma once\n  #  include "../common.h"\n#define NEAR 1\n')
    (root / "common.h").write_text("#pragma once\n#define COMMON 1\n")
    (root / "unrelated.h").write_text("#define UNRELATED 1\n")
    return root


def builder(root: Path, cache: Path, *compilers: Any, reasons: tuple[str, ...] = ()) -> Builder:
    store = CubinStore(cache / "cache")
    return Builder(store, cache / "aot", root, lambda: (list(compilers), list(reasons)))


def test_closure_holds_each_quoted_include_of_the_tree_once(sources: Path) -> None:
    assert source_closure("a/kernel.cu", sources) == ("a/kernel.cu", "a/near.h", "common.h")


@pytest.mark.parametrize("changed", ["a/kernel.cu", "a/near.h", "common.h"])
def test_any_included_file_changes_the_digest(sources: Path, changed: str) -> None:
    before = _fresh_digest(UNIT, sources)
    with (sources / changed).open("a") as file:
        file.write("// touched\n")
    assert _fresh_digest(UNIT, sources) != before


def test_defines_and_arch_change_the_digest_and_unrelated_files_do_not(sources: Path) -> None:
    before = _fresh_digest(UNIT, sources)
    (sources / "unrelated.h").write_text("// touched\n")
    assert _fresh_digest(UNIT, sources) == before
    assert _fresh_digest(Unit("test", UNIT.source, ("VALUE=3",)), sources) != before
    assert _fresh_digest(Unit("test", UNIT.source, UNIT.defines, (), "sm_100a"), sources) != before


def _fresh_digest(unit: Unit, root: Path) -> str:
    from flashmla_hub.backends.hopper import units

    units._digest.cache_clear()  # a process reads its sources once
    return unit.digest(root)


def test_compiled_once_then_loaded_from_disk_by_any_process(sources: Path, tmp_path: Path) -> None:
    first, second = FakeCompiler("nvrtc"), FakeCompiler("nvrtc")
    loaded, origin = builder(sources, tmp_path, first).load(UNIT, bytes)
    assert (origin.source, first.calls) == ("nvrtc", 1)
    again, origin = builder(sources, tmp_path, second).load(UNIT, bytes)
    assert (again, origin.source, second.calls) == (loaded, "disk", 0)
    assert origin.compile_s == 0.0


def test_another_compiler_version_compiles_again(sources: Path, tmp_path: Path) -> None:
    builder(sources, tmp_path, FakeCompiler("nvrtc", "13.0")).load(UNIT, bytes)
    newer = FakeCompiler("nvrtc", "13.1")
    _, origin = builder(sources, tmp_path, newer).load(UNIT, bytes)
    assert (origin.source, newer.calls) == ("nvrtc", 1)


def write_aot(folder: Path, unit: Unit, root: Path, cubin: bytes = b"aot cubin") -> None:
    digest = unit.digest(root)
    folder.mkdir(parents=True, exist_ok=True)
    data = encode(digest, Entry(unit.name, digest, "nvcc 13.0", cubin))
    (folder / f"{digest}.cubin").write_bytes(data)


def test_ahead_of_time_comes_before_the_compilers_and_after_the_disk(
    sources: Path, tmp_path: Path
) -> None:
    nvrtc = FakeCompiler("nvrtc")
    write_aot(tmp_path / "aot", UNIT, sources)
    loaded, origin = builder(sources, tmp_path, nvrtc).load(UNIT, bytes)
    assert (loaded, origin.source, nvrtc.calls) == (b"aot cubin", "aot", 0)
    CubinStore(tmp_path / "cache").save(
        cache_key(UNIT.digest(sources), nvrtc.fingerprint),
        Entry(UNIT.name, UNIT.digest(sources), nvrtc.fingerprint, b"disk cubin"),
    )
    loaded, origin = builder(sources, tmp_path, nvrtc).load(UNIT, bytes)
    assert (loaded, origin.source) == (b"disk cubin", "disk")


def test_a_cubin_of_older_sources_is_not_taken(sources: Path, tmp_path: Path) -> None:
    write_aot(tmp_path / "aot", UNIT, sources)
    (sources / "common.h").write_text("#define COMMON 7\n")
    _fresh_digest(UNIT, sources)
    _, origin = builder(sources, tmp_path, FakeCompiler("nvrtc")).load(UNIT, bytes)
    assert origin.source == "nvrtc"


def test_nvcc_serves_where_nvrtc_fails(sources: Path, tmp_path: Path) -> None:
    nvrtc, nvcc = FakeCompiler("nvrtc", works=False), FakeCompiler("nvcc")
    _, origin = builder(sources, tmp_path, nvrtc, nvcc).load(UNIT, bytes)
    assert origin.source == "nvcc"
    assert any("nvrtc found an error" in note for note in origin.notes)


def test_a_refused_cubin_falls_to_the_next_source_once_and_says_so(
    sources: Path, tmp_path: Path
) -> None:
    write_aot(tmp_path / "aot", UNIT, sources)
    nvrtc, nvcc = FakeCompiler("nvrtc"), FakeCompiler("nvcc")
    build = builder(sources, tmp_path, nvrtc, nvcc)
    build.load(UNIT, bytes)  # aot is taken; now put a bad entry on disk
    key = cache_key(UNIT.digest(sources), nvrtc.fingerprint)
    build.store.save(key, Entry(UNIT.name, UNIT.digest(sources), nvrtc.fingerprint, b"bad"))
    tried: list[bytes] = []

    def load(cubin: bytes) -> bytes:
        tried.append(cubin)
        if cubin in (b"bad", b"aot cubin"):
            raise CubinRefused("cuModuleLoadData", "CUDA_ERROR_NO_BINARY_FOR_GPU", 209)
        return cubin

    _, origin = build.load(UNIT, load)
    assert tried[:2] == [b"bad", b"aot cubin"]
    assert len(tried) == 3
    assert origin.source == "nvrtc"
    assert len(origin.notes) == 2
    assert all("CUDA_ERROR_NO_BINARY_FOR_GPU" in note for note in origin.notes)
    reloaded, origin = builder(sources, tmp_path, nvrtc).load(UNIT, load)
    assert (reloaded, origin.source, origin.notes) == (tried[2], "disk", ())


def test_when_nothing_works_the_error_names_every_attempt(sources: Path, tmp_path: Path) -> None:
    build = builder(
        sources, tmp_path, FakeCompiler("nvrtc", works=False), reasons=("nvcc: not on PATH",)
    )
    with pytest.raises(BuildError, match=r"nvrtc found an error.*nvcc: not on PATH"):
        build.load(UNIT, bytes)


def test_an_error_of_the_driver_that_is_no_refusal_is_not_hidden(
    sources: Path, tmp_path: Path
) -> None:
    def load(cubin: bytes) -> bytes:
        raise MemoryError

    nvrtc, nvcc = FakeCompiler("nvrtc"), FakeCompiler("nvcc")
    with pytest.raises(MemoryError):
        builder(sources, tmp_path, nvrtc, nvcc).load(UNIT, load)
    assert nvcc.calls == 0
    assert not list((tmp_path / "cache").glob("*.cubin")), "saved only what has been loaded"


def test_threads_compile_a_unit_once(sources: Path, tmp_path: Path) -> None:
    nvrtc = FakeCompiler("nvrtc")
    build = builder(sources, tmp_path, nvrtc)
    threads = [threading.Thread(target=build.load, args=(UNIT, bytes)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nvrtc.calls == 1


def test_old_compilers_are_refused_by_version() -> None:
    assert version_reason("NVRTC", (12, 4)) is None
    reason = version_reason("NVRTC", (12, 3))
    assert reason is not None
    assert "12.3" in reason
    assert "12.4" in reason


@pytest.mark.parametrize("version", [(12, 4), (12, 8), (13, 0), (13, 3), (13, 5), (14, 0)])
def test_every_version_from_12_4_on_is_taken_and_what_is_known_against_it_is_said(
    version: tuple[int, int],
) -> None:
    assert version_reason("NVRTC", version) is None
    clean = (12, 8) <= version < (13, 4)
    assert ("spills some registers" in version_note(version)) is not clean


def test_a_version_that_spills_comes_after_every_other_source_and_says_so(
    sources: Path, tmp_path: Path
) -> None:
    spilling, nvcc = FakeCompiler("nvrtc", "13.5"), FakeCompiler("nvcc")
    spilling.spills = version_note((13, 5))
    _, origin = builder(sources, tmp_path / "1", spilling, nvcc).load(UNIT, bytes)
    assert (origin.source, origin.notes) == ("nvcc", ())
    write_aot(tmp_path / "2" / "aot", UNIT, sources)
    _, origin = builder(sources, tmp_path / "2", spilling).load(UNIT, bytes)
    assert (origin.source, origin.notes) == ("aot", ())
    for source in ("nvrtc", "disk"):
        _, origin = builder(sources, tmp_path / "3", spilling).load(UNIT, bytes)
        assert origin.source == source
        (note,) = origin.notes
        assert "nvrtc 13.5 spills some registers" in note
        assert "pip install 'nvidia-cuda-nvrtc<13.4'" in note


def test_ranks_that_start_together_compile_once(sources: Path, tmp_path: Path) -> None:
    """Builders of their own, as processes have them: only the file lock is between them."""

    class Slow(FakeCompiler):
        def compile(self, unit: Unit, root: Path) -> Compiled:
            time.sleep(0.3)
            return super().compile(unit, root)

    ranks = [Slow("nvrtc") for _ in range(4)]
    threads = [
        threading.Thread(target=builder(sources, tmp_path, rank).load, args=(UNIT, bytes))
        for rank in ranks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(rank.calls for rank in ranks) == 1


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_a_killed_build_leaves_no_compiler_behind(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    shell = f"sleep 300 & echo $! >> {pids}; echo $$ >> {pids}; wait"
    code = (
        "from flashmla_hub.backends.hopper.compilers import run_to_the_end;"
        f"run_to_the_end(['sh', '-c', {shell!r}])"
    )
    build = subprocess.Popen([sys.executable, "-c", code])
    alive: list[int] = []
    deadline = time.monotonic() + 60
    while len(alive) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
        alive = [int(line) for line in pids.read_text().split()] if pids.exists() else []
    assert len(alive) == 2
    build.kill()
    build.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in alive) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in alive if running(pid)]


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def compiler(kind: type) -> Any:
    """That compiler of this machine."""
    try:
        return Nvrtc() if kind is Nvrtc else Nvcc(Nvcc.find() or "nvcc")
    except Exception as error:
        pytest.skip(f"{kind.__name__}: {error}")


@pytest.mark.parametrize("kind", [Nvrtc, Nvcc])
def test_real_compilers_make_a_cubin_and_report_errors(kind: type, sources: Path) -> None:
    real = compiler(kind)
    (sources / "a/kernel.cu").write_text(
        (sources / "a/kernel.cu").read_text().replace("#include <toolkit.h>", "")
    )
    made = real.compile(UNIT, sources)
    assert made.cubin.startswith(b"\x7fELF")
    assert "0 bytes spill stores" in made.log
    with pytest.raises(CompileError, match="VALUE"):
        real.compile(Unit("no-value", UNIT.source), sources)


def test_ahead_of_time_build_is_found_by_the_builder(sources: Path, tmp_path: Path) -> None:
    compiler(Nvcc)
    (sources / "a/kernel.cu").write_text(
        (sources / "a/kernel.cu").read_text().replace("#include <toolkit.h>", "")
    )
    units = [UNIT, Unit("test-3", UNIT.source, ("VALUE=3",))]
    _fresh_digest(UNIT, sources)
    try:
        made = aot.build(tmp_path / "aot", units, sources)
    except CompileError as error:
        pytest.skip(str(error))
    assert len(made) == 2
    for unit in units:
        cubin, origin = builder(sources, tmp_path).load(unit, bytes)
        assert origin.source == "aot"
        assert cubin.startswith(b"\x7fELF")
    assert sorted(p.suffix for p in (tmp_path / "aot").iterdir()) == [".cubin", ".cubin"]

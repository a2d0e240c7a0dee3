"""Code written for FlashMLA runs unchanged; a real flash_mla is not taken over in silence."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from core_helpers import dense

import flashmla_hub as hub
from flashmla_hub import drop_in, foreign

ROOT = Path(hub.__file__).resolve().parents[1]


@pytest.fixture
def installed():
    drop_in.install()
    yield
    drop_in.uninstall()


CALLERS = """
from flash_mla import get_mla_metadata, flash_mla_with_kvcache

def positional(q, kv, table, lens, dv, h_kv):
    s_q, h_q = q.shape[1:3]
    tile_scheduler_metadata, num_splits = get_mla_metadata(lens, s_q * h_q // h_kv, h_kv)
    return flash_mla_with_kvcache(
        q, kv, table, lens, dv, tile_scheduler_metadata, num_splits, causal=True)

def keyword(q, kv, table, lens, dv, h_kv):
    meta, splits = get_mla_metadata(
        cache_seqlens=lens, num_q_tokens_per_head_k=q.shape[1] * q.shape[2], num_heads_k=h_kv)
    return flash_mla_with_kvcache(
        q=q, k_cache=kv, block_table=table, cache_seqlens=lens, head_dim_v=dv,
        tile_scheduler_metadata=meta, num_splits=splits, softmax_scale=None, causal=True)

def without(q, kv, table, lens, dv, h_kv):
    meta, _ = get_mla_metadata()
    return flash_mla_with_kvcache(q, kv, table, lens, dv, meta, None, None, True)
"""


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("form", ["positional", "keyword", "without"])
def test_callers_of_each_generation_run_unchanged(form):
    code: dict = {}
    exec(CALLERS, code)
    args = dense(s_q=2)
    out, lse = code[form](*args.values(), 1)
    want = hub.flash_mla_with_kvcache(**args, causal=True)
    assert torch.equal(out, want[0])
    assert torch.equal(lse, want[1])


@pytest.mark.usefixtures("installed")
def test_every_published_name_is_there_and_refuses_when_called_not_when_imported():
    import flash_mla
    import flash_mla.flash_mla_interface as interface
    from flash_mla import FlashMLASchedMeta, flash_attn_varlen_func
    from flash_mla.flash_mla_interface import flash_mla_sparse_fwd

    assert FlashMLASchedMeta is hub.SchedMeta
    assert flash_mla.__version__ == hub.__version__
    assert flash_mla_sparse_fwd is hub.flash_mla_sparse_fwd
    assert interface.get_mla_metadata is flash_mla.get_mla_metadata
    for name in ("flash_attn_varlen_qkvpacked_func", "flash_mla_with_kvcache_fp8"):
        with pytest.raises(hub.NotSupportedError, match=name):
            getattr(flash_mla, name)(1, key=2)
    with pytest.raises(hub.NotSupportedError):
        flash_attn_varlen_func()
    with pytest.raises(AttributeError):
        flash_mla.never_published  # noqa: B018


def test_installing_twice_and_uninstalling():
    drop_in.install()
    drop_in.install()
    import flash_mla

    assert getattr(flash_mla, foreign.DROP_IN_MARK)
    drop_in.uninstall()
    assert "flash_mla" not in sys.modules


def real_package(folder: Path) -> Path:
    """A flash_mla that imports itself absolutely, at import and later."""
    package = folder / "flash_mla"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from flash_mla.inner import VALUE\nimport flash_mla.inner as inner\n"
        "def late():\n    from flash_mla import inner as again\n    return again.VALUE\n"
    )
    (package / "inner.py").write_text("import flash_mla\nVALUE = 'real'\n")
    return folder


def run(folder: Path, code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder,
        env={"PYTHONPATH": f"{real_package(folder / 'site')}:{ROOT}", "PATH": "/usr/bin"},
    )  # fmt: skip


def test_a_real_flash_mla_that_is_imported_already_is_not_replaced(tmp_path):
    done = run(tmp_path, "import flash_mla, flashmla_hub.drop_in as d; d.install()")
    assert done.returncode != 0
    assert "flash_mla is imported already" in done.stderr
    assert "before the first `import flash_mla`" in done.stderr


@pytest.mark.parametrize("order", ["before", "after", "threads"])
def test_foreign_load_reaches_the_real_package_beside_the_drop_in(tmp_path, order):
    steps = {
        "before": "d.install(); import flash_mla as stand_in; real = f.load('flash_mla')",
        "after": "real = f.load('flash_mla'); f.hide('flash_mla'); d.install();"
                 "import flash_mla as stand_in",
        "threads": "d.install(); import flash_mla as stand_in; import threading; got = [];"
                   "ts = [threading.Thread(target=lambda: got.append(f.load('flash_mla')))"
                   " for _ in range(2)]; [t.start() for t in ts]; [t.join() for t in ts];"
                   "real, other = got; assert real is other",
    }  # fmt: skip
    done = run(
        tmp_path,
        "import flashmla_hub.drop_in as d, flashmla_hub.foreign as f, flashmla_hub as hub;"
        + steps[order]
        + "; assert real.late() == 'real' == real.VALUE;"
        "assert stand_in.get_mla_metadata is hub.get_mla_metadata; import flash_mla;"
        "assert flash_mla is stand_in; print('fine')",
    )
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.usefixtures("installed")
def test_importing_on_two_threads():
    found = []

    def imports():
        import flash_mla

        found.append(flash_mla)

    threads = [threading.Thread(target=imports) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert found[0] is found[1]

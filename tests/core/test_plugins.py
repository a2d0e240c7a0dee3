"""Hostile plugins: each is quarantined or reported, and every other backend is still served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from core_helpers import Narrow, dense, sparse

import flashmla_hub as hub
from flashmla_hub import KernelKey, config, identify, loading, plugins, registry
from flashmla_hub.backend import BoundKernel
from flashmla_hub.call import CALLS, DenseDecode
from flashmla_hub.capabilities import ANY
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.testing import bind_unchecked, registered

ROOT = Path(hub.__file__).resolve().parents[1]

GOOD = """
from flashmla_hub import hookimpl
from flashmla_hub.backend import Backend, BackendInfo
from flashmla_hub.capabilities import Capabilities
FLASHMLA_HUB_PROTOCOL = 1

class Good(Backend):
    name = "NAME"
    info = BackendInfo(summary="good")
    def capabilities(self, device):
        return (Capabilities(),)
    def bind(self, key, device):
        raise RuntimeError("never called")

@hookimpl
def flashmla_hub_backends():
    return [Good()]
"""

# Judged by the child process
HOSTILE = {
    "raises": ("raise ValueError('broken wheel')", "broken wheel"),
    "exits": ("import sys; sys.exit(3)", "ended with 3"),
    "crashes": ("import os; os.abort()", "ended with -6"),
    "absent": (None, "No module named"),
    "nohook": ("FLASHMLA_HUB_PROTOCOL = 1", "no hook found"),
    "good": (GOOD.replace("NAME", "good_one"), None),
}
# Judged by the host
BAD = {
    "raises": ("raise ValueError('broken wheel')", "ValueError: broken wheel"),
    "exits": ("raise SystemExit(3)", "import raised SystemExit: 3"),
    "interrupts": ("raise KeyboardInterrupt", "import raised KeyboardInterrupt"),
    "own": ("class E(BaseException): pass\nraise E('x')", "import raised E: x"),
    "hangs": ("import time; time.sleep(60)", "import did not finish in 0.5 s"),
    "spins": ("while True: pass", "import did not finish in 0.5 s"),
    "silent": ("x = 1", "FLASHMLA_HUB_PROTOCOL is None"),
    "old": (GOOD.replace("PROTOCOL = 1", "PROTOCOL = 0"), "plugin protocol 0, accepted 1.."),
    "future": (GOOD.replace("PROTOCOL = 1", "PROTOCOL = 99"), "upgrade flashmla-hub"),
    "huge": (GOOD.replace("PROTOCOL = 1", "PROTOCOL = 10**5000"), "plugin protocol"),
    "getattr": (
        "def __getattr__(name):\n    raise ImportError(name)",
        "FLASHMLA_HUB_PROTOCOL raised ImportError",
    ),
    "badhook": (GOOD.replace("backends()", "backends(query, colour)"), "bad hook"),
    "unknownhook": (GOOD + "\n@hookimpl\ndef flashmla_hub_dance():\n    return 1\n", "bad hook"),
    "nohook": ("FLASHMLA_HUB_PROTOCOL = 1", "no hook found"),
    "badname": (GOOD.replace('"NAME"', '"Not A Name"'), "expected [a-z]"),
    "noname": (GOOD.replace('name = "NAME"', "name = property(lambda s: 1 / 0)"), "ZeroDivision"),
    "takenname": (GOOD.replace('"NAME"', '"torch"'), "duplicate name"),
    "twice": (GOOD.replace("[Good()]", "[Good(), Good()]").replace("NAME", "a"), "duplicate name"),
    "notabackend": (GOOD.replace("[Good()]", "[object()]"), "expected a Backend"),
    "noiterable": (GOOD.replace("[Good()]", "7"), "expected an iterable"),
    "raisinghook": (GOOD.replace("return [Good()]", "return 1 / 0"), "ZeroDivisionError"),
    "exitinghook": (GOOD.replace("return [Good()]", "raise SystemExit(0)"), "raised SystemExit: 0"),
    "generator": (GOOD.replace("return [", "1 / 0\n    yield from ["), "ZeroDivisionError"),
    "endless": (
        GOOD.replace("return [Good()]", "while True:\n        yield Good()").replace("NAME", "a"),
        "duplicate name",
    ),
    "noinfo": (
        GOOD.replace('BackendInfo(summary="good")', "None").replace("NAME", "a"),
        "expected text and a Backend",
    ),
    "asks": (GOOD + "\nimport flashmla_hub\nflashmla_hub.backends.reload()\n", "import raised"),
}


def install(folder: Path, name: str, source: str | None, dist: str | None = None) -> None:
    """A distribution's metadata and module, as pip would lay them out."""
    dist = dist or f"hub-{name}"
    info = folder / f"{dist.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[flashmla_hub.backends]\n{name} = plug_{name}\n")
    if source is not None:
        (folder / f"plug_{name}.py").write_text(textwrap.dedent(source))


def statuses(folder: Path, cache: Path, **env: str) -> dict[str, tuple[str, str]]:
    """{name: (status, reason)} as a fresh process sees them."""
    done = subprocess.run(
        [sys.executable, "-m", "flashmla_hub", "backends", "--json"],
        capture_output=True, text=True, check=False, timeout=110, cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
             "FLASHMLA_HUB_CACHE_DIR": str(cache), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {b["name"]: (b["status"], b["reason"]) for b in json.loads(done.stdout)}


def test_each_hostile_plugin_is_quarantined_and_the_rest_is_served(tmp_path):
    folder, cache = tmp_path / "site", tmp_path / "cache"
    for name, (source, _) in HOSTILE.items():
        install(folder, name, source)
    found = statuses(folder, cache, FLASHMLA_HUB_PLUGIN_TIMEOUT="90")
    for name, (_, reason) in HOSTILE.items():
        if reason is not None:
            assert found[name][0] == "quarantined", name
            assert reason in found[name][1], (name, found[name][1])
    assert found["good_one"][0] == "ready"
    assert found["torch"][0] == "ready"


@pytest.mark.parametrize("name", BAD)
def test_whatever_a_plugin_does_in_the_host_is_a_reason(tmp_path, monkeypatch, name):
    source, reason = BAD[name]
    (tmp_path / f"plug_bad_{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = plugins.Found(name, f"plug_bad_{name}", "hub-bad")
    before = registry.state()
    limit = 0.5 if "finish" in reason else 30.0
    with config.override(plugin_timeout=limit), pytest.raises(hub.PluginError) as caught:
        loading.Builder(before).add(found, plugins.load(found))
    assert reason in str(caught.value), caught.value
    assert len(str(caught.value)) < 1000
    assert registry.state() is before


def identifier(answer):
    """A plugin with an identification rule only."""

    @hub.hookimpl
    def flashmla_hub_identify_device(probe):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return SimpleNamespace(flashmla_hub_identify_device=flashmla_hub_identify_device)


def test_two_rules_that_claim_one_device_are_an_error_naming_both():
    claim = DeviceInfo(vendor="acme", arch="", type="warp")
    with (
        registered(identifier(claim), "acme_rule"),
        registered(identifier(claim), "zeta_rule"),
        pytest.raises(hub.DeviceConflictError, match=r"acme_rule.*zeta_rule"),
    ):
        identify.ask_rules(DeviceProbe(type="warp"))


def test_a_rule_that_claims_every_device_loses_to_a_built_in_rule_and_is_named():
    claim = DeviceInfo(vendor="acme", arch="", type="cpu")
    with registered(identifier(claim), "acme_rule"):
        assert identify.ask_rules(DeviceProbe(type="cpu")).vendor == "cpu"
        assert identify.ask_rules(DeviceProbe(type="warp")).vendor == "acme"
        out, _ = hub.flash_mla_with_kvcache(**dense())
        assert out.isfinite().all()
        (told,) = [b for b in hub.backends() if b.name == "acme_rule"]
        assert "it claims cpu:0 as acme" in told.reason
        assert "device_cpu" in told.reason


@pytest.mark.parametrize("answer", [ValueError("no driver"), "a string"])
def test_a_rule_that_raises_or_answers_nonsense_is_quarantined(answer):
    with registered(identifier(answer), "bad_rule"):
        assert identify.ask_rules(DeviceProbe(type="cpu")).vendor == "cpu"
        entry = registry.state().quarantined[-1]
        assert entry.name == "bad_rule"
        assert "identify" in entry.reason
    assert all(q.name != "bad_rule" for q in registry.state().quarantined)


def test_an_unknown_device_is_said_to_be_unknown_with_what_was_seen():
    fake = SimpleNamespace(version=SimpleNamespace(cuda="12.4"))
    found = identify.ask_rules(DeviceProbe(type="warp", torch=fake))
    assert found.vendor == "unknown"
    assert "type=warp" in found.rule
    assert "torch.version.cuda=12.4" in found.rule


class RaisesInBind(Narrow):
    def bind(self, key, device):
        raise OSError("driver went away")


def test_raising_in_bind_quarantines_and_the_next_backend_serves():
    with registered(RaisesInBind("broken", rank=99)):
        out, _ = hub.flash_mla_with_kvcache(**dense())
        assert out.isfinite().all()
        status = {b.name: b for b in hub.backends()}["broken"]
        assert status.status == "quarantined"
        assert "bind raised OSError: driver went away" in status.reason
        with pytest.raises(hub.PluginError, match="driver went away"):
            hub.flash_mla_with_kvcache(**dense(), backend="broken")


def test_raising_in_bind_under_an_explicit_choice_never_falls_back():
    with (
        registered(RaisesInBind("broken", rank=99)),
        pytest.raises(hub.PluginError, match="driver went away"),
    ):
        hub.flash_mla_with_kvcache(**dense(), backend="broken")


class Liar(Narrow):
    def bind(self, key, device):
        raise hub.NotSupportedError(self.name, "h_q", key.h_q, "16")


def test_refusing_what_it_claims_is_reported_and_the_next_backend_serves():
    with registered(Liar("liar", rank=99)):
        hub.flash_mla_with_kvcache(**dense(seed=5))
        with pytest.raises(hub.NotSupportedError, match="liar"):
            hub.flash_mla_with_kvcache(**dense(seed=5), backend="liar")


@pytest.mark.parametrize("declared", [None, ("nonsense",), 7])
def test_a_declaration_of_nonsense_is_quarantined(declared):
    class Nonsense(Narrow):
        def capabilities(self, device):
            return declared

    with registered(Nonsense("nonsense")):
        assert hub.explain(hub.KernelKey()).selected == "torch"
        assert {b.name: b.status for b in hub.backends()}["nonsense"] == "quarantined"


def test_bind_must_return_a_bound_kernel():
    class Wrong(Narrow):
        def bind(self, key, device):
            return lambda: None

    with registered(Wrong("wrong")), pytest.raises(hub.PluginError, match="expected a BoundKernel"):
        hub.flash_mla_with_kvcache(**dense(), backend="wrong")


def test_the_installed_entry_points_are_the_table_of_builtins():
    from importlib.metadata import PackageNotFoundError, distribution

    from flashmla_hub.backends import BUILTINS

    try:
        found = distribution("flashmla-hub").entry_points
    except PackageNotFoundError:
        pytest.skip("runs from a checkout that is not installed: there are no entry points")
    ours = {ep.name: ep.value for ep in found if ep.group == "flashmla_hub.backends"}
    assert ours == BUILTINS


class Positional(BoundKernel):
    """A kernel of plugin protocol 1."""

    plans = True

    def __init__(self, key):
        self.kernel, self.key = hub.get_backend("torch").bind(key, hub.devices()[0]), key

    def plan(self, block_table, cache_seqlens):
        return "a plan"

    def run(self, *args):
        seen.append(args)
        call = CALLS[self.key.op](*args)
        return self.kernel.run(call._replace(plan=None))


seen = []


class Old(Narrow):
    def bind(self, key, device):
        return Positional(key)


class OldPlugin:
    FLASHMLA_HUB_PROTOCOL = 1

    @hub.hookimpl
    def flashmla_hub_backends(self, query):
        wide = {"topk": ANY, "topk_length": True, "attn_sink": True, "extra_topk": ANY,
                "extra_page_block_size": ANY, "extra_topk_length": True}  # fmt: skip
        return [
            Old("old"), Old("old_sparse", op="sparse_decode", **wide),
            Old("old_prefill", op="sparse_prefill", topk=ANY),
        ]  # fmt: skip


def test_plugins_of_protocol_1_get_their_arguments_by_position():
    args, lists = dense(), sparse()
    lists |= {"extra_k_cache": lists["k_cache"], "extra_indices_in_kvcache": lists["indices"]}
    rows = (lists["q"][:, 0], lists["k_cache"].view(-1, 1, 576), lists["indices"], 0.05)
    calls = (
        lambda **more: hub.flash_mla_with_kvcache(**args, **more),
        lambda **more: hub.flash_mla_with_kvcache(**lists, **more),
        lambda **more: hub.flash_mla_sparse_fwd(*rows, **more),
    )
    with registered(OldPlugin()):
        for call, name, count in zip(
            calls, ("old", "old_sparse", "old_prefill"), (8, 12, 10), strict=True
        ):
            seen.clear()
            for got, want in zip(call(backend=name), call(backend="torch"), strict=True):
                assert torch.equal(got, want), name
            (given,) = seen
            assert len(given) == count
            assert given[-1] == (None if name == "old_prefill" else "a plan")
        meta, _ = hub.get_mla_metadata()
        for _ in range(2):
            got = calls[0](backend="old", tile_scheduler_metadata=meta)
            assert torch.equal(got[0], calls[0]()[0])
    key = KernelKey(h_q=4, dtype="float32", page_block_size=8)
    with registered(OldPlugin()):
        bind_unchecked("old", key).run(DenseDecode(*list(args.values())[:4], 0.05))

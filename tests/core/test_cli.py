"""The command line: what people and programs see, and the exit codes."""

from __future__ import annotations

import json

import pytest
import torch
from core_helpers import dense

from flashmla_hub import cli
from flashmla_hub.cli import new_backend


def run(capsys, *words):
    code = cli.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_without_a_command_help_is_shown(capsys):
    code, out, _ = run(capsys)
    assert code == 2
    for command in cli.COMMANDS:
        assert command in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_unknown_options_are_wrong_use(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["explain", "--colour", "red"])
    assert stop.value.code == 2


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert "flashmla-hub 0." in capsys.readouterr().out


def test_devices(capsys):
    code, out, _ = run(capsys, "devices", "--json")
    assert code == 0
    assert json.loads(out)[0]["vendor"] == "cpu"
    assert run(capsys, "devices")[0] == 0


def test_backends(capsys):
    code, out, _ = run(capsys, "backends", "--json")
    found = {b["name"]: b for b in json.loads(out)}
    assert code == 0
    assert found["torch"]["status"] == "ready"
    assert all(b["status"] == "ready" or b["reason"] for b in found.values())
    assert found["torch"]["limits"]
    assert "torch" in run(capsys, "backends")[1]
    assert "sparse prefill" in run(capsys, "backends", "--limits")[1]


def test_explain_json_has_the_documented_form(capsys):
    code, out, _ = run(capsys, "explain", "--device", "amd:gfx942", "--h-q", "12", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["selected"] in {c["backend"] for c in data["candidates"]}
    for candidate in data["candidates"]:
        assert {"backend", "accepted", "rank", "reasons", "rewrites"} <= set(candidate)
        assert candidate["accepted"] == (not candidate["reasons"])


def test_explain_shows_reasons_of_who_refuses(capsys):
    words = ("--device", "nvidia:sm_90", "--page-size", "3", "--dtype", "float32")
    code, out, _ = run(capsys, "explain", *words)
    assert code == 0
    assert "refused" in out


def test_explain_exits_1_where_nobody_serves(capsys):
    code, out, _ = run(capsys, "explain", "--backend", "hopper", "--dtype", "float32", "--json")
    assert code == 1
    assert json.loads(out)["selected"] is None


@pytest.mark.parametrize(
    "words",
    [
        ("--h-q", "12", "--h-kv", "5"),
        ("--h-q", "0"),
        ("--d-qk", "100"),
        ("--topk", "8", "--causal"),
        ("--attn-sink",),
        ("--kv-format", "v41"),
        ("--device", "no such device!"),
        ("--backend", "nothing"),
    ],
)
def test_explain_wrong_use(capsys, words):
    code, _, err = run(capsys, "explain", *words)
    assert code in (1, 2)
    assert "expected" in err or "accepted" in err


@pytest.mark.parametrize(
    "words",
    [
        ("--topk", "2048", "--kv-format", "v32", "--topk-length"),
        ("--op", "sparse_prefill", "--topk", "64"),
        ("--s-q", "4", "--causal", "--batch-invariant"),
        ("--topk", "64", "--extra-topk", "8", "--attn-sink"),
    ],
)
def test_explain_takes_every_shape(capsys, words):
    assert run(capsys, "explain", *words, "--json")[0] in (0, 1)


def test_doctor(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert {"flashmla_hub", "packages", "torch", "settings", "devices", "backends"} <= set(facts)
    assert "## backends" in run(capsys, "doctor")[1]


@pytest.mark.parametrize("name", ["Acme", "1st", "with-dash", "class", "torch", ""])
def test_new_backend_refuses_names_that_cannot_be(capsys, tmp_path, name):
    code, _, err = run(capsys, "new-backend", name, "--dir", str(tmp_path))
    assert code == 2
    assert "expected" in err
    assert not list(tmp_path.iterdir())


def test_new_backend_never_overwrites(capsys, tmp_path):
    assert run(capsys, "new-backend", "acme", "--dir", str(tmp_path))[0] == 0
    code, _, err = run(capsys, "new-backend", "acme", "--dir", str(tmp_path))
    assert code == 2
    assert "does not exist yet" in err


def test_new_backend_writes_a_plugin_that_is_chosen_for_its_device(tmp_path, monkeypatch):
    import importlib

    import flashmla_hub as hub
    from flashmla_hub.testing import registered

    target = new_backend.write("acme_two", tmp_path)
    monkeypatch.syspath_prepend(str(target / "src"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0")
    plugin = importlib.import_module("flashmla_hub_acme_two.plugin")
    with registered(plugin, "acme_two"):
        assert hub.explain(hub.KernelKey(h_q=16), device="acme_two").selected == "acme_two"
        assert hub.explain(hub.KernelKey(h_q=16)).selected == "torch"
        args = dense(page=64, dtype=torch.bfloat16)
        with pytest.raises(hub.NotSupportedError, match="not written yet"):
            hub.flash_mla_with_kvcache(**args, backend="acme_two")

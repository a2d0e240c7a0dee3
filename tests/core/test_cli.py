"""The command line: what people and programs see, and the exit codes."""

from __future__ import annotations

import io
import json

import pytest
import torch
from core_helpers import dense

import flashmla_hub as hub
from flashmla_hub import cli
from flashmla_hub.cli import new_backend


def run(capsys, *words):
    try:
        code = cli.main(words)
    except SystemExit as stop:  # argparse
        code = stop.code
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
    assert "h_q" not in out.splitlines()[0]
    assert "almost" in out
    assert "dtype=float32: takes bfloat16" in out
    assert "amd (gfx942" not in out  # other devices are named in one line
    assert "amd (gfx942" in run(capsys, "explain", *words, "--all")[1]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--device", "nvidia:sm_90", "--page-size", "3", "--dtype", "float32"),
        ("--device", "nvidia:sm_90", "--backend", "amd"),
        ("--device", "metax:xcore1000", "--topk", "64"),
    ],
)
def test_explain_fits_a_small_terminal(monkeypatch, words):
    """80 columns, 24 rows: the answer, its reason and who is left are seen without scrolling."""
    from rich.console import Console

    from flashmla_hub.cli import explain

    made = []

    def small(**options):
        made.append(Console(width=80, height=24, force_terminal=True, color_system=None,
                            record=True, file=io.StringIO()))  # fmt: skip
        return made[-1]

    monkeypatch.setattr(explain, "Console", small)
    assert cli.main(["explain", *words]) in (0, 1)
    shown = made[0].export_text().splitlines()
    assert len(shown) <= 23
    assert shown[0].startswith("selected ")
    assert "others" in "".join(line[:9] for line in shown)
    assert shown[-1].startswith("more ")


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
        ("--kv-format", "no_such"),
        ("--kv-format", "v32", "--d-qk", "512"),
        ("--h-q", "abc"),
        ("--s-k", "0"),
        ("--batch", "99999999999999999999"),
        ("--device", "no such device!"),
        ("--backend", "nothing"),
    ],
)
def test_explain_wrong_use(capsys, words):
    code, _, err = run(capsys, "explain", *words)
    assert code == 2
    assert "expected" in err or "choose from" in err
    assert "_count" not in err


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
    out = run(capsys, "doctor")[1]
    assert "## backends" in out
    assert "frozenset" not in out
    assert "built-in" not in out
    last = out.partition("## advice\n")[2].splitlines()
    assert last
    assert all(line.startswith("- ") for line in last)


@pytest.mark.parametrize("place", ["{file}/x", "/proc/x"])
def test_doctor_sees_a_cache_that_cannot_be_written(capsys, tmp_path, place):
    from pathlib import Path

    from flashmla_hub import config

    (tmp_path / "file").touch()
    with config.override(cache_dir=Path(place.format(file=tmp_path / "file"))):
        facts = json.loads(run(capsys, "doctor", "--json")[1])
    assert "cannot be written" in facts["settings"]["cache used"]
    assert any("FLASHMLA_HUB_CACHE_DIR" in line for line in facts["advice"])


def test_doctor_says_what_an_unknown_device_needs():
    from flashmla_hub.cli import doctor

    odd = hub.DeviceInfo("unknown", "", type="npu", rule="no rule matched")
    told = doctor.advice([hub.devices()[0], odd], [], None)
    assert any("FLASHMLA_HUB_DEVICE=VENDOR:ARCH" in line for line in told)


def test_backends_fit_80_columns_and_cut_no_name(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in (("backends",), ("backends", "--limits")):
        out = run(capsys, *words)[1]
        assert all(len(line) <= 80 for line in out.splitlines())
        for backend in hub.backends():
            assert backend.name in out
    assert len(run(capsys, "backends")[1].splitlines()) < 40


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


@pytest.mark.parametrize(
    ("device", "hint"),
    [
        ("nope", "nvidia"),
        ("h100", "nvidia"),
        ("npu", "ascend"),
        ("nvidia:h100", "sm_90"),
        ("nvidai:sm_90", "did you mean nvidia"),
    ],
)
@pytest.mark.parametrize("command", ["explain", "build --list"])
def test_a_mistyped_device_is_refused_with_what_is_known(capsys, command, device, hint):
    code, out, err = run(capsys, *command.split(), "--device", device)
    assert code == 2, out
    assert len(err.splitlines()) == 1
    assert "expected" in err
    assert hint in err


@pytest.mark.parametrize(
    "words",
    [
        ("explain", "--backend", "tritn"),
        ("build", "--list", "--backend", "tritn"),
        ("demo", "--backend", "tritn"),
        ("conformance", "--backend", "tritn"),
    ],
)
def test_a_mistyped_backend_is_refused_with_the_nearest(capsys, words):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "triton" in err
    assert "did you mean triton" in err

"""Whole runs: the torch backend, bare functions, ports that end, hang or crash."""

import json
from pathlib import Path

import pytest

from flashmla_hub import NoBackendError, testing
from flashmla_hub.backends.torch_ref.plugin import TorchBackend
from flashmla_hub.capabilities import Capabilities, between, one_of
from flashmla_hub.cli import main
from flashmla_hub.conformance.cases import cases_of
from flashmla_hub.conformance.model import CaseResult, Outcome, RunResult, from_json
from flashmla_hub.conformance.runner import Options, run
from flashmla_hub.conformance.trial import ACCEPTS_UNCLAIMED

PORTS = "tests.conformance.ports"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ports' module, also for the workers of --isolate."""
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.syspath_prepend(root)
    monkeypatch.setenv("PYTHONPATH", root)


def some(level: str, *prefixes: str) -> list:
    return [c for c in cases_of(level) if c.id.startswith(prefixes)]


def bad(result: RunResult) -> list[str]:
    return [f"{r.id}: {r.clause} {r.diagnosis} {r.reason}" for r in result.results if r.outcome.bad]


def test_torch_reaches_l1() -> None:
    result = run("torch", Options(level="L1"))
    assert bad(result) == []
    assert result.level == "L1"
    assert {"fp16", "fp32", "head dims", "batch_invariant"} <= set(result.extras)


@pytest.mark.full
def test_torch_reaches_l4() -> None:
    result = run("torch", Options(level="L4"))
    assert bad(result) == []
    assert result.level == "L4"


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 6))
def test_torch_is_right_for_other_inputs(seed: int) -> None:
    result = run("torch", Options(level="L4", seed=seed))
    assert bad(result) == [], f"seed {seed}"
    assert result.level == ""


class Narrow(TorchBackend):
    """A port's usual shape: few head counts, one page size, one query, packed; rewrites help."""

    name = "narrow"

    def capabilities(self, device):
        return (
            Capabilities(h_q=one_of(64, 128), page_block_size=one_of(64),
                         rewrites=("pad_heads", "fold_s_q", "contiguous_kv", "contiguous_q")),
        )  # fmt: skip


def test_rewritten_cases_are_told_from_native_ones() -> None:
    with testing.registered(Narrow()):
        result = run("narrow", Options(level="L2"), cases=some("L2", "core/", "queries/h12", "cl"))
    by_id = {r.id: r for r in result.results}
    assert bad(result) == []
    assert by_id["core/h64-flat"].rewrites == ()
    assert by_id["core/h16-flat"].rewrites == ("pad_heads",)
    assert "pad_heads" in by_id["queries/h12-sq3-peaked"].rewrites
    # past the gate the backend itself must refuse, whatever the hub can rewrite
    assert by_id["claims/h_q-12"].outcome is Outcome.REFUSED_OK
    assert by_id["claims/h_q-12"].refused_by == "backend"
    assert by_id["claims/h_q-64"].outcome is Outcome.PASSED
    assert result.levels[1].rewritten > 0


class Greedy(Narrow):
    """Binds whatever it is given."""

    name = "greedy"

    def bind(self, key, device):
        return TorchBackend().bind(key, device)


def test_accepting_what_is_not_claimed_fails_the_level() -> None:
    with testing.registered(Greedy()):
        result = run("greedy", Options(level="L1"), cases=some("L1", "claims/", "extra/h16-fp16"))
    wrong = {r.id: r for r in result.results if r.outcome.bad}
    assert wrong["claims/fp16"].diagnosis == ACCEPTS_UNCLAIMED
    assert wrong["claims/fp16"].clause == "C5.2"
    assert wrong["extra/h16-fp16-flat"].diagnosis == ACCEPTS_UNCLAIMED
    assert result.level == ""


class FewHeads(Narrow):
    """Claims fewer heads and no rewrite: most cases are not claimed, none is wrong."""

    name = "few_heads"

    def capabilities(self, device):
        return (Capabilities(h_q=between(64, 128, 64), page_block_size=one_of(64)),)


def test_not_claimed_is_neither_pass_nor_failure() -> None:
    with testing.registered(FewHeads()):
        result = run("few_heads", Options(level="L1"), cases=some("L1", "core/", "extra/h16-fp16"))
    outcomes = {r.id: r.outcome for r in result.results}
    assert bad(result) == []
    assert outcomes["core/h16-flat"] is Outcome.NOT_CLAIMED
    assert outcomes["core/h64-flat"] is Outcome.PASSED
    assert not result.levels[1].reached


def test_a_backend_of_another_device_is_not_judged() -> None:
    with pytest.raises(NoBackendError, match="cannot be judged on cpu"):
        run("hopper", Options(level="L0"))


def test_a_bare_function() -> None:
    cases = some("L2", "smoke/", "core/h16", "metadata/lengths", "extra/h16-fp16", "edges/")
    result = run(f"{PORTS}:flash_mla_with_kvcache", Options(level="L2"), call=True, cases=cases)
    assert bad(result) == []
    assert result.meta.backend == f"{PORTS}:flash_mla_with_kvcache"
    assert sum(r.outcome is Outcome.PASSED for r in result.results) > 10


def test_a_bare_function_is_diagnosed() -> None:
    result = run(f"{PORTS}:base_2", Options(level="L1"), call=True, cases=some("L1", "core/h16"))
    assert {r.diagnosis for r in result.results} == {"LSE in base 2"}


def test_what_ends_or_crashes_costs_its_case_alone() -> None:
    told: list[CaseResult] = []
    result = run(
        f"{PORTS}:harmful", Options(level="L1", isolate=True), call=True,
        cases=some("L1", "core/h16-flat", "core/h32-flat", "core/h128-flat", "scale/one"),
        observe=lambda done, total, r: told.append(r),
    )  # fmt: skip
    found = {r.id: (r.outcome, r.diagnosis, r.reason) for r in result.results}
    assert found == {
        "core/h16-flat": (Outcome.PASSED, "", ""),
        "core/h32-flat": (
            Outcome.CRASHED, "ends the process", "the process exited with code 1"),
        "core/h128-flat": (
            Outcome.CRASHED, "crashes the process", "the process died of SIGSEGV"),
        "scale/one": (Outcome.PASSED, "", ""),
    }  # fmt: skip
    assert [r.id for r in told] == [r.id for r in result.results]
    assert result.meta.isolated


def test_what_hangs_costs_its_case_alone() -> None:
    result = run(f"{PORTS}:harmful", Options(level="L1", isolate=True, limit=10), call=True,
                 cases=some("L1", "core/h64-flat", "scale/one"))  # fmt: skip
    hung, after = result.results
    assert (hung.outcome, hung.diagnosis) == (Outcome.TIMEOUT, "hangs")
    assert hung.reason == "no answer within 10 s"
    assert after.outcome is Outcome.PASSED


@pytest.mark.full
def test_isolated_results_are_those_of_one_process() -> None:
    cases = some("L1", "core/h16", "smoke/")
    apart = run("torch", Options(level="L1", isolate=True), cases=cases)
    together = run("torch", Options(level="L1"), cases=cases)
    for one, other in zip(apart.results, together.results, strict=True):
        assert (one.id, one.outcome, one.metrics, one.samples, one.input_digest) == (
            other.id, other.outcome, other.metrics, other.samples, other.input_digest)  # fmt: skip


# the command


def test_command_reaches_l0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--backend", "torch", "--level", "L0"]) == 0
    assert "badge: L0 v2 cpu" in capsys.readouterr().out


def test_command_writes_a_report_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["conformance", "--backend", "torch", "--level", "L0", "--json",
                 "--report", str(tmp_path)])  # fmt: skip
    result = from_json(RunResult, json.loads(capsys.readouterr().out))
    assert code == 0
    assert {"smoke/claims-readable", "smoke/one-call"} <= {r.id for r in result.results}
    assert {f.family: f.level for f in result.families}["sparse"] == "L0"
    assert (tmp_path / "evidence.json").exists()


def test_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["conformance", "--call", f"{PORTS}:base_2", "-k", "core/h16-peaked"])
    out = capsys.readouterr().out
    assert code == 1
    assert "LSE in base 2 (C1.8), 1 case" in out
    assert "core/h16-peaked: " in out
    assert "lse[0, 0, 0]: expected" in out


def test_known_failures_pass_and_stale_ones_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "known.txt"
    words = ["conformance", "--call", f"{PORTS}:base_2", "-k", "core/h16-peaked",
             "--known-failures", str(listed)]  # fmt: skip
    listed.write_text("core/h16-peaked | base 2 until the next release\n")
    assert main(words) == 0
    words[2] = f"{PORTS}:flash_mla_with_kvcache"
    assert main(words) == 1
    assert "take it off the list" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "nobody"], "expected one of"),
        (["--backend", "torch", "-k", "C99"], "see --list"),
        (["--backend", "torch", "--known-failures", "/nowhere"], "--known-failures"),
        (["--backend", "torch", "--device", "quantum"], "--device"),
        (["--backend", "torch", "--limit", "3"], "--isolate"),
        (["--backend", "torch", "--isolate", "--limit", "0"], "--limit"),
        (["--backend", "torch", "--seed", "-1"], "--seed"),
        (["--backend", "torch", "--challenge", "\x1b[2J"], "--challenge"),
        (["--backend", "torch", "--report", __file__], "--report"),
    ],
)
def test_wrong_use(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_interrupted_run_keeps_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--call", f"{PORTS}:interrupted", "-k", "core/h", "--report", str(tmp_path)]
    assert main(["conformance", *words]) == 130
    done = capsys.readouterr()
    assert "interrupted: 2 of 8 cases judged, written to" in done.err
    assert "2 passed, 6 could not run" in done.out
    assert (tmp_path / "evidence.json").exists()


def test_a_challenge_reaches_a_level(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["conformance", "--backend", "torch", "--level", "L0"]
    assert main([*words, "--challenge", "pears on Tuesday"]) == 0
    assert "badge: L0 v" in capsys.readouterr().out
    assert main([*words, "--seed", "7"]) == 0
    out = capsys.readouterr().out
    assert "badge: none; a run with --seed reaches no level" in out
    assert "not judged (--seed)" in out


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--backend", "torch", "--level", "L0", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == "smoke/claims-readable"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--backend", "torch", "--level", "L0", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "L0  smoke/claims-readable  C5.2"

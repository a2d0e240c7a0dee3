"""The conformance suite through adapter and fake, at the level each port is stated to reach."""

from __future__ import annotations

import json

import pytest

import flashmla_hub
from flashmla_hub.conformance import report, runner, verify
from tests.ports.test_adapters import PORTS

STATED = {  # label of PORTS: (level, optional groups that it must show)
    "metax": ("L2", {"fp16", "page sizes", "in-place data"}),
    "metax_mc": ("L2", {"fp16", "page sizes", "in-place data"}),
    "moore_threads": ("L2", {"in-place data"}),
    "mate": ("L2", {"fp16", "in-place data"}),
    "hygon": ("L2", {"fp16", "in-place data"}),
    "hygon_newer": ("L2", {"fp16", "in-place data"}),
    "iluvatar": ("L2", {"fp16", "in-place data"}),
    "iluvatar_flash_mla": ("L2", {"fp16", "in-place data"}),
    "amd": ("L2", {"page sizes"}),
    "amd_middle": ("L2", {"page sizes"}),
    "thead": ("L2", {"fp16", "in-place data"}),
    "flaggems": ("L2", {"in-place data"}),
}
ALWAYS = ("metax", "moore_threads", "hygon", "iluvatar", "amd")


def judge(label, install, level):
    fakes, device, name, _ = PORTS[label]
    install(*fakes)
    with flashmla_hub.simulate_device(*device):
        return runner.run(f"simulated_{name}", runner.Options(level=level))


def check(label, result):
    level, groups = STATED[label]
    worst = [f"{r.id}: {r.reason}" for r in result.results if r.outcome.bad]
    assert result.level == level, worst or [lv.why_not for lv in result.levels]
    assert "simulated" in result.badge
    assert groups <= set(result.extras), result.extras


@pytest.mark.parametrize(
    "label",
    [label if label in ALWAYS else pytest.param(label, marks=pytest.mark.full) for label in STATED],
)
def test_reaches_its_stated_level(label, install, simulated_ports):
    check(label, judge(label, install, STATED[label][0]))


def test_simulated_evidence_says_so_and_never_verifies(install, simulated_ports, tmp_path):
    result = judge("metax", install, "L1")
    assert result.level == "L1"
    report.write_report(result, tmp_path / "report")
    text = (tmp_path / "report/evidence.json").read_text()
    evidence = json.loads(text)["predicate"]["flashmla_hub"]
    assert evidence["device"]["simulated"] is True
    assert evidence["backend"]["version"] == "flash_mla 1.0.1+metax3.0.0.4torch2.6"
    assert any("flash_mla_cuda" in file["path"] for file in evidence["backend"]["files"])
    verdict = verify.verify(text, share=0.05, seed=1)
    assert "simulated" in {finding.kind for finding in verdict.findings}
    assert not verdict.ok

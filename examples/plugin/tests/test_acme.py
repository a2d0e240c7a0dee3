"""Found, chosen for its own device, refuses what it does not take, computes what it claims."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import flashmla_hub
from flashmla_hub import KernelKey, NotSupportedError
from flashmla_hub.testing import bind_unchecked

LEVEL = "L2"


def test_is_listed():
    assert "acme" in {backend.name for backend in flashmla_hub.backends()}


def test_is_chosen_for_its_own_device_and_not_for_the_cpu():
    key = KernelKey(h_q=12, s_q=2, causal=True)
    decision = flashmla_hub.explain(key, device="acme:a1")
    assert decision.selected == "acme", str(decision)
    assert "pad_heads" in " ".join(decision.candidate.rewrites)
    assert flashmla_hub.explain(key, device="cpu").selected != "acme"


@pytest.mark.parametrize("change", [{"h_q": 12}, {"page_block_size": 64}, {"dtype": "float16"}])
def test_refuses_by_itself(change):
    with pytest.raises(NotSupportedError, match="takes"):
        bind_unchecked("acme", KernelKey(h_q=16, page_block_size=16).with_(**change), "cpu")


def test_reaches_its_level(tmp_path: Path):
    command = [sys.executable, "-m", "flashmla_hub", "conformance", "--backend", "acme"]
    done = subprocess.run(
        [*command, "--level", LEVEL, "--report", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "evidence.json").is_file()

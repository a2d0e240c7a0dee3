"""What verify says of good, stale, simulated and damaged evidence; it needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flashmla_hub
from flashmla_hub import cli
from flashmla_hub.conformance.model import canonical_json
from flashmla_hub.conformance.report.digests import evidence_digest
from flashmla_hub.conformance.verify import summary, verify
from flashmla_hub.conformance.verify.values import representable

Evidence = dict[str, Any]


def sealed(statement: Evidence) -> str:
    statement["predicate"]["flashmla_hub"]["digest"] = evidence_digest(statement)
    return canonical_json(statement)


def test_honest_evidence_verifies(honest: Evidence) -> None:
    result = verify(canonical_json(honest))
    assert result.ok, result.findings
    assert not result.stale
    assert result.badge == "L0 v2 cpu"
    assert (result.cases, result.recomputed, result.values) == (6, 5, 416)
    text = summary(result)
    assert text.startswith("VERIFIED: 'honest' '1': L0 v2 cpu")
    assert "does not show" in text
    assert "asserted: that it was backend 'honest'" in text


def test_evidence_of_a_failure_verifies_too(failing: Evidence) -> None:
    """A run that reaches no level is as good evidence as any."""
    result = verify(canonical_json(failing))
    assert result.ok, result.findings
    assert failing["predicate"]["result"] == "FAILED"


def test_layout_of_the_file_does_not_matter(honest: Evidence) -> None:
    assert verify(json.dumps(honest, indent=2)).ok


def test_another_build_is_stale_and_no_failure(honest: Evidence) -> None:
    body = honest["predicate"]["flashmla_hub"]
    body["kit"]["source_sha256"] = "0" * 64
    honest["predicate"]["configuration"][-1]["digest"]["sha256"] = "0" * 64
    result = verify(sealed(honest))
    assert result.ok, result.findings
    assert "kit" in result.stale[0]
    assert summary(result).startswith("STALE, otherwise verified")


def test_another_build_of_the_backend_is_stale(
    honest: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "flashmla_hub.conformance.verify.envelope.sha256_file", lambda path: "f" * 64
    )
    result = verify(canonical_json(honest))
    assert result.ok, result.findings
    assert any("honest.py" in text for text in result.stale)


def test_files_that_are_not_here_are_a_note(honest: Evidence) -> None:
    body = honest["predicate"]["flashmla_hub"]
    assert body["backend"]["files"]
    result = verify(canonical_json(honest))
    assert not result.notes


def test_simulated_evidence_never_verifies(honest: Evidence) -> None:
    honest["predicate"]["flashmla_hub"]["device"]["simulated"] = True
    result = verify(sealed(honest))
    assert [finding.kind for finding in result.findings] == ["simulated"]


def test_share_is_drawn_by_seed(honest: Evidence) -> None:
    first = verify(canonical_json(honest), share=0.01, seed=5)
    assert (first.recomputed, first.seed) == (1, 5)
    assert "--seed 5" in summary(first)


def test_progress_counts(honest: Evidence) -> None:
    seen: list[tuple[int, int]] = []
    verify(canonical_json(honest), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(5)]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"predicate": 3}', "nonsense", "NaN"])
def test_other_files_are_no_evidence(text: str) -> None:
    assert [finding.kind for finding in verify(text).findings] == ["schema"]


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (1.0, "bfloat16", True),
        (1.001, "bfloat16", False),
        (1.0009765625, "float16", True),
        (65520.0, "float16", False),
        (0.1, "float32", False),
        (float("inf"), "float32", True),
        (float("nan"), "float32", False),
    ],
)
def test_representable(value: float, dtype: str, fits: bool) -> None:
    assert representable(value, dtype) is fits


def test_command(honest: Evidence, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(canonical_json(honest))
    honest["predicate"]["flashmla_hub"]["device"]["name"] = "another"
    bad.write_text(canonical_json(honest))
    assert cli.main(["verify", str(good), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert cli.main(["verify", str(bad)]) == 1
    assert "NOT VERIFIED" in capsys.readouterr().out
    assert cli.main(["verify", str(tmp_path / "none.json")]) == 2
    assert cli.main(["verify", str(good), "--share", "0"]) == 2
    assert cli.main(["verify", str(good), "--challenge", "\x1b[31m"]) == 2


# The package itself imports torch; the modules that verify uses must not. The stub stands for the
# package, so that its own import is out of the way.
_WITHOUT_TORCH = """
import importlib.abc, json, sys, types
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton", "jinja2", "pluggy"):
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
package = types.ModuleType("flashmla_hub")
package.__path__ = json.loads(sys.argv[1])
sys.modules["flashmla_hub"] = package
from flashmla_hub.conformance.verify import verify
result = verify(open(sys.argv[2]).read())
assert "torch" not in sys.modules
print(result.ok, result.values)
"""


def test_needs_numpy_alone(honest: Evidence, tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    path.write_text(canonical_json(honest))
    process = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, json.dumps(list(flashmla_hub.__path__)), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.stdout.strip() == "True 416", process.stderr

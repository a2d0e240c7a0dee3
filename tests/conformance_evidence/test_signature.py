"""ssh-keygen signs the canonical bytes; verify --signer demands it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flashmla_hub import cli
from flashmla_hub.conformance.report.evidence import readable_json

Evidence = dict[str, Any]
pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")


def keygen(*words: str, content: bytes = b"") -> bytes:
    return subprocess.run(
        ["ssh-keygen", *words], input=content, capture_output=True, check=True
    ).stdout


@pytest.fixture
def signed(
    honest: Evidence, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[Path, Path]:
    """(evidence, signers), signed as docs/conformance.md says."""
    evidence, key, signers = tmp_path / "evidence.json", tmp_path / "key", tmp_path / "signers"
    evidence.write_text(readable_json(honest))
    keygen("-q", "-t", "ed25519", "-N", "", "-f", str(key))
    signers.write_text(f"maker@example.org {key.with_suffix('.pub').read_text()}")
    assert cli.main(["verify", str(evidence), "--canonical"]) == 0
    content = capsys.readouterr().out.encode()
    signature = keygen("-Y", "sign", "-f", str(key), "-n", "flashmla_hub-evidence", content=content)
    evidence.with_name("evidence.json.sig").write_bytes(signature)
    return evidence, signers


def verdict(
    evidence: Path, signers: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    code = cli.main(["verify", str(evidence), "--signer", str(signers), "--json"])
    found = json.loads(capsys.readouterr().out)
    return code, [finding["kind"] for finding in found["findings"]]


def test_a_signature_holds_whatever_the_layout(
    signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    evidence, signers = signed
    evidence.write_text(json.dumps(json.loads(evidence.read_text()), indent=4))
    assert cli.main(["verify", str(evidence), "--signer", str(signers)]) == 0
    assert "signed by 'maker@example.org'" in capsys.readouterr().out


def test_a_signature_of_other_content(
    signed: tuple[Path, Path], failing: Evidence, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence, signers = signed
    evidence.write_text(readable_json(failing))
    assert verdict(evidence, signers, capsys) == (1, ["signature"])


def test_a_signature_by_somebody_else(
    signed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence, signers = signed
    keygen("-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other"))
    signers.write_text(f"maker@example.org {(tmp_path / 'other.pub').read_text()}")
    assert verdict(evidence, signers, capsys) == (1, ["signature"])


def test_a_signature_for_another_purpose(
    signed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence, signers = signed
    assert cli.main(["verify", str(evidence), "--canonical"]) == 0
    content = capsys.readouterr().out.encode()
    signature = keygen("-Y", "sign", "-f", str(tmp_path / "key"), "-n", "git", content=content)
    evidence.with_name("evidence.json.sig").write_bytes(signature)
    assert verdict(evidence, signers, capsys) == (1, ["signature"])


def test_no_signature_and_junk(
    signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    evidence, signers = signed
    beside = evidence.with_name("evidence.json.sig")
    beside.write_text("junk")
    assert verdict(evidence, signers, capsys) == (1, ["signature"])
    beside.unlink()
    assert verdict(evidence, signers, capsys) == (1, ["signature"])
    assert verdict(evidence, evidence, capsys) == (1, ["signature"])

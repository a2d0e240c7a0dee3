"""``tools/get_peers`` without a network: its pins, and wrong use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "get_peers"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_peer_is_pinned_to_one_version() -> None:
    done = run("--list")
    assert done.returncode == 0
    for line in done.stdout.splitlines():
        name, *pins = line.split()
        assert pins, name
        assert all(re.fullmatch(r"[\w-]+==[\w.]+", pin) for pin in pins), line


def test_an_unknown_peer_and_a_missing_folder_are_wrong_use(tmp_path: Path) -> None:
    for words in ((str(tmp_path), "no_such"), ()):
        done = run(*words)
        assert done.returncode == 2
        assert "flashmla" in done.stderr

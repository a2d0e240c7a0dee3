"""A pytest plugin: the time each suite (folder of tests/) took, and its share."""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePath

# minutes on 2 cores; what takes longer is trimmed, not failed
SHARES = {
    "core": 4, "torch_ref": 4, "demo": 4, "conformance": 4, "conformance_evidence": 4,
    "hopper": 2, "ports": 3, "triton": 4, "engines": 4,
}  # fmt: skip
_times: dict[str, float] = defaultdict(float)


def pytest_runtest_logreport(report):
    parts = PurePath(report.nodeid.split("::")[0]).parts
    _times[parts[1] if len(parts) > 2 else parts[0]] += report.duration


def pytest_terminal_summary(terminalreporter):
    if not _times:
        return
    terminalreporter.section("time by suite")
    for suite, seconds in sorted(_times.items(), key=lambda item: -item[1]):
        share = f" of {60 * SHARES[suite]} s" if suite in SHARES else ""
        terminalreporter.write_line(f"{suite:<24}{seconds:7.1f} s{share}")

"""Files that are no evidence, or mean harm: one line, no traceback, no wait, no other file read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flashmla_hub
from flashmla_hub import cli
from flashmla_hub.conformance.model import canonical_json
from flashmla_hub.conformance.report.digests import build_digest, evidence_digest, locate
from flashmla_hub.conformance.report.schema import BuildFile
from flashmla_hub.conformance.verify import verify

Evidence = dict[str, Any]
SHELL = '{"predicate":{"flashmla_hub":{"schema_version":"2","claims":%s}}}'


def sparse(path: Path) -> None:
    """500 MB that take no room."""
    with path.open("wb") as file:
        file.truncate(500 << 20)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


# name -> how the path comes to be
PATHS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": pipe,
    "500 MB": sparse,
    "an endless device": link_to("/dev/zero"),
    "a device that waits": link_to("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "not UTF-8": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\xff\xfe"),
    "empty": lambda path: path.write_text(""),
    "text": lambda path: path.write_text("nonsense"),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("3"),
    "null": lambda path: path.write_text("null"),
    "an empty object": lambda path: path.write_text("{}"),
    "a predicate that is a list": lambda path: path.write_text('{"predicate": [1]}'),
    "a schema version that is a list": lambda path: path.write_text(
        '{"predicate": {"flashmla_hub": {"schema_version": ["2"]}}}'
    ),
    "half a file": lambda path: path.write_text((SHELL % "[]")[:40]),
    "nested lists": lambda path: path.write_text("[" * 200_000),
    "nested objects": lambda path: path.write_text('{"a":' * 100_000),
    "nested and whole": lambda path: path.write_text(SHELL % ("[" * 500 + "]" * 500)),
    "NaN": lambda path: path.write_text(SHELL % "NaN"),
    "-Infinity": lambda path: path.write_text(SHELL % "-Infinity"),
    "past float64": lambda path: path.write_text(SHELL % "1e999"),
    "4000 digits": lambda path: path.write_text(SHELL % ("9" * 4000)),
    "5000 digits": lambda path: path.write_text(SHELL % ("9" * 5000)),
    "a lone surrogate": lambda path: path.write_text(SHELL % r'["\ud800"]'),
    "a surrogate for a name": lambda path: path.write_text(SHELL % r'[{"\udfff": 1}]'),
    "a long text": lambda path: path.write_text(SHELL % ('["' + "a" * 100_000 + '"]')),
    "600 000 names and one twice": lambda path: path.write_text(
        SHELL % ("[{" + ",".join(f'"{n}":1' for n in (*range(600_000), 0)) + "}]")
    ),
    "two million values": lambda path: path.write_text(SHELL % ("[" + "1," * 2_000_000 + "1]")),
}


@pytest.mark.parametrize("name", PATHS)
def test_one_line_and_wrong_use_or_not_verified(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evidence.json"
    PATHS[name](path)
    code = cli.main(["verify", str(path)])
    out, err = capsys.readouterr()
    assert code in (1, 2)
    if code == 2:
        assert err.startswith("flashmla-hub verify: evidence: got ")
        assert (out, err.count("\n")) == ("", 1)
    else:
        assert out.startswith("NOT VERIFIED: 1 thing does not hold\n\nschema: ")
    assert "Traceback" not in out + err
    assert max(map(len, (out + err).splitlines())) < 600


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "\x1b[31m"])
def test_a_path_that_is_none(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", path]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.isascii()
    assert "\x1b" not in err


HOSTILE = (
    "/etc/passwd", "../../etc/passwd", "flashmla_hub/../../../etc/passwd", "/proc/kmsg",
    "flashmla_hub//etc/passwd", "flashmla_hub/./version.py", "flashmla_hub/.git/config",
    "flashmla_hub/pyproject.toml", "flashmla_hub/tests/conftest.py", "~/.ssh/id_ed25519",
    "os.py", "sys/version", "C:\\secrets", "flashmla_hub/\x00", "a" * 5000, "", "/", "numpy",
    "\ud800/x", "json/../../etc/passwd", "encodings/utf_8.py",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_named_file_outside_the_installed_packages_is_not_looked_for(name: str) -> None:
    assert locate(name) is None


def test_files_of_installed_packages_are_found() -> None:
    package = Path(flashmla_hub.__file__).parent
    assert locate("flashmla_hub/version.py") == package / "version.py"
    assert locate("numpy/__init__.py") is not None


def test_a_link_out_of_a_package_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    (tmp_path / "secret.py").write_text("x")
    (folder / "kernel.py").symlink_to(tmp_path / "secret.py")
    found = "flashmla_hub.conformance.report.digests._package_folders"
    monkeypatch.setattr(found, lambda package, inside: [folder])
    assert locate("acme/kernel.py") is None


# an audit hook sees every open of the process, from Python and from its C code
_AUDIT = """
import sys
from flashmla_hub.conformance.verify import summary, verify
text = open(sys.argv[1]).read()
verify(text)  # everything that is imported or cached is there now
seen = []
sys.addaudithook(lambda event, args: event == "open" and seen.append(str(args[0])))
result = verify(text)
print(summary(result), file=sys.stderr)
print([s for s in seen if any(w in s for w in ("passwd", "kmsg", "shadow", "id_rsa"))])
"""


def test_no_file_that_the_evidence_names_is_opened(honest: Evidence, tmp_path: Path) -> None:
    body = honest["predicate"]["flashmla_hub"]
    names = ["/etc/passwd", "/proc/kmsg", "flashmla_hub/../../../../../../etc/shadow", "id_rsa"]
    files = [{"path": name, "sha256": "0" * 64, "bytes": 1} for name in names]
    build = build_digest(BuildFile(**file) for file in files)
    body["backend"].update(files=files, build_sha256=build)
    honest["subject"][0]["digest"] = {"sha256": build}
    body["digest"] = evidence_digest(honest)
    path = tmp_path / "evidence.json"
    path.write_text(canonical_json(honest))
    process = subprocess.run(
        [sys.executable, "-c", _AUDIT, str(path)], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert process.stdout.strip() == "[]", process.stderr
    assert "VERIFIED: 'honest'" in process.stderr
    assert "4 of 4 files of the backend's build are not on this machine" in process.stderr


def test_many_results_that_answer_nothing(honest: Evidence) -> None:
    body = honest["predicate"]["flashmla_hub"]
    made_up = {"id": "x", "clauses": [], "outcome": "passed", "case_digest": ""}
    body["results"] += [{**made_up, "id": f"x/{n}"} for n in range(20_000)]
    body["digest"] = evidence_digest(honest)
    kinds = {finding.kind for finding in verify(json.dumps(honest)).findings}
    assert "unknown_case" in kinds

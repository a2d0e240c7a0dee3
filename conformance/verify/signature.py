"""Who stands behind a file: an OpenSSH signature over its canonical bytes, beside it as .sig."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from flashmla_hub.conformance.model import canonical_json
from flashmla_hub.conformance.quoting import plain, quoted
from flashmla_hub.conformance.verify.finding import Verification
from flashmla_hub.conformance.verify.reading import Unreadable, read

NAMESPACE = "flashmla_hub-evidence"  # a signature made for another purpose does not count
_SECONDS = 10


def canonical_bytes(data: Any) -> bytes:
    """What is signed: independent of the file's layout."""
    return canonical_json(data).encode("ascii")


def check(data: Any, evidence: Path, signers: Path, result: Verification) -> None:
    """Hold ``evidence``.sig against ``signers``, a file in OpenSSH's ALLOWED SIGNERS format."""
    beside = evidence.with_name(evidence.name + ".sig")
    program = shutil.which("ssh-keygen")
    if program is None:
        result.add("signature", "ssh-keygen", "not on this machine; it comes with OpenSSH")
        return
    texts = {}
    for path in (beside, signers):
        try:
            texts[path] = read(path)
        except Unreadable as error:
            result.add("signature", plain(path.name), str(error))
            return
    with tempfile.TemporaryDirectory() as folder:  # copies: ssh-keygen would wait on a pipe
        signature, allowed = Path(folder) / "signature", Path(folder) / "signers"
        signature.write_text(texts[beside], encoding="utf-8")
        allowed.write_text(texts[signers], encoding="utf-8")
        files = ["-s", str(signature), "-f", str(allowed)]
        found = _run([program, "-Y", "find-principals", *files], b"")
        names = found.stdout.decode("utf-8", "replace").splitlines()
        if found.returncode or not names:
            result.add("signature", plain(beside.name), f"by no key of {plain(signers.name)}")
            return
        ask = [program, "-Y", "verify", "-I", names[0], "-n", NAMESPACE, *files]
        if _run(ask, canonical_bytes(data)).returncode:
            detail = f"by a key of {quoted(names[0])}, and not over this content as evidence"
            result.add("signature", plain(beside.name), detail)
            return
    result.signer = names[0]


def _run(command: list[str], content: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command, input=content, capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return subprocess.CompletedProcess(command, 1, b"", b"")

"""The frozen case lists ``<level>-v2.txt``: one ``id digest`` a line, each level's file holding
every fixed case that its run asks. A run is compared with them by exact match, and a verifier
holds evidence against them. Lists of older contract versions stay, for their evidence.

Cases drawn from claims are frozen by their rule: ``drawn-v2.txt`` has, for a few declarations,
how many cases the rule makes of them and a digest over their ids and digests."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from flashmla_hub.conformance import CONTRACT_VERSION, GENERATOR_VERSION
from flashmla_hub.conformance.model import Case

HEADER = (
    f"# contract {CONTRACT_VERSION}, generator {GENERATOR_VERSION}: case id, digest of the case"
)


def path(level: str) -> Path:
    """The frozen file of a level, of this kit's contract version."""
    return Path(__file__).parent / f"{level}-v{CONTRACT_VERSION}.txt"


def text(cases: Sequence[Case]) -> str:
    """The file's contents for these cases."""
    return "\n".join([HEADER, *(f"{case.id} {case.digest()}" for case in cases), ""])


@functools.cache
def load(level: str) -> dict[str, str]:
    """Case ids of a level's list, each with its case's digest, in order."""
    lines = path(level).read_text(encoding="ascii").splitlines()
    if lines[0] != HEADER:
        raise ValueError(f"{path(level).name}: starts {lines[0]!r}, expected {HEADER!r}")
    return dict(line.split(" ") for line in lines[1:])


def sha256(level: str) -> str:
    """Hex SHA-256 of a level's file."""
    return hashlib.sha256(path(level).read_bytes()).hexdigest()


def differences(level: str, cases: Sequence[Case]) -> list[str]:
    """What differs between a run's cases and the frozen list; empty for an exact match."""
    frozen, asked = load(level), {case.id: case.digest() for case in cases}
    found = [f"{i}: missing" for i in frozen if i not in asked]
    found += [f"{i}: not in the list" for i in asked if i not in frozen]
    found += [f"{i}: the case has changed" for i in asked if frozen.get(i, asked[i]) != asked[i]]
    return found

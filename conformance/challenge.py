"""A challenge: a nonce of whoever asks for evidence, from which all inputs are drawn.

The frozen inputs are public, so a port can be made to know them. Those of a nonce are not known
before the nonce is, and the verifier who chose it draws the same ones.
"""

from __future__ import annotations

import hashlib

MOST = 200  # characters of a nonce


def seed_of(seed: int, challenge: str) -> int:
    """The seed of every case of a run: that of the challenge if there is one, else ``seed``."""
    if not challenge:
        return seed
    word = hashlib.sha256(f"flashmla_hub challenge/{challenge}".encode()).digest()
    return (int.from_bytes(word[:8], "little") >> 1) | 1  # 63 bits, never 0: the frozen inputs


def fault(challenge: str) -> str:
    """Why a text is no nonce, '' if it is one: printable ASCII without spaces at the ends."""
    if len(challenge) > MOST:
        return f"{len(challenge)} characters, expected at most {MOST}"
    if not challenge.isascii() or not challenge.isprintable() or challenge != challenge.strip():
        return "expected printable ASCII"
    return ""

"""Whose ``flash_mla`` is installed?

MetaX, Moore Threads, Hygon, T-Head, Iluvatar, DeepSeek and others all install a distribution that
is imported as ``flash_mla``. The version stamp and the extension module tell them apart; every
rule asks for a positive sign, and no two rules take the same distribution.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import PurePosixPath

from flashmla_hub import foreign

DISTRIBUTIONS = ("flash_mla", "sgl-flash-mla", "tokenspeed-flashmla")
EXTENSIONS = (
    "flash_mla_cuda",
    "flash_mla_musa",
    "flash_mla.cuda",
    "flash_mla.dense_fp8",
    "flash_mla._C_legacy",
)


@dataclass(frozen=True)
class Facts:
    """What a rule may look at. ``needs`` are the names of required distributions."""

    name: str
    version: str
    extensions: frozenset[str]
    needs: frozenset[str]

    @property
    def local(self) -> str:
        """The part of the version after '+', where vendors put their stamp."""
        return self.version.partition("+")[2]


@dataclass(frozen=True)
class Owner:
    """A project that ships ``flash_mla``."""

    key: str
    label: str
    owns: Callable[[Facts], bool]


def _metax(f: Facts) -> bool:
    # built outside a MACA image, the stamp names only git and torch
    plain = re.match(r"1\.0\.1\+(git[0-9a-f]+\.?)?torch\d", f.version)
    return "flash_mla_cuda" in f.extensions and ("metax" in f.local or plain is not None)


def _hygon(f: Facts) -> bool:
    tagged = "das" in f.local.split(".") or "dtk" in f.local
    return "flash_mla.cuda" in f.extensions and (tagged or f.version.startswith("1.2.0"))


def _deepseek(f: Facts) -> bool:
    stamp = re.fullmatch(r"1\.0\.0(\+([0-9a-f]{7,}|[\d-]+))?", f.version)
    built = {"flash_mla_cuda", "flash_mla.cuda"} & f.extensions
    return f.name == "flash-mla" and stamp is not None and bool(built)


OWNERS = (
    Owner("metax", "MetaX's", _metax),
    Owner(
        "moore_threads", "Moore Threads' MT-flashMLA", lambda f: "flash_mla_musa" in f.extensions
    ),
    Owner(
        "mate",
        "Moore Threads' MATE wrapper",
        lambda f: f.name == "flash-mla" and not f.extensions and "mate" in f.needs,
    ),
    Owner("hygon", "Hygon's", _hygon),
    Owner("iluvatar", "Iluvatar's", lambda f: f.name == "flash-mla" and "corex" in f.local),
    Owner(
        "thead",
        "T-Head's",
        lambda f: (
            "flash_mla_cuda" in f.extensions
            and re.match(r"2\.\d+\.\d+\+dev\d+", f.version) is not None
        ),
    ),
    Owner("deepseek", "DeepSeek's or vLLM's", _deepseek),
    Owner("sglang", "SGLang's", lambda f: f.name == "sgl-flash-mla"),
    Owner("tokenspeed", "TokenSpeed's", lambda f: f.name == "tokenspeed-flashmla"),
)


@functools.lru_cache(maxsize=64)
def facts(distribution: Distribution) -> Facts:
    """Read once from metadata and the list of files; imports nothing."""
    needs = (re.match(r"[\w.-]+", need) for need in distribution.requires or ())
    return Facts(
        name=_canonical(distribution.metadata["Name"] or ""),
        version=distribution.version,
        extensions=frozenset(_extensions(distribution)),
        needs=frozenset(_canonical(m[0]) for m in needs if m),
    )


def owner_of(distribution: Distribution) -> Owner | None:
    """The project whose signs ``distribution`` shows, None where it shows no known one's."""
    known = facts(distribution)
    return next((owner for owner in OWNERS if owner.owns(known)), None)


def installed() -> Iterator[tuple[Distribution, Owner | None]]:
    """Every distribution imported as ``flash_mla``, with its owner."""
    for name in DISTRIBUTIONS:
        for distribution in foreign.distributions(name):
            yield distribution, owner_of(distribution)


def find(key: str) -> Distribution | None:
    """The installed distribution that owner ``key`` ships."""
    return next((d for d, owner in installed() if owner is not None and owner.key == key), None)


def describe_installed() -> str:
    """What is there, for a refusal: name, version and owner of each."""
    found = [
        f"{d.metadata['Name']} {d.version} ({owner.label if owner else 'of unknown origin'})"
        for d, owner in installed()
    ]
    return ", ".join(found) or "no distribution imported as flash_mla"


def _extensions(distribution: Distribution) -> Iterator[str]:
    files = distribution.files
    if files is None:  # installed without a list of files: look at the places themselves
        where = foreign.root(distribution)
        for name in EXTENSIONS:
            if any(where.glob(f"{name.replace('.', '/')}.*")):
                yield name
        return
    for file in files:
        path = PurePosixPath(file.as_posix())
        dotted = ".".join((*path.parent.parts, path.name.partition(".")[0]))
        if dotted in EXTENSIONS:
            yield dotted


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

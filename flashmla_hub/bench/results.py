"""What was measured, and the arithmetic on it: ratios, geometric means, rates."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flashmla_hub.bench.shapes import Shape
from flashmla_hub.bench.timing import Ceilings
from flashmla_hub.errors import InvalidRequestError


@dataclass
class Row:
    """One shape: microseconds by backend (device time, host time to issue, per layer in a
    graph), the cosine difference of each output to the first one's, and what failed."""

    shape: Shape
    flop: int
    bytes: int
    us: dict[str, float] = field(default_factory=dict)
    host_us: dict[str, float] = field(default_factory=dict)
    graph_us: dict[str, float] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def tflops(self, name: str) -> float:
        return self.flop / self.us[name] / 1e6

    def gbps(self, name: str) -> float:
        return self.bytes / self.us[name] / 1e3

    def to_json(self) -> dict[str, Any]:
        shape = vars(self.shape)
        return {**vars(self), "shape": dict(shape), "name": str(self.shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        return cls(**{**known, "shape": Shape(**data["shape"])})


@dataclass
class Measured:
    """A run of ``flashmla-hub bench``: what its JSON file holds. ``names``: the backends timed,
    ours first; ``peers``: those of them that are somebody else's."""

    device: str
    names: list[str]
    peers: list[str]
    ceilings: Ceilings
    rows: list[Row] = field(default_factory=list)
    backends: dict[str, str] = field(default_factory=dict)
    host_floor_us: dict[str, float] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    flashmla_hub: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "flashmla_hub": self.flashmla_hub,
            "device": self.device,
            "backends": self.backends,
            "peers": self.peers,
            "command": self.command,
            "ceilings": self.ceilings.to_json(),
            "host_floor_us": self.host_floor_us,
            "rows": [row.to_json() for row in self.rows],
            "summary": [vars(summary) for summary in summaries(self)],
        }

    @classmethod
    def read(cls, path: Path) -> Measured:
        """What ``to_json`` wrote.

        Raises:
            InvalidRequestError: the file cannot be read, or holds something else.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                device=data["device"],
                names=list(data["backends"]),
                peers=data["peers"],
                ceilings=Ceilings(**data["ceilings"]),
                rows=[Row.from_json(row) for row in data["rows"]],
                backends=data["backends"],
                host_floor_us=data["host_floor_us"],
                command=data["command"],
                flashmla_hub=data["flashmla_hub"],
            )
        except OSError as error:
            raise InvalidRequestError("--from", f"{path} ({error.strerror})", _A_RUN) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            told = f"{path} ({type(error).__name__}: {error})"
            raise InvalidRequestError("--from", told, _A_RUN) from error


_A_RUN = "a file that flashmla-hub bench --json FILE wrote"


@dataclass(frozen=True)
class Summary:
    """One of ours against the best peer of each row: geometric mean and worst of the ratios
    peer / ours (above 1: ours is faster), over ``rows`` rows."""

    backend: str
    against: str
    geomean: float
    worst: float
    worst_shape: str
    rows: int


def best(times: Mapping[str, float], names: Iterable[str]) -> tuple[str, float] | None:
    """The fastest of ``names`` among ``times``."""
    there = [(times[name], name) for name in names if name in times]
    if not there:
        return None
    took, name = min(there)
    return name, took


def ratio(times: Mapping[str, float], ours: str, peers: Iterable[str]) -> float | None:
    """Time of the best peer over ours; None where either is missing."""
    peer = best(times, (p for p in peers if p != ours))
    return None if peer is None or ours not in times else peer[1] / times[ours]


def summarize(
    rows: Iterable[Row], ours: str, peers: Iterable[str], against: str, field_name: str = "us"
) -> Summary | None:
    """``ours`` against the best of ``peers`` on each row; None where no row has both."""
    peers = tuple(peers)
    found = [
        (value, str(row.shape))
        for row in rows
        if (value := ratio(getattr(row, field_name), ours, peers)) is not None
    ]
    if not found:
        return None
    worst, shape = min(found)
    mean = math.exp(sum(math.log(value) for value, _ in found) / len(found))
    return Summary(ours, against, mean, worst, shape, len(found))


def summaries(measured: Measured) -> list[Summary]:
    """Each of ours against each peer and against the best of them, alone and in a graph."""
    found: list[Summary] = []
    names, peers = measured.names, measured.peers
    for field_name, where in (("us", ""), ("graph_us", " in a graph")):
        for name in (n for n in names if n not in peers):
            for group, label in [*(([p], p) for p in peers), (peers, "the best peer")]:
                one = summarize(measured.rows, name, group, f"{label}{where}", field_name)
                if one and (len(peers) > 1 or label != "the best peer"):
                    found.append(one)
    return found

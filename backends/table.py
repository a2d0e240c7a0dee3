"""The table of backends, made from their declarations, so that it cannot drift from them.

python -m flashmla_hub.backends.table                   print it
python -m flashmla_hub.backends.table docs/backends.md  rewrite it between the two markers
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from flashmla_hub import api, identify, limits, registry
from flashmla_hub.backend import Backend
from flashmla_hub.capabilities import Capabilities
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import KernelKey

BEGIN, END = "<!-- backends: begin -->", "<!-- backends: end -->"
COLUMNS = ("vendor", "backend", "verified on", "confidence", "package, versions known")
NOT_RUN = "not run on hardware"
DEVICES = tuple(
    DeviceInfo(vendor, arch, type="simulated", simulated=True)
    for vendor, arch in (
        ("nvidia", "sm_90"), ("cpu", "x86_64"), ("amd", "gfx942"), ("metax", "xcore1000"),
        ("moore_threads", "mp_31"), ("hygon", "gfx936"), ("iluvatar", "ivcore11"), ("thead", ""),
        ("intellifusion", ""), ("ascend", ""),
    )
)  # fmt: skip

SHOWN = (
    "nvidia:sm_90", "nvidia:sm_100", "nvidia:sm_120", "nvidia:sm_89", "nvidia:sm_80", "amd:gfx942",
    "amd:gfx950", "metax:xcore1000", "moore_threads:mp_31", "hygon:gfx936", "iluvatar:ivcore11",
    "thead", "ascend", "cpu",
)  # fmt: skip
_V32 = KernelKey(op="sparse_decode", h_q=16, kv_format="v32", topk=2048)
_V4 = KernelKey(op="sparse_decode", h_q=64, d_qk=512, kv_format="model1", topk=512, attn_sink=True)
WORKLOADS = {
    "V3, R1: dense": KernelKey(h_q=16),
    "the same, 2 tokens": KernelKey(h_q=16, s_q=2, causal=True),
    "V3.2: sparse, FP8": _V32,
    "V4: sparse, FP8, sink": _V4,
}
_WHO = (
    "Decoding with 16 query heads a card (V4: 64), if the port's own package is installed; without "
    "it the next one that can. `flashmla-hub explain` answers for other shapes."
)


def markdown() -> str:
    """A table of the built-in backends, by vendor; then a section for each with what it takes."""
    backends = list(_builtin())
    rows = [_row(backend) for backend in backends]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n\n".join([table, _choices(), *map(_section, backends)])


def rewrite(text: str) -> str:
    """``text`` with the table between the markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN} and {END} are not in the text")
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


def _builtin() -> Iterator[Backend]:
    state = registry.state()
    names = [name for name, entry in state.entries.items() if entry.builtin]
    yield from (state.backends[name] for name in sorted(names, key=_order))


def _order(name: str) -> tuple[str, str]:
    info = registry.get(name).info
    return (info.vendor or " ", name)  # those of no vendor, which run on many devices, first


def _row(backend: Backend) -> tuple[str, ...]:
    info = backend.info
    package = " ".join(filter(None, (info.package, info.versions))) or "none"
    cells = (
        info.vendor or "any",
        f"`{backend.name}`",
        info.verified or (NOT_RUN if info.vendor else "-"),
        info.confidence,
        package,
    )
    return tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)


def _choices() -> str:
    """Who is selected where, the port's own package supposed to be there."""
    lines = [("device", *WORKLOADS), ("---",) * (1 + len(WORKLOADS))]
    for name in SHOWN:
        chosen = []
        for key in WORKLOADS.values():
            decision = api.explain(key, device=identify.simulated(*identify.parse_device(name)))
            chosen.append(decision.selected or "none")
        lines.append((name, *chosen))
    rows = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"## Who serves what\n\n{_WHO}\n\n{rows}"


def _section(backend: Backend) -> str:
    lines = [
        f"## `{backend.name}`",
        "",
        backend.info.summary[:1].upper() + backend.info.summary[1:],
    ]
    lines[-1] = lines[-1].rstrip(".") + "."
    return "\n".join([*lines, "", *(f"- {words}" for words in _takes(backend))])


def _takes(backend: Backend) -> list[str]:
    """What the declarations take natively; the rewrites widen it."""
    device = next((d for d in DEVICES if _declared(backend, d)), DEVICES[0])
    return limits.describe(_declared(backend, device))


def _declared(backend: Backend, device: DeviceInfo) -> list[Capabilities]:
    return [d for d in backend.capabilities(device) if any(device in c for c in d.devices)]


def main(arguments: list[str]) -> int:
    if not arguments:
        print(markdown())
        return 0
    path = Path(arguments[0])
    path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

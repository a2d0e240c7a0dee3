"""What decode context parallelism costs and saves: a model from measured kernel times.

One step of DeepSeek-V3's attention on W cards that share one cache (tensor parallelism over the
same W cards). On every card, for every layer:

    gather q over heads, decode all heads over 1/W of the tokens, merge over the cards

against plain tensor parallelism, where each card decodes its 1/W of the heads over *all* tokens
and so has to hold all of them. Projections and experts are the same in both and left out.

- Kernel time: t0 + max(bytes / bandwidth, flops / rate), fitted to a table of measured times
  (dcp_kernel_table.json, or ``--table``); the fit's error is printed.
- Collectives: latency + bytes received / link bandwidth. The defaults are assumptions, typical of
  NVLink inside 8 cards and 400 Gb/s per card beyond; ``--measured`` takes dcp_point.py's output
  from real cards instead, and prints how far the model is from it.
- ``--simulate`` runs the hub's own code at every world size over torch's fake process group and
  checks that it sends exactly the bytes this model counts.

    python benchmarks/dcp_model.py --out FOLDER [--batch 16] [--table T.json] [--measured P.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

D_QK, D_V = 576, 512
WORLDS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (8192, 32768, 131072, 524288, 1048576)
MODES = ("a2a", "ag_rs", "ag_rs_half")  # the last with ag_rs reducing in bf16
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Model:
    """DeepSeek-V3 by default. Bytes are of the latent cache, bf16."""

    layers: int = 61
    heads: int = 128
    bytes_per_token: int = D_QK * 2


@dataclass(frozen=True)
class Kernel:
    """One decode call on one card: ``t0`` us, ``bandwidth`` bytes/us, ``rate`` flop/us."""

    t0: float
    bandwidth: float
    rate: float

    def us(self, batch: int, s_q: int, h_q: int, s_k: float) -> float:
        moved = batch * s_k * D_QK * 2 + batch * s_q * h_q * (D_QK + D_V) * 2
        flops = 2.0 * batch * s_q * h_q * s_k * (D_QK + D_V)
        return self.t0 + max(moved / self.bandwidth, flops / self.rate)


@dataclass(frozen=True)
class Link:
    """A collective over up to ``cards`` cards: ``latency`` us, ``bandwidth`` bytes/us a card."""

    cards: int
    latency: float
    bandwidth: float


# Assumptions, to be replaced by --measured: what NCCL reaches on small messages is latency.
NVLINK = Link(cards=8, latency=12.0, bandwidth=300e3)
NETWORK = Link(cards=1 << 30, latency=30.0, bandwidth=40e3)


def link_for(world_size: int, links: tuple[Link, ...]) -> Link:
    return next(link for link in links if world_size <= link.cards)


def fit(rows: list[dict[str, Any]], event_us: float) -> Kernel:
    """The Kernel with the least squared relative error, by coordinate search."""
    times = [(r["batch"], r["s_q"], r["h_q"], r["s_k"], r["us"] - event_us) for r in rows]

    def error(kernel: Kernel) -> float:
        return sum(math.log(kernel.us(*row[:4]) / row[4]) ** 2 for row in times)

    best = Kernel(t0=8.0, bandwidth=2.5e6, rate=600e6)
    step = 1.3
    while step > 1.001:
        moves = [
            replace(best, **{name: getattr(best, name) * factor})
            for name, factor in itertools.product(("t0", "bandwidth", "rate"), (step, 1 / step))
        ]
        nearest = min(moves, key=error)
        if error(nearest) < error(best):
            best = nearest
        else:
            step = math.sqrt(step)
    return best


def received_bytes(mode: str, batch: int, s_q: int, heads: int, world_size: int) -> dict[str, int]:
    """Bytes that one card receives from the others for one layer, by collective."""
    others = world_size - 1
    rows = batch * s_q
    received = {"gather q": others * rows * (heads // world_size) * D_QK * 2}
    if mode == "a2a":
        received["all-to-all"] = others * rows * (heads // world_size) * (D_V * 2 + 4)
    else:
        wire = 2 if mode == "ag_rs_half" else 4
        received["gather lse"] = others * rows * heads * 4
        received["reduce-scatter"] = others * rows * (heads // world_size) * D_V * wire
    return received


@dataclass(frozen=True)
class Step:
    """Microseconds of one layer, and bytes of cache on one card for all layers."""

    kernel_us: float
    merge_us: float
    cache_bytes: float

    def ms(self, model: Model) -> float:
        return (self.kernel_us + self.merge_us) * model.layers / 1e3


def step(
    model: Model,
    kernel: Kernel,
    links: tuple[Link, ...],
    batch: int,
    context: int,
    world_size: int,
    mode: str,
    s_q: int = 1,
) -> Step:
    """``mode`` is one of MODES, or ``tp`` for plain tensor parallelism."""
    whole = float(batch) * context * model.bytes_per_token * model.layers
    if mode == "tp" or world_size == 1:
        us = kernel.us(batch, s_q, model.heads // world_size, context)
        return Step(us, 0.0, whole)
    share = math.ceil(context / world_size)  # of the fullest rank
    us = kernel.us(batch, s_q, model.heads, share)
    link = link_for(world_size, links)
    received = received_bytes(mode, batch, s_q, model.heads, world_size)
    merge = sum(link.latency + n / link.bandwidth for n in received.values())
    return Step(us, merge, whole / world_size)


def simulate(batch: int = 4, s_q: int = 2) -> list[str]:
    """Run the hub's own merge at every world size; the differences to ``received_bytes``."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from flashmla_hub import parallel

    heads, wrong = 128, []
    for world_size, mode in itertools.product(WORLDS[1:], MODES):
        buffers: list[int] = []  # of each collective, the larger buffer

        def record(out: Any, given: Any, *_: Any, seen: list[int] = buffers, **__: Any) -> None:
            seen.append(max(out.nbytes, given.nbytes))

        dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
        names = ("_all_gather", "_reduce_scatter")
        saved = [getattr(parallel, name) for name in names], dist.all_to_all_single
        try:
            for name in names:
                setattr(parallel, name, record)
            dist.all_to_all_single = record
            parallel.gather_heads(torch.zeros(batch, s_q, heads // world_size, D_QK).bfloat16())
            out = torch.zeros(batch, s_q, heads, D_V).bfloat16()
            wire = torch.bfloat16 if mode == "ag_rs_half" else torch.float32
            parallel.merge_over_group(
                out, torch.zeros(batch, heads, s_q), None, mode.removesuffix("_half"), wire
            )
        finally:
            for name, function in zip(names, saved[0], strict=True):
                setattr(parallel, name, function)
            dist.all_to_all_single = saved[1]
            dist.destroy_process_group()
        # Of the larger buffer, one share is the card's own.
        seen = [size // world_size * (world_size - 1) for size in buffers]
        counted = list(received_bytes(mode, batch, s_q, heads, world_size).values())
        if seen != counted:
            wrong.append(f"{mode}, {world_size} cards: sent {seen}, counted {counted}")
    return wrong


def compare(measured: dict[str, Any], kernel: Kernel) -> tuple[Link, list[str]]:
    """The link that explains dcp_point.py's merges best, and each point against the model."""
    points = measured["points"]
    world_size = measured["world_size"]
    merges = [
        (sum(received.values()), len(received), point[f"{mode}_us"])
        for point, mode in itertools.product(points, ("a2a", "ag_rs"))
        for received in [
            received_bytes(mode, point["batch"], point["s_q"], point["h_q"], world_size)
        ]
    ]
    # us = latency * collectives + bytes / bandwidth: least squares in two unknowns
    cc = sum(c * c for _, c, _ in merges)
    cb = sum(c * n for n, c, _ in merges)
    bb = sum(n * n for n, _, _ in merges)
    ct = sum(c * us for _, c, us in merges)
    bt = sum(n * us for n, _, us in merges)
    determinant = cc * bb - cb * cb
    latency = (ct * bb - bt * cb) / determinant
    per_byte = (cc * bt - cb * ct) / determinant
    link = Link(world_size, max(latency, 0.0), 1 / max(per_byte, 1e-9))
    lines = []
    for point in points:
        local = math.ceil(point["s_k"] / world_size)
        modelled = kernel.us(point["batch"], point["s_q"], point["h_q"], local)
        lines.append(
            f"b{point['batch']} h{point['h_q']} s_k {point['s_k']}: kernel "
            f"{point['kernel_us']:.1f} us measured, {modelled:.1f} modelled "
            f"({modelled / point['kernel_us']:.2f}x)"
        )
    return link, lines


def plot(
    folder: Path, model: Model, kernel: Kernel, links: tuple[Link, ...], batch: int, note: str
) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (times, sizes) = plt.subplots(1, 2, figsize=(13, 5.6), layout="constrained")
    colours = plt.get_cmap("viridis")
    for i, context in enumerate(CONTEXTS):
        colour = colours(i / len(CONTEXTS))
        label = f"{context // 1024}k" if context < 1 << 20 else "1M"
        for mode, style in (("a2a", "-"), ("ag_rs", "--"), ("tp", ":")):
            ms = [step(model, kernel, links, batch, context, w, mode).ms(model) for w in WORLDS]
            times.plot(WORLDS, ms, style, color=colour, marker="o", markersize=3)
        gb = [
            step(model, kernel, links, batch, context, w, "a2a").cache_bytes / 1e9 for w in WORLDS
        ]
        sizes.plot(WORLDS, gb, "-", color=colour, marker="o", markersize=3, label=label)
        sizes.plot(WORLDS, [gb[0]] * len(WORLDS), ":", color=colour)
    sizes.axhline(80, color="crimson", linewidth=1)
    sizes.annotate("80 GB, one card", (WORLDS[-1], 80), ha="right", va="bottom", color="crimson")
    for axis, title, unit in (
        (times, "attention time of one step", "ms, all layers"),
        (sizes, "cache on one card", "GB"),
    ):
        axis.set(xscale="log", yscale="log", xlabel="cards that share the cache", ylabel=unit)
        axis.set_xticks(WORLDS, [str(w) for w in WORLDS])
        axis.xaxis.minorticks_off()
        axis.set_title(title)
        axis.grid(alpha=0.3)
    styles = [
        plt.Line2D([], [], color="grey", linestyle=s, label=n)
        for n, s in (("DCP, a2a", "-"), ("DCP, ag_rs", "--"), ("tensor parallel only", ":"))
    ]
    figure.legend(handles=styles, loc="outside lower center", ncols=3)
    sizes.legend(title="tokens a request", loc="lower left")
    figure.suptitle(
        f"DeepSeek-V3 attention, bf16, batch {batch}: model from measured kernel times; {note}"
    )
    path = folder / f"dcp_b{batch}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def table(model: Model, kernel: Kernel, links: tuple[Link, ...], batch: int) -> list[str]:
    lines = [
        f"{'tokens':>8} {'cards':>5} {'GB/card':>8} {'tp ms':>8} {'a2a ms':>8} {'ag_rs ms':>9} "
        f"{'ag_rs bf16':>10} {'merge share':>11}"
    ]
    for context, world_size in itertools.product(CONTEXTS, WORLDS):
        by_mode = {
            mode: step(model, kernel, links, batch, context, world_size, mode)
            for mode in ("tp", *MODES)
        }
        a2a = by_mode["a2a"]
        share = a2a.merge_us / (a2a.kernel_us + a2a.merge_us)
        lines.append(
            f"{context:>8} {world_size:>5} {a2a.cache_bytes / 1e9:>8.2f} "
            + f"{by_mode['tp'].ms(model):>8.2f} {a2a.ms(model):>8.2f} "
            + f"{by_mode['ag_rs'].ms(model):>9.2f} {by_mode['ag_rs_half'].ms(model):>10.2f} "
            + f"{share:>11.0%}"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for plots and table")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--table", type=Path, default=HERE / "dcp_kernel_table.json")
    parser.add_argument("--measured", type=Path, help="output of dcp_point.py on real cards")
    parser.add_argument("--simulate", action="store_true", help="check bytes against the code")
    args = parser.parse_args()

    measured_table = json.loads(args.table.read_text())
    rows, event_us = measured_table["rows"], measured_table.get("event_us", 0.0)
    kernel, model, links = fit(rows, event_us), Model(), (NVLINK, NETWORK)
    note = "link speeds assumed"
    print(f"kernel: {measured_table['what']}")
    print(
        f"  fit: t0 {kernel.t0:.1f} us, {kernel.bandwidth / 1e6:.2f} TB/s, "
        f"{kernel.rate / 1e6:.0f} TFLOP/s"
    )
    for row in rows:
        shape = row["batch"], row["s_q"], row["h_q"], row["s_k"]
        us = row["us"] - event_us
        print(f"  b, s_q, h_q, s_k {shape}: {us:.1f} us, fit {kernel.us(*shape) / us:.2f}x")
    if args.simulate:
        wrong = simulate()
        print("bytes of the code against the model: " + ("; ".join(wrong) or "equal"))
        if wrong:
            return 1
    if args.measured:
        measured = json.loads(args.measured.read_text())
        link, lines = compare(measured, kernel)
        links = (replace(link, cards=NVLINK.cards), NETWORK)
        note = f"NVLink measured on {measured['world_size']} {measured['device']}"
        print(f"links: {note}: {link.latency:.1f} us, {link.bandwidth / 1e3:.0f} GB/s")
        print("\n".join(f"  {line}" for line in lines))

    args.out.mkdir(parents=True, exist_ok=True)
    for batch in args.batch:
        lines = table(model, kernel, links, batch)
        (args.out / f"dcp_b{batch}.txt").write_text("\n".join([note, *lines]) + "\n")
        print(plot(args.out, model, kernel, links, batch, note))
    return 0


if __name__ == "__main__":
    sys.exit(main())

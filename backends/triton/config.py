"""Tile shapes: a pure function of a KernelKey and a DeviceInfo. Imports no triton.

Where the numbers come from: sm_90 was measured on an H100 and an H200; the other targets are what
compiles within the target's shared memory and registers (``python -m
flashmla_hub.backends.triton.aot`` prints that table, the tests hold it). ``flashmla-hub tune``
measures a user's own card.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL, KernelKey


@dataclass(frozen=True)
class Config:
    """How one kernel is tiled and compiled.

    Attributes:
        block_h, block_n: query rows and tokens per tile.
        num_warps, num_stages: warps per program; tiles in flight (depth of the pipeline).
        split_tail: in batches of at least this size mask only the blocks that need it, in a loop of
            their own; 0: never. A loop more to fetch costs 1 us, a mask less gains up to 2 %.
        break_chain: keep the score dot out of the forward slice of the output dot (Hopper at 64
            rows: both warpgroups compute half the scores instead of all of them twice).
        spread: keep the softmax sum per column until the end.
        options: further compiler options of the target, (name, value) pairs.
        per_sm: programs resident on one multiprocessor.
        gluon: the Hopper Gluon form of so many rows, where the installed Triton has what it needs.
        step: blocks that the loop takes at a time: parts are multiples of it.
        pdl: start each kernel while the one before it still runs (needs sm_90).
        prefetch: read FP8 tokens when their block comes, out of L2, rather than a block ahead into
            registers (needs sm_90).
        hardware_fp8: the target converts e4m3 itself; else it is done with integer operations.
    """

    block_h: int
    block_n: int
    num_warps: int
    num_stages: int
    split_tail: int = 0
    break_chain: bool = False
    spread: bool = False
    options: tuple[tuple[str, int], ...] = ()
    per_sm: int = 1
    gluon: bool = False
    step: int = 1
    pdl: bool = False
    prefetch: bool = False
    hardware_fp8: bool = False


@dataclass(frozen=True)
class Combine:
    """Tile of the combine kernel: rows, columns and splits per step."""

    rows: int
    cols: int
    splits: int


@dataclass(frozen=True)
class Target:
    """A class of devices that share tile shapes.

    ``dense``, ``sparse`` and ``fp8`` (sparse over an FP8 cache) map "at most so many query rows"
    to a Config; more rows than the largest entry are cut into tiles of that entry. ``fine_rows``:
    the most rows of a tile over an FP8 cache with a scale for 32 values or fewer, which take
    registers.
    """

    shared_memory: int
    dense: tuple[tuple[int, Config], ...]
    sparse: tuple[tuple[int, Config], ...]
    fp8: tuple[tuple[int, Config], ...]
    fine_rows: int = 16


_CDNA = (("matrix_instr_nonkdim", 16), ("waves_per_eu", 1))
_CDNA3 = (*_CDNA, ("kpack", 2))

_SM80 = Target(
    166_912,
    dense=((16, Config(16, 64, 8, 2)), (32, Config(32, 32, 8, 4))),
    sparse=((16, Config(16, 64, 8, 2)), (32, Config(32, 32, 8, 3))),
    fp8=((16, Config(16, 32, 8, 1)), (32, Config(32, 16, 8, 1))),
)
_SM89 = Target(
    101_376,
    dense=((16, Config(16, 32, 8, 3)), (32, Config(32, 16, 8, 3))),
    sparse=((16, Config(16, 32, 8, 3)), (32, Config(32, 16, 8, 3))),
    fp8=((16, Config(16, 32, 8, 1)), (32, Config(32, 16, 8, 1))),
)
_SM90 = Target(
    232_448,
    dense=(
        (16, Config(16, 64, 8, 3)),
        (32, Config(32, 64, 8, 3, split_tail=33)),
        (64, Config(64, 64, 8, 2, split_tail=1, break_chain=True, spread=True)),
    ),
    sparse=(
        (16, Config(16, 64, 8, 3)),
        (32, Config(32, 64, 8, 3)),
        (64, Config(64, 64, 8, 2)),
    ),
    fp8=(
        (16, Config(16, 64, 8, 1)),
        (32, Config(32, 32, 8, 1)),
        (64, Config(64, 64, 8, 1, break_chain=True, spread=True, prefetch=True)),
    ),
    fine_rows=64,
)
_SM100 = replace(
    _SM90,
    dense=((16, Config(16, 64, 8, 3)), (32, Config(32, 32, 8, 4))),
    sparse=((16, Config(16, 64, 8, 3)), (32, Config(32, 32, 8, 4))),
    fp8=((16, Config(16, 32, 8, 1)), (32, Config(32, 16, 8, 1))),
    fine_rows=16,
)
_CDNA3_TILES = (
    (16, Config(16, 32, 4, 1, options=_CDNA3)),
    (32, Config(32, 32, 4, 1, options=_CDNA3)),
)
_GFX942 = Target(65_536, _CDNA3_TILES, _CDNA3_TILES, _CDNA3_TILES, fine_rows=32)
_GFX950 = Target(
    163_840,
    dense=((16, Config(16, 32, 4, 2, options=_CDNA)), (32, Config(32, 32, 4, 2, options=_CDNA))),
    sparse=((16, Config(16, 32, 4, 2, options=_CDNA)), (32, Config(32, 32, 4, 1, options=_CDNA))),
    fp8=((16, Config(16, 32, 4, 1, options=_CDNA)), (32, Config(32, 32, 4, 1, options=_CDNA))),
    fine_rows=32,
)
_SMALL_TILES = ((16, Config(16, 16, 4, 1)),)
_SMALL = Target(65_536, dense=_SMALL_TILES, sparse=_SMALL_TILES, fp8=_SMALL_TILES)

TARGETS: dict[tuple[str, str], Target] = {
    ("nvidia", "sm_80"): _SM80,
    ("nvidia", "sm_87"): _SM80,
    ("nvidia", "sm_86"): _SM89,
    ("nvidia", "sm_89"): _SM89,
    ("nvidia", "sm_90"): _SM90,
    ("nvidia", "sm_100"): _SM100,
    ("nvidia", "sm_103"): _SM100,
    ("nvidia", "sm_120"): _SM89,
    ("nvidia", "sm_121"): _SM89,
    ("amd", "gfx90a"): _GFX942,
    ("amd", "gfx942"): _GFX942,
    ("amd", "gfx950"): _GFX950,
}

SLACK_PERCENT = 4  # how uneven whole requests may be before they are split

FEW_ROWS = 16  # up to here hopper_few_rows.py, above it hopper_gluon.py
# Their plain parts serve where a Gluon form does not, such as pools that TMA cannot read.
_GLUON = (
    (FEW_ROWS, replace(_SM90.dense[0][1], gluon=True)),
    (64, replace(_SM90.dense[-1][1], gluon=True, step=2)),
)

GLUON_TARGETS = frozenset({("nvidia", "sm_90")})
HARDWARE_FP8 = frozenset({"sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121"})


def target_of(device: DeviceInfo) -> Target:
    """The shipped class of ``device``; an unknown one is placed by its shared memory."""
    known = TARGETS.get((device.vendor, device.arch))
    if known is not None:
        return known
    for candidate in (_SM80, _SM89):
        if device.shared_memory >= candidate.shared_memory:
            return candidate
    return _SMALL


def takes_tiles(key: KernelKey) -> bool:
    """Whether dense decode reads whole tiles of pages, for the query tokens of a request together:
    where K needs no scales of its own, at addresses that a tile is copied from."""
    plain = key.kv_format == "dense" or (key.kv_format == "fp8" and key.kv_alignment >= 16)
    return key.op == DENSE_DECODE and plain


def rows_of(key: KernelKey) -> int:
    """Query rows that share one KV head, packed into tiles."""
    tokens = key.s_q if takes_tiles(key) else 1
    return tokens * key.h_q // key.h_kv


def config_for(key: KernelKey, device: DeviceInfo) -> Config:
    """The Config for ``key`` on ``device``. Pure; no environment, no clock, no card is asked."""
    target = target_of(device)
    if key.kv_format != "dense":
        # A tile in flight takes registers: dense calls go without the one of 64 rows.
        table = target.fp8[:2] if takes_tiles(key) else target.fp8
        if key.kv_format.startswith("v41"):
            table = tuple(entry for entry in table if entry[0] <= target.fine_rows)
    else:
        table = target.dense if key.op == DENSE_DECODE else target.sparse
    hopper = (device.vendor, device.arch) in GLUON_TARGETS
    if hopper and gluon_takes(key):
        table = _GLUON
    rows = rows_of(key)
    config = next((c for most, c in table if rows <= most), table[-1][1])
    if hopper and gluon_takes_lists(key):
        config = replace(config, gluon=True, step=2)
    return replace(
        config,
        pdl=hopper,
        hardware_fp8=device.vendor == "nvidia" and device.arch in HARDWARE_FP8,
    )


def gluon_takes(key: KernelKey) -> bool:
    """What a Hopper Gluon form is written for: 576/512; above FEW_ROWS one 64-token page per tile
    and one KV head."""
    if (
        key.op != DENSE_DECODE
        or key.kv_format != "dense"
        or (key.d_qk, key.d_v) != (576, 512)
        or key.batch_invariant
    ):
        return False
    one_page = key.page_block_size == 64 and key.kv_strides != "token_strided"
    return rows_of(key) <= FEW_ROWS or (one_page and key.h_kv == 1)


def gluon_takes_lists(key: KernelKey) -> bool:
    """What the Hopper Gluon form of the sparse ops is written for; fewer rows would be padded."""
    return (
        key.op in (SPARSE_DECODE, SPARSE_PREFILL)
        and (key.kv_format == "dense" or (key.kv_format, key.dtype) == ("v32", "bfloat16"))
        and (key.d_qk, key.d_v) == (576, 512)
        and key.h_kv == 1
        and not key.extra_topk
        and rows_of(key) > 32
    )


def chunking(key: KernelKey, config: Config) -> tuple[int, int]:
    """(blocks per chunk at least, chunks per request at most) of the batch-invariant form:
    a function of the key alone, as the bits of the result depend on it."""
    return 2048 // config.block_n, 32


def combine_for(rows: int, splits: int, d_v: int) -> Combine:
    """The combine's tile for ``rows`` output rows in all, of ``splits`` partials each: few rows
    need many programs, many partials few steps."""
    if rows <= 128:
        return Combine(1, 64, 64) if splits > 32 else Combine(1, min(256, d_v), 16)
    if rows <= 1024:
        return Combine(1, d_v, 4)
    return Combine(4, d_v, 2)

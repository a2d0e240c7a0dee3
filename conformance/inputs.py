"""The input bits of a case, drawn by part and only when asked for; numpy alone.

Everything is a function of (case id, case seed, part): pages can be drawn one by one, and a
verifier draws those it needs. What is held here is *meaning*: logical tokens by page. How they
lie in memory, and what fills the rest, is placing.py's.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from numpy.typing import NDArray

from flashmla_hub.conformance import GENERATOR_VERSION, bits, fp8
from flashmla_hub.conformance.bits import FLOAT32, FORMATS
from flashmla_hub.conformance.families import LATE_KEY, SINK, UNSHIFTED, family_of
from flashmla_hub.conformance.model import Case, canonical_json, to_json
from flashmla_hub.conformance.pools import (
    FAR_BYTES,
    GARBAGE,
    NAN,
    OWNERS,
    SPARE_PAGES,
    TABLE_TAIL,
    TILES,
    Pool,
    owner_of,
    page_count,
)
from flashmla_hub.request import DENSE_DECODE, SPARSE_PREFILL

Bits = NDArray[np.unsignedinteger]
Ints = NDArray[np.int64]


class Inputs:
    """The bits of one case.

    Token bits of a page: dense formats (page_block_size, h_kv, d_qk) patterns of the key's
    dtype; FP8 layouts (page_block_size, token_bytes) bytes. Sparse calls have one pool without
    rows; ``extra`` parts are those of the second cache.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.key = case, case.key
        self.kind = FORMATS.get(case.key.dtype, FLOAT32)  # no inputs are drawn for others
        self.family = family_of(case.family, case.variant)
        self.sparse = case.key.op != DENSE_DECODE
        self.layout = fp8.LAYOUTS.get(case.key.kv_format)
        self._root = f"g{GENERATOR_VERSION}/{case.seed}/{case.id}"

    # lengths and scale

    @property
    def scale(self) -> float:
        return self.case.scale if self.case.scale is not None else self.key.d_qk**-0.5

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row that count: the case's, which are all within capacity."""
        return self.case.lengths

    @functools.cached_property
    def given_lengths(self) -> tuple[int, ...]:
        """The values of cache_seqlens: out of range where the layout says so (C1.15)."""
        values = list(self.lengths)
        if "negative_length" in self.case.layout:
            values = [n if n else -3 - row for row, n in enumerate(values)]
        if "over_capacity" in self.case.layout:
            longest = values.index(max(values))
            values[longest] += 100
        return tuple(values)

    # pages

    @functools.cached_property
    def table_width(self) -> int:
        longest = max((page_count(n, self.key.page_block_size) for n in self.lengths), default=0)
        if "over_capacity" in self.case.layout:
            return longest
        return max(longest + TABLE_TAIL, self.case.table_width)

    @functools.cached_property
    def pool(self) -> Pool:
        page, used = self.key.page_block_size, 0
        needs: list[list[int]] = []  # running numbers of the pages of each row
        for row, length in enumerate(self.lengths):
            count = page_count(length, page)
            shared, of = self._shared(row)
            own = list(range(used, used + count - shared))
            needs.append(needs[of][:shared] + own if shared else own)
            used += count - shared
        num_blocks, place = self._places(used)
        owner: dict[int, tuple[int, int]] = {}
        for row, numbers in enumerate(needs):
            for logical, number in enumerate(numbers):
                owner.setdefault(place[number], (row, logical))
        table = tuple(tuple(place[n] for n in numbers) for numbers in needs)
        return Pool(num_blocks, table, owner)

    def _shared(self, row: int) -> tuple[int, int]:
        """(how many leading pages, of which row) a row shares."""
        page, lengths = self.key.page_block_size, self.lengths
        of = owner_of(row) if "pooled" in self.case.layout else row
        if of != row:
            return min(page_count(lengths[n], page) for n in (row, of)), of
        if row and "shared_pages" in self.case.layout:
            whole = min(lengths[row] // page, lengths[0] // page)
            return min(whole, max(1, whole // 2)), 0
        return 0, 0

    def _places(self, used: int) -> tuple[int, list[int]]:
        """(num_blocks, physical page of each running number)."""
        if self.case.variant == "offset_2g_elements":
            # a packed pool past 2**31 elements; the last pages of every row lie beyond
            size = self.key.page_block_size * self.key.h_kv * self.key.d_qk
            if self.layout:
                size = self.layout.page_stride(self.key.page_block_size)
            first = (1 << 31) // size + 1
            order = bits.permutation(f"{self._root}/pages", used)
            return first + used + 1, [first + order[n] if n % 4 else order[n] for n in range(used)]
        if self.case.variant == "offset_4g_bytes":
            return used, [used - 1 - n for n in range(used)]
        order = bits.permutation(f"{self._root}/pages", used + SPARE_PAGES)
        if "null_block" in self.case.layout:
            order = [n for n in order if n]
        return used + SPARE_PAGES, order[:used]

    def tokens(self, page: int) -> Bits:
        """The token bits of a physical page of the dense pool that some row uses."""
        row, logical = self.pool.owner[page]
        if "tiled" in self.case.layout:
            return self._tiled(row, logical % TILES)
        return self._tokens(row, logical)

    @functools.lru_cache(maxsize=OWNERS + TILES)  # noqa: B019 - inputs live as long as their case
    def _tiled(self, row: int, logical: int) -> Bits:
        return self._tokens(row, logical)

    def _tokens(self, row: int, logical: int) -> Bits:
        address = f"{self._root}/kv/{row}/{logical}"
        size, key = self.key.page_block_size, self.key
        if self.layout:
            return self._fp8(address, size, self.layout)
        tokens = self._dense(address, size, self._row_signs(row, "v"))
        last = self.lengths[row] - 1
        if self.case.variant == "late_token" and logical == last // size:
            sign = self._row_signs(row, "late")
            late = bits.draw(f"{address}/late", (key.d_qk,), LATE_KEY, self.kind, sign)
            tokens[last % size] = late
        if self.family.equal:
            kind = self.family.same or self.family.k
            same = bits.draw(f"{self._root}/same/{row}", (key.d_qk,), kind, self.kind)
            tokens[:, :, key.d_v :] = same[key.d_v :]
        return tokens

    def _dense(self, address: str, count: int, sign: Ints) -> Bits:
        key = self.key
        choice = None
        if self.family.k_shift:
            choice = np.full(key.d_qk, UNSHIFTED, np.int64)
            choice[: key.d_v] = sign[: key.d_v]
        return bits.draw(address, (count, key.h_kv, key.d_qk), self.family.k, self.kind, choice)

    def _fp8(self, address: str, count: int, layout: fp8.Layout) -> Bits:
        free = "free_scales" in self.case.layout
        return fp8.draw_tokens(address, count, layout, self.case.family, free)

    def _row_signs(self, row: int, what: str) -> Ints:
        return bits.signs(f"{self._root}/{what}/{row}", self.key.d_qk)

    # queries

    def q(self, row: int) -> Bits:
        """(s_q, h_q, d_qk) bits of a row's queries; (h_q, d_qk) of a query for sparse_prefill."""
        q = self._q(0 if "q_expanded" in self.case.layout else row)
        if "pad_nan" in self.case.layout:
            q = q.copy()
            for t in range(self.key.s_q):
                if not self.seen(row, t):
                    q[t] = NAN[self.key.dtype]
        return q[0] if self.key.op == SPARSE_PREFILL else q

    def _q(self, row: int) -> Bits:
        if "tiled" in self.case.layout:
            return self._tiled_q(row % TILES)
        return self._drawn_q(row)

    @functools.lru_cache(maxsize=TILES)  # noqa: B019 - inputs live as long as their case
    def _tiled_q(self, row: int) -> Bits:
        return self._drawn_q(row)

    def _drawn_q(self, row: int) -> Bits:
        key, family = self.key, self.family
        choice = self._row_signs(row, "late") if family.q_shift else None
        shape = (key.s_q, key.h_q, key.d_qk)
        q = bits.draw(f"{self._root}/q/{row}", shape, family.q, self.kind, choice)
        if family.equal:
            q[:, :, : key.d_v] = 0
        return q

    def seen(self, row: int, t: int) -> int:
        """How many keys a query sees: the rest of the batch's width is padding (C1.10)."""
        if self.sparse:
            extra = len(self.counted(row, t, True)) if self.key.extra_topk else 0
            return len(self.counted(row, t)) + extra
        length = self.lengths[row]
        return max(length - self.key.s_q + t + 1, 0) if self.key.causal else length

    def sink(self) -> Bits:
        """(h_q,) float32 bits of attn_sink; +inf at head 1 and -inf at head 2 by layout."""
        sink = bits.draw(f"{self._root}/sink", (self.key.h_q,), SINK, FLOAT32)
        if "sink_inf" in self.case.layout:
            sink[1], sink[2] = 0x7F800000, 0xFF800000
        return sink

    # sparse calls

    def sparse_pool(self, extra: bool = False) -> tuple[int, int]:
        """(num_blocks, page_block_size): room for twice topk tokens, and a page nobody uses; a
        null block comes in front."""
        key = self.key
        page = key.extra_page_block_size if extra else key.page_block_size
        null = "null_block" in self.case.layout
        return page_count(2 * (key.extra_topk if extra else key.topk), page) + 1 + null, page

    def first_slot(self, extra: bool = False) -> int:
        """The first slot that may be named: the null block's are nobody's."""
        return self.sparse_pool(extra)[1] if "null_block" in self.case.layout else 0

    def far_slots(self) -> int:
        """By how much every other slot of a flat array is moved, past 2**32 bytes."""
        far = self.key.op == SPARSE_PREFILL and self.case.variant == "offset_4g_bytes"
        return FAR_BYTES // (self.key.h_kv * self.key.d_qk * self.kind.bits // 8) if far else 0

    def capacity(self, extra: bool = False) -> int:
        """Slots of a sparse pool: an entry at or past it is invalid."""
        blocks, page = self.sparse_pool(extra)
        if self.key.op == SPARSE_PREFILL:  # one flat array; its last token is nobody's
            return (blocks - 1) * page + 1 + self.far_slots()
        return blocks * page

    def sparse_tokens(self, page: int, extra: bool = False) -> Bits:
        """The token bits of one page of a sparse pool."""
        size = self.sparse_pool(extra)[1]
        if self.key.op == SPARSE_PREFILL:
            size = self.sparse_pool()[0] - 1  # one flat array; its last token is nobody's
        address = f"{self._root}/{'extra' if extra else 'kv'}/{page}"
        if self.layout:
            return self._fp8(address, size, self.layout)
        return self._dense(address, size, self._row_signs(0, "v"))

    def indices(self, row: int, extra: bool = False) -> Ints:
        """(s_q, topk) slots; for sparse_prefill (h_kv, topk). Entries past the row's length hold
        valid slots too: only topk_length tells. Word ``invalid``: every fifth counted entry is
        -1, another negative or past the cache; ``leading_invalid``: the head of the list is;
        ``duplicates``: every third repeats the first.
        """
        key, case = self.key, self.case
        topk = key.extra_topk if extra else key.topk
        blocks, page = self.sparse_pool(extra)
        first = self.first_slot(extra)
        usable = (blocks - 1) * page - first
        groups = key.h_kv if key.op == SPARSE_PREFILL else key.s_q
        result = np.zeros((groups, topk), np.int64)
        length = (case.extra_lengths if extra else case.lengths)[row]
        bad = (-1, -7, self.capacity(extra), self.capacity(extra) + 1000)
        for group in range(groups):
            where = f"{self._root}/{'extra_' if extra else ''}indices/{row}/{group}"
            slots = np.array(bits.permutation(where, usable)[:topk]) + first
            if "poison" in case.layout and not first:
                # odd slots of page 0 are poisoned: never point there
                limit = usable if key.op == SPARSE_PREFILL else page
                slots = np.where((slots < limit) & (slots % 2 == 1), slots - 1, slots)
            slots = np.where(slots % 4 == 2, slots + self.far_slots(), slots)
            if "duplicates" in case.layout:
                slots[2::3] = slots[0]
            if "invalid" in case.layout:
                for i in range(1, topk, 5):
                    slots[i] = bad[(i // 5) % len(bad)]
            if "leading_invalid" in case.layout and length > 1:
                slots[: length - 1 if row % 2 else max(1, length * 3 // 5)] = -1
            if not self.given("topk_length", extra):
                slots[length:] = -1
            elif "poison" in case.layout:  # garbage, and in turns a slot that is poisoned itself
                past = np.array([value for junk in GARBAGE for value in (junk, 1)])
                slots[length:] = past[np.arange(topk - length) % len(past)]
            result[group] = slots
        return result

    def given(self, name: str, extra: bool = False) -> bool:
        """Whether an optional tensor of the call is there."""
        return bool(getattr(self.key, f"extra_{name}" if extra else name))

    @functools.lru_cache(maxsize=1024)  # noqa: B019 - inputs live as long as their case is judged
    def counted(self, row: int, group: int, extra: bool = False) -> list[int]:
        """The valid slots of a query, in order: what the call means."""
        length = (self.case.extra_lengths if extra else self.case.lengths)[row]
        slots = self.indices(row, extra)[group, :length]
        return [int(s) for s in slots[(slots >= 0) & (slots < self.capacity(extra))]]

    def flat_token(self, slot: int) -> int:
        """Which drawn token of a flat array a slot holds."""
        far = self.far_slots()
        return slot - far if far and slot >= far else slot

    # digest

    @functools.cached_property
    def digest(self) -> str:
        """Hex SHA-256 over what the call means: never poison, table tails or unused memory."""
        sha = hashlib.sha256(canonical_json(to_json(self.case)).encode())

        def add(array: NDArray[np.generic]) -> None:
            kind = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
            sha.update(np.ascontiguousarray(array).astype(kind, copy=False).tobytes())

        caches = (False, True)[: 2 if self.key.extra_topk else 1] if self.sparse else ()
        for row in range(self.case.batch):
            add(self.q(row))
            for extra in caches:
                length = (self.case.extra_lengths if extra else self.case.lengths)[row]
                for entries in self.indices(row, extra)[:, :length]:
                    add(entries[(entries >= 0) & (entries < self.capacity(extra))])
            if not self.sparse:
                add(np.array(self.pool.table[row], np.int64))
        if not self.sparse:
            for page, count in sorted(self.meaningful().items()):
                add(self.tokens(page)[:count])
        for extra in caches:
            blocks = self.sparse_pool(extra)[0]
            for page in range(1 if self.key.op == SPARSE_PREFILL else blocks - 1):
                add(self.sparse_tokens(page, extra))
        if self.key.attn_sink:
            add(self.sink())
        return sha.hexdigest()

    def meaningful(self) -> dict[int, int]:
        """Leading slots of each used page that some row's length reaches."""
        size, result = self.key.page_block_size, dict[int, int]()
        for row, pages in enumerate(self.pool.table):
            for logical, page in enumerate(pages):
                here = min(size, self.lengths[row] - logical * size)
                result[page] = max(result.get(page, 0), here)
        return result

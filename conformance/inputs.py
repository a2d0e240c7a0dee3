"""The input bits of a case, drawn by part and only when asked for; numpy alone.

Everything is a function of (case id, case seed, part): pages can be drawn one by one, and a
verifier draws those it needs. What is held here is *meaning*: logical tokens by page. How they
lie in memory, and what fills the rest, is memory.py's.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmla_hub.conformance import GENERATOR_VERSION, bits, fp8
from flashmla_hub.conformance.bits import FLOAT32, FORMATS
from flashmla_hub.conformance.families import LATE_KEY, SINK, UNSHIFTED, family_of
from flashmla_hub.conformance.model import Case, canonical_json, to_json
from flashmla_hub.request import DENSE_DECODE, SPARSE_PREFILL

Bits = NDArray[np.unsignedinteger]
Ints = NDArray[np.int64]

SPARE_PAGES = 3  # of every pool: pages that no row uses
TABLE_TAIL = 2  # columns past the longest row's
GARBAGE = (2147480000, -1, -2147480000, 1 << 30)  # what a meaningless table entry may hold


def page_count(tokens: int, page_block_size: int) -> int:
    return -(-tokens // page_block_size)


@dataclass(frozen=True)
class Pool:
    """Where pages go: ``table[b]`` the physical pages of row b, in logical order.

    ``owner[page]`` is the (row, logical page) whose bits a page holds; shared pages belong to
    the row that brought them.
    """

    num_blocks: int
    table: tuple[tuple[int, ...], ...]
    owner: dict[int, tuple[int, int]]


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
        return longest + (0 if "over_capacity" in self.case.layout else TABLE_TAIL)

    @functools.cached_property
    def pool(self) -> Pool:
        page, used = self.key.page_block_size, 0
        needs: list[list[int]] = []  # running numbers of the pages of each row
        for row, length in enumerate(self.lengths):
            count, shared = page_count(length, page), 0
            if row and "shared_pages" in self.case.layout:
                whole = min(length // page, self.lengths[0] // page)
                shared = min(whole, max(1, whole // 2))
            needs.append(
                needs[0][:shared] + list(range(used, used + count - shared))
                if shared
                else list(range(used, used + count))
            )
            used += count - shared
        num_blocks, place = self._places(used)
        owner: dict[int, tuple[int, int]] = {}
        for row, numbers in enumerate(needs):
            for logical, number in enumerate(numbers):
                owner.setdefault(place[number], (row, logical))
        table = tuple(tuple(place[n] for n in numbers) for numbers in needs)
        return Pool(num_blocks, table, owner)

    def _places(self, used: int) -> tuple[int, list[int]]:
        """(num_blocks, physical page of each running number)."""
        if self.case.variant == "offset_2g_elements":
            # a packed pool past 2**31 elements; the last pages of every row lie beyond
            size = self.key.page_block_size * self.key.h_kv * self.key.d_qk
            first = (1 << 31) // size + 1
            order = bits.permutation(f"{self._root}/pages", used)
            return first + used + 1, [first + order[n] if n % 4 else order[n] for n in range(used)]
        if self.case.variant == "offset_4g_bytes":
            return used, [used - 1 - n for n in range(used)]
        order = bits.permutation(f"{self._root}/pages", used + SPARE_PAGES)
        return used + SPARE_PAGES, order[:used]

    def tokens(self, page: int) -> Bits:
        """The token bits of a physical page of the dense pool that some row uses."""
        row, logical = self.pool.owner[page]
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
            same = bits.draw(f"{self._root}/same/{row}", (key.d_qk,), self.family.k, self.kind)
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
        key, family = self.key, self.family
        choice = self._row_signs(row, "late") if family.q_shift else None
        shape = (key.s_q, key.h_q, key.d_qk)
        q = bits.draw(f"{self._root}/q/{row}", shape, family.q, self.kind, choice)
        if family.equal:
            q[:, :, : key.d_v] = 0
        return q[0] if key.op == SPARSE_PREFILL else q

    def sink(self) -> Bits:
        """(h_q,) float32 bits of attn_sink; +inf at head 1 and -inf at head 2 by layout."""
        sink = bits.draw(f"{self._root}/sink", (self.key.h_q,), SINK, FLOAT32)
        if "sink_inf" in self.case.layout:
            sink[1], sink[2] = 0x7F800000, 0xFF800000
        return sink

    # sparse calls

    def sparse_pool(self, extra: bool = False) -> tuple[int, int]:
        """(num_blocks, page_block_size): room for twice topk tokens, and a page nobody uses."""
        key = self.key
        page = key.extra_page_block_size if extra else key.page_block_size
        return page_count(2 * (key.extra_topk if extra else key.topk), page) + 1, page

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
        -1, another negative or past the cache; ``duplicates``: every third repeats the first.
        """
        key, case = self.key, self.case
        topk = key.extra_topk if extra else key.topk
        blocks, page = self.sparse_pool(extra)
        usable = (blocks - 1) * page
        groups = key.h_kv if key.op == SPARSE_PREFILL else key.s_q
        result = np.zeros((groups, topk), np.int64)
        length = (case.extra_lengths if extra else case.lengths)[row]
        for group in range(groups):
            where = f"{self._root}/{'extra_' if extra else ''}indices/{row}/{group}"
            slots = np.array(bits.permutation(where, usable)[:topk])
            if "poison" in case.layout:  # odd slots of page 0 are poisoned: never point there
                first = usable if key.op == SPARSE_PREFILL else page
                slots = np.where((slots < first) & (slots % 2 == 1), slots - 1, slots)
            if "duplicates" in case.layout:
                slots[2::3] = slots[0]
            if "invalid" in case.layout:
                bad = (-1, -7, blocks * page, blocks * page + 1000)
                for i in range(1, topk, 5):
                    slots[i] = bad[(i // 5) % len(bad)]
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

    @functools.lru_cache(maxsize=256)  # noqa: B019 - inputs live as long as their case is judged
    def counted(self, row: int, group: int, extra: bool = False) -> list[int]:
        """The valid slots of a query, in order: what the call means."""
        blocks, page = self.sparse_pool(extra)
        length = (self.case.extra_lengths if extra else self.case.lengths)[row]
        slots = self.indices(row, extra)[group, :length]
        return [int(s) for s in slots if 0 <= s < blocks * page]

    # digest

    @functools.cached_property
    def digest(self) -> str:
        """Hex SHA-256 over what the call means: never poison, table tails or unused memory."""
        sha = hashlib.sha256(canonical_json(to_json(self.case)).encode())

        def add(array: NDArray[np.generic]) -> None:
            kind = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
            sha.update(np.ascontiguousarray(array).astype(kind).tobytes())

        for row in range(self.case.batch):
            add(self.q(row))
            if self.sparse:
                for extra in (False, True)[: 2 if self.key.extra_topk else 1]:
                    for group in range(len(self.indices(row, extra))):
                        add(np.array(self.counted(row, group, extra), np.int64))
                continue
            add(np.array(self.pool.table[row], np.int64))
            size = self.key.page_block_size
            for logical, page in enumerate(self.pool.table[row]):
                add(self.tokens(page)[: self.lengths[row] - logical * size])
        if self.sparse:
            for extra in (False, True)[: 2 if self.key.extra_topk else 1]:
                blocks = self.sparse_pool(extra)[0]
                for page in range(1 if self.key.op == SPARSE_PREFILL else blocks - 1):
                    add(self.sparse_tokens(page, extra))
        if self.key.attn_sink:
            add(self.sink())
        return sha.hexdigest()


def values(pattern: Bits, case: Case) -> NDArray[np.float64]:
    """float64 values of token bits in the case's format: (tokens, h_kv, d_qk)."""
    layout = fp8.LAYOUTS.get(case.key.kv_format)
    if layout:
        return fp8.decode_tokens(pattern.astype(np.uint8), layout)[:, None, :]
    return bits.decode(pattern, FORMATS[case.key.dtype])


def sink_values(inputs: Inputs) -> NDArray[np.float64]:
    return bits.decode(inputs.sink(), FLOAT32)

"""Where the pages of a case go, and what may lie where nothing means anything."""

from __future__ import annotations

from dataclasses import dataclass

SPARE_PAGES = 3  # of every pool: pages that no row uses
TABLE_TAIL = 2  # columns past the longest row's
GARBAGE = (2147480000, -1, -2147480000, 1 << 30)  # what a meaningless table entry may hold
TILES = 61  # a long row's pages repeat after so many, a big batch's queries too (word tiled)
OWNERS = 48  # rows of a big batch that bring pages of their own; the others read theirs
NAN = {"bfloat16": 0x7FC0, "float16": 0x7E00, "float32": 0x7FC00000}
FAR_BYTES = 1 << 32


def page_count(tokens: int, page_block_size: int) -> int:
    return -(-tokens // page_block_size)


def owner_of(row: int) -> int:
    """Whose pages a row of a big batch reads; no simple function of the row's number."""
    return row if row < OWNERS else (5 * row + 11) % OWNERS


@dataclass(frozen=True)
class Pool:
    """Where pages go: ``table[b]`` the physical pages of row b, in logical order.

    ``owner[page]`` is the (row, logical page) whose bits a page holds; shared pages belong to
    the row that brought them.
    """

    num_blocks: int
    table: tuple[tuple[int, ...], ...]
    owner: dict[int, tuple[int, int]]

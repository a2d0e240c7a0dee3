"""How requests are cut, against the rules of csrc/README.md worked out another way."""

from __future__ import annotations

import ctypes
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from params_layout import MlaParams, fields

from flashmla_hub.backends.hopper.geometry import (
    D_V,
    LIST_POINTERS,
    LIST_TAIL,
    PARAMS_BYTES,
    POINTERS,
    TAIL,
    geometry,
    max_chunks,
    workspace,
)
from flashmla_hub.backends.hopper.units import CSRC
from flashmla_hub.backends.hopper.variants import (
    DYNAMIC_SHARED,
    QUANTISED_FAMILIES,
    Variant,
    all_units,
    all_variants,
)
from flashmla_hub.request import KernelKey


@st.composite
def keys(draw: st.DrawFn) -> KernelKey:
    h_kv = draw(st.sampled_from([1, 1, 2, 3, 8]))
    group = draw(st.integers(1, 160))
    return KernelKey(
        s_q=draw(st.integers(1, 16)),
        h_q=h_kv * group,
        h_kv=h_kv,
        d_qk=draw(st.sampled_from([576, 512])),
    )


@settings(max_examples=300, deadline=None)
@given(keys(), st.booleans(), st.sampled_from([78, 114, 132]))
def test_the_tiles_cover_every_row_once_and_the_grid_fits(
    key: KernelKey, flat: bool, multiprocessors: int
) -> None:
    flat = flat and key.h_kv == 1
    cut = geometry(key, flat, multiprocessors)
    group = key.h_q // key.h_kv
    assert cut.rows == key.s_q * group
    assert 1 <= cut.tile_rows <= 64
    assert (cut.tiles - 1) * cut.tile_rows < cut.rows <= cut.tiles * cut.tile_rows
    assert cut.lanes == key.h_kv * cut.tiles
    assert cut.parts >= 1
    assert cut.parts * cut.lanes <= max(multiprocessors, cut.lanes)
    assert all(1 <= n <= 256 for n in cut.q_box)
    assert cut.q_boxes * cut.q_box[3] * 64 == key.d_qk
    assert cut.q_box_bytes == 2 * 64 * cut.q_box[1] * cut.q_box[2] * cut.q_box[3]
    if not flat:  # a tile is whole heads of whole query tokens, or a share of one token's heads
        assert cut.q_box[1] * cut.q_box[2] == cut.tile_rows
        assert cut.tile_rows % group == 0 or group % cut.tile_rows == 0
    else:
        assert cut.q_heads == cut.rows


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 700), st.integers(1, 132))
def test_the_parts_of_the_workspace_are_aligned_and_do_not_overlap(
    slots: int, partial_rows: int, parts: int
) -> None:
    made = workspace(slots, partial_rows, parts)
    assert made.partial_stats % 16 == made.part_info % 16 == 0
    assert made.partial_stats >= slots * partial_rows * D_V * 2
    assert made.part_info >= made.partial_stats + slots * partial_rows * 16
    assert made.size >= made.part_info + parts * 4


@pytest.mark.parametrize(
    ("capacity", "chunk", "expected"),
    [(0, 16, 1), (64, 16, 1), (64 * 16, 16, 1), (64 * 16 + 1, 16, 2), (2**31 - 64, 32, 32)],
)
def test_chunks_of_a_request(capacity: int, chunk: int, expected: int) -> None:
    assert max_chunks(chunk, capacity) == expected


def test_the_host_packs_the_structure_that_the_header_declares() -> None:
    letters = {ctypes.c_uint64: "Q", ctypes.c_longlong: "q", ctypes.c_int: "i", ctypes.c_float: "f"}
    mla, lists = fields("MlaParams"), fields("ListParams")
    declared = "".join(letters[kind] for _, kind in [*mla[:-1], *lists])
    layout = POINTERS.format + TAIL.format + LIST_POINTERS.format + LIST_TAIL.format
    packed = "".join(
        letter * int(count or 1) for count, letter in re.findall(r"(\d*)([Qqif])", layout)
    )
    assert packed == declared
    assert ctypes.sizeof(MlaParams) == PARAMS_BYTES


def test_every_instantiation_is_listed_once() -> None:
    names = [unit.name for unit in all_units()]
    assert len(all_variants()) == 42
    assert len(names) == len(set(names)) == 42 + 8


def test_the_readme_and_the_launcher_agree_on_shared_memory_and_macros() -> None:
    text = (CSRC / "README.md").read_text()
    for form, size in DYNAMIC_SHARED.items():
        assert re.search(rf"\b{size}\b", text), f"{size} bytes for {form}"
    macros = set(re.findall(r"`(FMH_[A-Z0-9_]+)`", text))
    units = (Variant().main, Variant().combine, Variant(QUANTISED_FAMILIES[0]).main)
    assert {define.partition("=")[0] for unit in units for define in unit.defines} == macros

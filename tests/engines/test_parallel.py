"""Decode context parallelism: index arithmetic, and 2 and 4 gloo processes against the oracle.

``-m 'full or not full'`` runs every combination; without it a sample with all lopsided ones.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dcp_cases as cases
import pytest
import torch
import torch.distributed as dist

from flashmla_hub import config, parallel
from flashmla_hub.errors import InvalidRequestError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORLDS = (2, 4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("interleave", [1, 2, 16, 64])
def test_every_token_lives_on_exactly_one_rank(world_size: int, interleave: int) -> None:
    page, n = 64, 1500
    positions = torch.arange(n)
    width = -(-n // (page * world_size)) + 1
    table = torch.randperm(width, generator=torch.Generator().manual_seed(3)).int()
    slots = torch.stack(
        [
            parallel.local_slots(positions, table, world_size, rank, page, interleave)
            for rank in range(world_size)
        ]
    )
    assert ((slots >= 0).sum(0) == 1).all()
    lens = torch.tensor([0, 1, 63, 64, 65, 127, 128, 129, 1000, n], dtype=torch.int32)
    local = [parallel.local_seq_lens(lens, world_size, r, interleave) for r in range(world_size)]
    for row, length in enumerate(lens.tolist()):
        held = [(slots[r, :length] >= 0).sum().item() for r in range(world_size)]
        assert [ls[row].item() for ls in local] == held
    for rank in range(world_size):  # a rank's tokens fill its pages from the front, in order
        mine = slots[rank][slots[rank] >= 0]
        count = torch.arange(len(mine))
        expected = table[count // page].long() * page + count % page
        assert torch.equal(mine, expected)


def test_slots_of_a_batch_of_rows() -> None:
    table = torch.tensor([[4, 2], [1, 3]], dtype=torch.int32)
    positions = torch.tensor([[0, 1, 129], [2, 3, 130]])
    got = parallel.local_slots(positions, table, 2, 1, 64)
    assert got.tolist() == [[-1, 4 * 64, 2 * 64], [-1, 1 * 64 + 1, -1]]


def test_negative_lengths_count_as_zero() -> None:
    assert parallel.local_seq_lens(torch.tensor([-3, 0]), 2, 0).tolist() == [0, 0]


def test_causal_queries_become_rows_with_the_length_each_may_see() -> None:
    table = torch.tensor([[7], [8]], dtype=torch.int32)
    rows, lens = parallel.shard_rows(table, torch.tensor([5, 1], dtype=torch.int32), 2, 2, 0)
    assert rows.tolist() == [[7], [7], [8], [8]]
    assert lens.tolist() == [2, 3, 0, 1]  # of 4, 5, 0 and 1 visible tokens
    _, lens = parallel.shard_rows(
        table, torch.tensor([5, 1], dtype=torch.int32), 2, 2, 0, causal=False
    )
    assert lens.tolist() == [3, 3, 1, 1]


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: parallel.local_seq_lens(torch.tensor([1]), 2, 2), "rank"),
        (lambda: parallel.local_seq_lens(torch.tensor([1]), 2, 0, 0), "interleave"),
        (
            lambda: parallel.local_slots(torch.tensor([0]), torch.tensor([0]), 2, 0, 64, 48),
            "page_block_size",
        ),
    ],
)
def test_wrong_sharding_is_refused_by_name(call: Any, argument: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        call()
    assert error.value.argument == argument


@pytest.fixture
def group_of_one(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_merge_refuses_wrong_states_before_any_collective(group_of_one: Any) -> None:
    out, lse = torch.zeros(2, 1, 4, 8), torch.zeros(2, 4, 1)
    for argument, call in {
        "mode": lambda: parallel.merge_over_group(out, lse, mode="ring"),
        "out": lambda: parallel.merge_over_group(out[0], lse),
        "lse": lambda: parallel.merge_over_group(out, lse.transpose(1, 2)),
    }.items():
        with pytest.raises(InvalidRequestError) as error:
            call()
        assert error.value.argument == argument
    with pytest.raises(InvalidRequestError, match="float32"):
        parallel.merge_over_group(out, lse.double())


@pytest.mark.parametrize("mode", parallel.MODES)
def test_a_step_without_requests_is_empty(group_of_one: Any, mode: str) -> None:
    q, cache = torch.zeros(0, 2, 4, 576), torch.zeros(3, 16, 1, 576)
    table, lens = torch.zeros(0, 2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    out, lse = parallel.decode_over_group(q, cache, table, lens, 512, group_of_one, mode=mode)
    assert (tuple(out.shape), tuple(lse.shape)) == ((0, 2, 4, 512), (0, 4, 2))


@pytest.mark.parametrize("mode", parallel.MODES)
def test_lazily_negated_states_keep_their_sign(group_of_one: Any, mode: str) -> None:
    out, lse = torch.rand(2, 1, 4, 8), torch.rand(2, 4, 1)
    want = parallel.merge_over_group(-out, -lse, group_of_one, mode)
    minus = torch._neg_view
    found = parallel.merge_over_group(minus(out), minus(lse), group_of_one, mode)
    assert all(map(torch.equal, want, found))
    assert torch.equal(parallel.gather_heads(minus(out), group_of_one), -out)


@pytest.mark.parametrize("mode", parallel.MODES)
def test_a_group_of_one_changes_nothing_but_marks_empty_rows(group_of_one: Any, mode: str) -> None:
    g = torch.Generator().manual_seed(0)
    out, lse = torch.randn(3, 2, 4, 8, generator=g), torch.randn(3, 4, 2, generator=g)
    lse[0, 1, 0], lse[1, 2, 1], lse[2, 3, 0] = torch.inf, torch.nan, -torch.inf
    for b, h, t in ((0, 1, 0), (1, 2, 1), (2, 3, 0)):
        out[b, t, h] = torch.nan
    merged, merged_lse = parallel.merge_over_group(out, lse, group_of_one, mode)
    dead = ~lse.isfinite()
    assert torch.equal(merged_lse == torch.inf, dead)
    torch.testing.assert_close(merged_lse[~dead], lse[~dead])
    gone = dead.transpose(1, 2).unsqueeze(-1).expand_as(out)
    assert (merged[gone] == 0).all()
    torch.testing.assert_close(merged[~gone], out[~gone])


def is_full_case(item: pytest.Item) -> bool:
    return item.path == Path(__file__) and item.get_closest_marker("full") is not None


@pytest.fixture(scope="module")
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What every rank of 2 and of 4 processes found, by world size."""
    extent = "full" if any(map(is_full_case, request.session.items)) else "sample"
    found = {}
    for world_size in WORLDS:
        folder = tmp_path_factory.mktemp(f"world{world_size}")
        command = [sys.executable, str(HERE / "dcp_worker.py")]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(world_size), str(folder), extent],
                cwd=ROOT,
                env=config.child_environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world_size)
        ]
        try:
            output = [process.communicate(timeout=900)[0] for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        assert all(process.returncode == 0 for process in ranks), "\n".join(output)
        found[world_size] = [
            json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world_size)
        ]
    return found


def case_params() -> Iterator[Any]:
    for world_size, setting, mode in itertools.product(WORLDS, cases.SETTINGS, cases.MODES):
        marks = [] if setting in cases.SAMPLE else [pytest.mark.full]
        yield pytest.param(world_size, f"{setting}-{mode}", marks=marks)


@pytest.mark.parametrize(("world_size", "case"), case_params())
def test_shards_merge_to_what_one_device_computes(reports: Any, world_size: int, case: str) -> None:
    broken = {r: report["cases"][case] for r, report in enumerate(reports[world_size])}
    assert not any(broken.values()), broken


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("control", cases.CONTROLS)
def test_known_mistakes_are_caught(reports: Any, world_size: int, control: str) -> None:
    assert any(report["controls"][control] for report in reports[world_size])


@pytest.mark.parametrize("world_size", WORLDS)
def test_the_cases_include_empty_shards(reports: Any, world_size: int) -> None:
    assert sum(report["empty_shards"] for report in reports[world_size]) > 0

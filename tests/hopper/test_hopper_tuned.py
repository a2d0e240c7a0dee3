"""The schedule's settings as data: classes, the shipped table, what a machine measured."""

from __future__ import annotations

import json

import pytest

from flashmla_hub.backends.hopper import tuned
from flashmla_hub.backends.hopper.plugin import HopperBackend
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import KernelKey

H100 = DeviceInfo("nvidia", "sm_90", "cuda", name="NVIDIA H100 80GB HBM3", multiprocessors=132)
KEY = KernelKey(h_q=128)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"h_q": 16}, "sm_90 rows<=16 boxes"),
        ({"h_q": 17}, "sm_90 rows<=32 boxes"),
        ({"h_q": 128}, "sm_90 rows<=128 boxes"),
        ({"h_q": 128, "s_q": 2}, "sm_90 rows<=256 boxes"),
        ({"h_q": 128, "h_kv": 8}, "sm_90 rows<=16 boxes"),
        ({"h_q": 128, "s_q": 4}, "sm_90 rows>256 boxes"),
        ({"page_block_size": 256}, "sm_90 rows<=128 boxes"),
        ({"page_block_size": 16}, "sm_90 rows<=128 gathered"),
        ({"page_block_size": 192}, "sm_90 rows<=128 gathered"),
    ],
)
def test_classes_of_requests(change: dict[str, int], expected: str) -> None:
    assert tuned.group(KEY.with_(**change), H100) == expected


def test_every_shipped_setting_is_one_the_kernel_takes_and_says_where_it_was_measured() -> None:
    table = json.loads(tuned.SHIPPED.read_text())
    assert set(table["made"]) == {"device", "runtime", "torch", "flashmla_hub"}
    settings = tuned.FILE.read(tuned.SHIPPED)
    assert settings
    for found in settings.values():
        assert 0 <= found.request_cost <= 64
        assert found.min_part_blocks in (1, 2, 4, 8)


def test_a_class_that_was_never_measured_has_a_setting() -> None:
    elsewhere = DeviceInfo("nvidia", "sm_9x", "cuda")
    assert tuned.tuning(KEY, elsewhere) == tuned.Tuning()


def test_the_trials_start_with_the_setting_in_force_and_hold_no_other_twice() -> None:
    trials = tuned.trials(KEY, H100)
    assert next(iter(trials.values())) == tuned.tuning(KEY, H100)
    assert len(set(trials.values())) == len(trials) > 4
    assert list(trials) == list(HopperBackend().trials(KEY, H100))


def test_what_was_measured_here_serves_the_class_but_never_batch_invariance() -> None:
    backend = HopperBackend()
    label, other = list(tuned.trials(KEY, H100).items())[-1]
    before = tuned.tuning(KEY, H100)
    assert before != other
    backend.keep(KEY, H100, label)
    assert tuned.tuning(KEY, H100) == other
    assert tuned.tuning(KEY.with_(h_q=100), H100) == other
    assert tuned.tuning(KEY.with_(h_q=64), H100) != other
    assert tuned.tuning(KEY.with_(batch_invariant=True), H100) == before
    made = json.loads(tuned.FILE.path(H100).read_text())["made"]
    assert made["device"] == "NVIDIA H100 80GB HBM3 nvidia:sm_90"


def test_a_broken_file_is_ignored() -> None:
    path = tuned.FILE.path(H100)
    path.parent.mkdir(parents=True)
    path.write_text('{"version": 1, "configs": {"sm_90 rows<=128 boxes": {"no": 1}}}')
    assert tuned.tuning(KEY, H100) == next(iter(tuned.trials(KEY, H100).values()))

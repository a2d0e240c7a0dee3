"""FLASHMLA_HUB_CHECK: the backend that is wrong, or writes where it must not, is named."""

from __future__ import annotations

import pytest
import torch
from core_helpers import Narrow, dense, sparse
from test_tracing import prefill

import flashmla_hub as hub
from flashmla_hub import config
from flashmla_hub.capabilities import ANY
from flashmla_hub.testing import registered

WIDE = {"topk": ANY, "topk_length": True, "attn_sink": True}


def writes(name):
    def finish(port, result):
        getattr(port.calls[-1], name).zero_()
        return result

    return finish


def scaled(at, factor):
    def finish(port, result):
        result[at].mul_(factor)
        return result

    return finish


WRONG = {
    "out off by 5 %": (scaled(0, 1.05), r"out\[.* torch has .* of 4096 differ"),
    "lse in base 2": (scaled(1, 1.4427), r"lse\["),
    "q written": (writes("q"), "input q was written"),
    "cache written": (writes("k_cache"), "input k_cache was written"),
    "table written": (writes("block_table"), "input block_table was written"),
    "nothing returned": (lambda port, result: None, "run returned NoneType"),
    "another shape": (lambda port, r: (r[0][:1], r[1]), r"out is \(\(1, 1, 4, 512\)"),
    "another dtype": (lambda port, r: (r[0].double(), r[1]), "out is .*float64"),
}


def port_that(finish, name="port", **declared):
    port = Narrow(name, rank=99, **declared)
    port.finish = lambda result: finish(port, result)
    return port


@pytest.mark.parametrize("what", WRONG)
def test_the_culprit_is_named(what):
    finish, said = WRONG[what]
    with (
        registered(port_that(finish)),
        config.override(check=1),
        pytest.raises(hub.PluginError, match=rf"backend 'port': .*{said}"),
    ):
        hub.flash_mla_with_kvcache(**dense())


def test_an_honest_backend_passes_and_is_asked_only_so_often():
    calls = {
        "dense_decode": lambda: hub.flash_mla_with_kvcache(**dense(lens=[20, 0], s_q=2)),
        "sparse_decode": lambda: hub.flash_mla_with_kvcache(**sparse()),
        "sparse_prefill": lambda: hub.flash_mla_sparse_fwd(**prefill()),
    }
    for op, call in calls.items():
        factor = [1]
        port = port_that(
            lambda port, r, f=factor: (r[0] * f[0], *r[1:]),
            op=op,
            **({} if op == "dense_decode" else WIDE),
        )
        want = call()
        with registered(port), config.override(check=2):
            for _ in range(3):
                assert all(map(torch.equal, call(), want))
            factor[0] = 2
            assert torch.equal(call()[0], want[0] * 2)  # no longer looked at


def test_poison_is_no_difference():
    args = dense(lens=[3, 0])
    args["k_cache"][:, 5:] = float("nan")
    with registered(port_that(lambda port, r: r)), config.override(check=1):
        out, lse = hub.flash_mla_with_kvcache(**args)
    assert out.isfinite().all()
    assert lse[1].isposinf().all()


def test_the_switch_is_read_from_the_environment():
    assert config.from_environment({"FLASHMLA_HUB_CHECK": "3"}).check == 3
    for wrong in ("yes", "-1", "1.5", "9" * 5000):
        with pytest.raises(hub.InvalidRequestError, match="FLASHMLA_HUB_CHECK"):
            config.from_environment({"FLASHMLA_HUB_CHECK": wrong})

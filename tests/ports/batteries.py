"""The batteries besides ``battery.battery``: whose distribution is whose, whose device is whose,
sparse attention, large batches. ``run`` is what the mutation check calls."""

from __future__ import annotations

from pathlib import Path

import flashmla_hub
from flashmla_hub import identify, testing
from flashmla_hub.request import KernelKey
from tests.ports.battery import PORTS, battery, must_refuse, ports
from tests.ports.requests import Dense, check_dense
from tests.simulated_ports import catalogue


def run(label: str, folder: Path) -> None:
    """``battery`` of a port, or one of the special ones: ``owners``, ``devices``, ``kind:port``."""
    kind, _, port = label.rpartition(":")
    if label == "owners":
        _owners(folder)
    elif label == "devices":
        _devices()
    elif kind == "sparse":
        _sparse(port, folder)
    elif kind == "large":
        with ports(port, folder=folder), flashmla_hub.simulate_device("moore_threads", "mp_31"):
            serves_large_batches(f"simulated_{port}")
    elif kind == "scale":
        fakes, device, name, *_ = PORTS[port]
        with (
            ports(*fakes, folder=folder),
            flashmla_hub.simulate_device(*identify.parse_device(device)),
        ):
            check_dense(f"simulated_{name}", scale=0.1147)
    elif label == "hygon_newer":
        with ports(label, folder=folder), flashmla_hub.simulate_device("hygon", "gfx938"):
            check_dense("simulated_hygon")
    else:
        battery(label, folder)


def serves_large_batches(name: str) -> None:
    """4100 rows, two of them looked at in three places."""
    request = Dense(h_q=1, lens=(1, 70))
    request.make()
    rows = 4100
    request.q = request.q.repeat(rows // 2, 1, 1, 1)
    request.table = request.table.repeat(rows // 2, 1)
    request.cache_seqlens = request.cache_seqlens.repeat(rows // 2)
    out, lse = request.call(name)
    two = Dense(h_q=1, lens=(1, 70))
    two.make()
    for first in (0, 4094, rows - 2):
        two.judge(out[first : first + 2], lse[first : first + 2], first)


def _owners(folder: Path) -> None:
    from flashmla_hub import foreign
    from flashmla_hub.backends._ports import owners

    for label, fake in catalogue.FAKES.items():
        if fake.owner:
            with ports(label, folder=folder / label):
                (found,) = foreign.distributions(fake.name)
                facts = owners.facts(found)
                claims = [owner.key for owner in owners.OWNERS if owner.owns(facts)]
                assert claims == [fake.owner], (label, claims)


def _devices() -> None:
    from tests.ports import test_devices

    for label in test_devices.FAKES:
        test_devices.test_exactly_one_rule_claims_each_vendors_device(label)
    for fake in test_devices.UNKNOWN:
        test_devices.test_what_shows_no_positive_sign_is_unknown_and_says_what_was_seen(fake)


def _sparse(port: str, folder: Path) -> None:
    from tests.ports import test_sparse

    if port == "metax":
        with ports("metax_mc", folder=folder), flashmla_hub.simulate_device("metax", "xcore1000"):
            name = "simulated_metax_sparse"
            _refuses_others(name, KernelKey(op="sparse_decode", topk=64, h_q=64))
            _refuses_others(name, KernelKey(op="sparse_decode", topk=64, h_q=64, s_q=2))
            key = KernelKey(
                op="sparse_decode", topk=50, topk_length=True, h_q=64, s_q=2, page_block_size=16
            )
            assert _steps(name, key) == {"pad_topk", "repair_empty_rows"}
            for declared in flashmla_hub.get_backend(name).declarations:
                assert declared.plans_per_call is (declared.op == "sparse_decode")
            _refuses_others(
                name, KernelKey(op="sparse_prefill", topk=64, h_q=64, page_block_size=1)
            )
            for case in test_sparse.METAX_DECODE:
                test_sparse.test_metax_sparse_decode(name, *case)
            for case in test_sparse.METAX_PREFILL:
                test_sparse.test_metax_sparse_prefill_comes_back_in_natural_units(name, *case)
    else:
        with (
            ports("flag_gems_sparse", folder=folder),
            flashmla_hub.simulate_device("nvidia", "sm_90"),
        ):
            name = "simulated_flaggems_sparse"
            key = KernelKey(
                op="sparse_decode", topk=64, h_q=64, d_qk=512, kv_format="model1", attn_sink=True
            )
            _refuses_others(name, key)
            strided = key.with_(kv_strides="page_strided")
            testing.bind_unchecked(name, strided, identify.identify("cpu"))
            hazards = {
                d.attn_sink: d.hazards
                for d in flashmla_hub.get_backend(name).capabilities(identify.identify("cpu"))
            }
            assert hazards == {False: (), True: ("synchronises",)}
            for case in test_sparse.FLAGGEMS:
                for page in (64, 2):
                    test_sparse.test_flaggems_sparse_decode(name, page, *case)


def _steps(name: str, key: KernelKey) -> set[str]:
    decision = flashmla_hub.explain(key, device=identify.identify("cpu"), backend=name)
    own = next(c for c in decision.candidates if c.backend == name)
    assert own.accepted, own.reasons
    return {step.name for step in own.steps}


def _refuses_others(name: str, key: KernelKey) -> None:
    """Head counts beyond the declared, unaligned addresses, another vendor's device."""
    backend = flashmla_hub.get_backend(name)
    info = identify.identify("cpu")
    testing.bind_unchecked(backend, key, info)
    for changes in ({"h_q": 130}, {"q_alignment": 2}, {"dtype": "float32"}):
        must_refuse(backend, key.with_(**changes), info)
    must_refuse(backend, key, identify.simulated("intel"))

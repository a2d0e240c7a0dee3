"""Which backend is chosen, in which order, and what is kept of it."""

from __future__ import annotations

import json
import logging
import threading

import pytest
import torch
from core_helpers import Narrow, dense

import flashmla_hub as hub
from flashmla_hub import bounded, config, dispatch, tuning
from flashmla_hub.call import DenseDecode
from flashmla_hub.capabilities import DeviceClass, between, one_of
from flashmla_hub.request import choice_key
from flashmla_hub.testing import bind_unchecked, registered

KEY = hub.KernelKey(dtype="float32", h_q=4, page_block_size=8)


def selected(**kwargs):
    return hub.explain(KEY, **kwargs).selected


def test_order_of_choice():
    with registered(Narrow("one", rank=50)), registered(Narrow("two", rank=60)):
        assert selected() == "two"
        with config.override(backend="one"):
            assert selected() == "one"
            with hub.use_backend("torch"):
                assert selected() == "torch"
                assert selected(backend="two") == "two"
                with hub.use_backend(None):
                    assert selected() == "one"
        assert selected() == "two"


def test_ties_go_by_name():
    with registered(Narrow("bbb", rank=60)), registered(Narrow("aaa", rank=60)):
        assert selected() == "aaa"


def test_an_explicit_choice_never_falls_back():
    with registered(Narrow("narrow", rank=99, h_q=one_of(16))):
        assert selected() == "torch"
        decision = hub.explain(KEY, backend="narrow")
        assert decision.selected is None
        assert "never falls back" in decision.why
        for call in (
            lambda: hub.flash_mla_with_kvcache(**dense(), backend="narrow"),
            lambda: hub.warmup(KEY, backend="narrow"),
        ):
            with pytest.raises(hub.NoBackendError, match="h_q=4: takes 16") as caught:
                call()
            assert caught.value.decision.selected is None


def test_use_backend_of_an_unknown_name_is_refused_with_the_names():
    with pytest.raises(hub.InvalidRequestError, match="torch"):
        hub.use_backend("nothing")


def test_no_backend_lists_each_with_all_its_reasons():
    with (
        registered(Narrow("narrow", devices=(DeviceClass("acme", ("a2",)),), h_q=one_of(16))),
        hub.simulate_device("acme", "a1"),
        pytest.raises(hub.NoBackendError) as caught,
    ):
        hub.flash_mla_with_kvcache(**dense())
    text = str(caught.value)
    assert text.splitlines()[1] == "selected none: no backend accepts"
    assert "almost   narrow: device acme:a1" in text  # the vendor's, of another arch
    assert "others   for other devices: amd" in text
    assert "device acme:a1 (simulated): takes acme (a2)" in text
    assert "h_q=4: takes 16" in text
    assert "almost   torch: runs on real devices only" in text


def test_running_under_a_simulated_device_needs_a_backend_made_for_it():
    port = Narrow("port", devices=(DeviceClass("acme"),))
    port.runs_simulated = True
    with registered(port), hub.simulate_device("acme", "a1"):
        assert [str(d) for d in hub.devices()] == ["acme:a1 (simulated)"]
        assert selected() == "port"
        hub.flash_mla_with_kvcache(**dense())
        assert port.calls
    assert selected() == "torch"


@pytest.mark.parametrize("hazard", ["needs_finite_cache", "approximate", "half_range"])
def test_hazardous_backends_are_used_on_explicit_choice_only(hazard):
    with registered(Narrow("risky", rank=99, hazards=(hazard,))):
        decision = hub.explain(KEY)
        assert decision.selected == "torch"
        assert f"hazard {hazard}" in str(decision)
        hub.flash_mla_with_kvcache(**dense(), backend="risky")


def test_batch_invariant_requests_reach_only_who_claims_it():
    args = dense()
    with (
        registered(Narrow("fast", rank=99)),
        registered(Narrow("steady", rank=20, batch_invariant=True)),
    ):
        assert hub.explain_call(**args).selected == "fast"
        decision = hub.explain_call(**args, batch_invariant=True)
        assert decision.selected == "steady"
        assert decision.choice.batch_class == decision.choice.capacity_class == 0
        fast = next(c for c in decision.candidates if c.backend == "fast")
        assert fast.reasons == ("batch_invariant=True: takes False only",)


def write_table(preferred):
    path = tuning.path_for(hub.devices()[0])
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": tuning.VERSION, "preferred": preferred}))


def test_the_tuning_table_stands_above_ranks_and_below_explicit_choice():
    choice = choice_key(KEY, 1, 4096)
    with registered(Narrow("one", rank=50)), registered(Narrow("two", rank=60)):
        write_table({str(choice): "one"})
        decision = hub.explain(choice)
        assert decision.selected == "one"
        assert "tuning table" in decision.why
        assert hub.explain(choice, backend="two").selected == "two"
        invariant = choice_key(KEY.with_(batch_invariant=True), 1, 4096)
        assert "tuning" not in hub.explain(invariant).why
        write_table({str(choice): "gone"})
        assert hub.explain(choice).selected == "two"
        tuning.path_for(hub.devices()[0]).write_text("{damaged")
        assert hub.explain(choice).selected == "two"


def test_binds_once_for_each_kernel_key_and_stays_bounded():
    port = Narrow("port", rank=99)
    with registered(port):
        for batch in range(1, 60):
            hub.flash_mla_with_kvcache(**dense(batch=batch, width=1, page=1, lens=[1] * batch))
        assert len(port.bound) == 1
        for page in range(1, 40):
            hub.flash_mla_with_kvcache(**dense(page=page, width=1, lens=[1, 1]))
    assert len(dispatch.bound_kernels) <= dispatch.MAX_BOUND
    assert len(dispatch.routes) <= dispatch.MAX_ROUTES


def test_the_bound_cache_drops_the_oldest(monkeypatch):
    cache = bounded.Bounded(3)
    for key in range(5):
        cache.get_or_make(key, lambda key=key: f"kernel {key}")
    assert cache.get(0) is cache.get(1) is None
    assert len(cache) == 3
    assert cache.get_or_make(4, lambda: "again") == "kernel 4"


def test_threads_that_meet_a_new_key_bind_it_once():
    port, barrier = Narrow("port", rank=99), threading.Barrier(8)
    failures = []

    def call():
        try:
            barrier.wait()
            hub.flash_mla_with_kvcache(**dense(h_q=7))
        except Exception as error:
            failures.append(error)

    with registered(port):
        threads = [threading.Thread(target=call) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
    assert not failures
    assert len(port.bound) == 1


def test_threads_with_different_backends_do_not_disturb_each_other():
    ports = {name: Narrow(name) for name in ("left", "right")}
    barrier, wrong = threading.Barrier(2), []

    def work(name):
        with hub.use_backend(name):
            barrier.wait()
            for _ in range(30):
                hub.flash_mla_with_kvcache(**dense())
                if hub.explain(KEY).selected != name:
                    wrong.append(name)

    with registered(ports["left"]), registered(ports["right"]):
        threads = [threading.Thread(target=work, args=(name,)) for name in ports]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not wrong
        assert [len(port.calls) for port in ports.values()] == [30, 30]
        with hub.simulate_device("amd"):
            seen = []
            thread = threading.Thread(target=lambda: seen.append(str(hub.devices()[0])))
            thread.start()
            thread.join()
        assert not seen[0].startswith("amd")


def test_one_log_line_for_each_new_request(caplog):
    with config.override(log="info"), caplog.at_level(logging.INFO, "flashmla_hub"):
        for _ in range(3):
            hub.flash_mla_with_kvcache(**dense(h_q=11))
    lines = [r.getMessage() for r in caplog.records if "h_q=11" in r.getMessage()]
    assert len(lines) == 1
    assert "chose torch" in lines[0]


def test_fp8_without_a_name_says_which_layout_it_took():
    args = dense(dtype=torch.bfloat16)
    args["k_cache"] = torch.zeros(6, 8, 1, 656, dtype=torch.uint8)
    decision = hub.explain_call(**args)
    assert decision.choice.kernel.kv_format == "v32"
    assert any("v32 by default" in note for note in decision.notes)
    assert not hub.explain_call(**args, kv_format="v32").notes


def test_bind_unchecked_opens_the_gate():
    port = Narrow("port", h_q=one_of(16))
    kernel = bind_unchecked(port, KEY)
    assert port.bound == [KEY]
    args = dense()
    del args["head_dim_v"]
    kernel.run(DenseDecode(*args.values(), 0.04))


def test_decision_prints_and_serialises():
    decision = hub.explain(KEY)
    data = json.loads(json.dumps(decision.to_json()))
    assert data["selected"] == "torch"
    by_name = {c["backend"]: c for c in data["candidates"]}
    assert {"backend", "accepted", "rank", "reasons", "rewrites"} <= set(by_name["torch"])
    assert "selected torch" in str(decision)


def test_a_device_override_changes_identification_not_the_tensors_type():
    typed = Narrow("typed", rank=99, devices=(DeviceClass("acme", type="cuda"),))
    with registered(typed), config.override(device="acme:a7"):
        info = hub.devices()[0]
        assert (info.vendor, info.arch, info.type) == ("acme", "a7", "cpu")
        assert selected() == "torch"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("nope", "a vendor that a rule or a backend knows: "),
        ("h100", "did you mean nvidia:sm_90?"),
        ("sm_90", "did you mean nvidia:sm_90?"),
        ("nvidia:h100", "did you mean nvidia:sm_90?"),
        ("nvdia:sm_90", "did you mean nvidia:sm_90?"),
        ("nvidai", "did you mean nvidia?"),
        ("npu", "did you mean ascend?"),
        ("nvidia:sm_999", "nvidia with one of: sm_50"),
        ("amd:[/]", "lower-case words"),
    ],
)
def test_a_device_that_nobody_knows_is_refused_with_the_nearest(text, hint):
    vendor, _, arch = text.partition(":")
    for ask in (
        lambda: hub.explain(KEY, device=text),
        lambda: hub.simulate_device(vendor, arch),
    ):
        with pytest.raises(hub.InvalidRequestError) as caught:
            ask()
        assert hint in str(caught.value)
    with (
        config.override(device=text),
        pytest.raises(hub.InvalidRequestError, match="FLASHMLA_HUB_DEVICE"),
    ):
        hub.devices()


def test_a_mistyped_backend_is_refused_naming_where_it_came_from():
    with (
        config.override(backend="tritn"),
        pytest.raises(hub.InvalidRequestError) as caught,
    ):
        hub.explain(KEY)
    assert str(caught.value).startswith("FLASHMLA_HUB_BACKEND: got 'tritn'")
    assert "did you mean triton?" in str(caught.value)


def test_variables_that_nobody_reads_are_told_with_the_nearest():
    told = config.unread({"FLASHMLA_HUB_BAKEND": "x", "FLASHMLA_HUB_LOG": "info", "HOME": "/"})
    assert told == [
        "FLASHMLA_HUB_BAKEND is set, and nothing reads it; did you mean FLASHMLA_HUB_BACKEND?"
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"h_q": 0}, {"h_q": -4}, {"h_q": True}, {"h_q": 3, "h_kv": 2},
        {"page_block_size": 0}, {"s_q": 0}, {"h_kv": 0}, {"d_qk": 0.5}, {"topk": -1},
        {"causal": 1}, {"dtype": None}, {"q_alignment": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_key_that_no_call_has_is_the_callers_mistake(change):
    before = set(hub.registry.state().entries)
    for ask in (hub.explain, hub.warmup):
        with pytest.raises(hub.InvalidRequestError, match="KernelKey"):
            ask(KEY.with_(**change))
    assert set(hub.registry.state().entries) == before
    assert hub.explain(hub.KernelKey(h_q=16), device="amd:gfx942").selected == "amd"


@pytest.mark.parametrize("page", [16 << 20, 2**31 - 1, 2**31, 2**40, 2**62])
def test_a_page_of_any_size_is_answered_at_once(page):
    hub.explain(KEY.with_(page_block_size=page))
    for takes in (between(1, 1024), between(64, 4096, 64), one_of(1, 64, 128), between(2**20)):
        found = takes.divisor_of(page)
        assert found is None or (found in takes and page % found == 0)


def test_the_largest_divisor_is_the_one_found():
    for takes in (between(1, 64), between(3, 50, 3), one_of(4, 6, 9), between(5), between(1, 0)):
        for n in range(1, 400):
            known = max((v for v in range(1, n + 1) if n % v == 0 and v in takes), default=None)
            assert takes.divisor_of(n) == known, (str(takes), n)


def test_a_decision_and_a_device_show_themselves_in_a_notebook():
    decision = hub.explain(hub.KernelKey(), backend="hopper", device="cpu")
    shown = decision._repr_html_()
    assert "<b>none</b>: backend= argument, and it refuses" in shown
    assert "takes nvidia (sm_90)" in shown
    assert shown.count("<table>") == shown.count("</table>") == 1
    assert "&lt;=" in shown  # escaped
    assert "x86_64" in hub.devices()[0]._repr_html_()


def test_a_backend_asked_for_by_name_is_the_first_to_be_told_of():
    told = str(hub.explain(hub.KernelKey(), backend="hopper", device="cpu")).splitlines()
    assert told[1] == "refused  hopper: device cpu:x86_64: takes nvidia (sm_90)"


def test_the_list_of_backends_goes_by_two_names():
    assert hub.list_backends() == hub.backends()
    assert "status" in (hub.list_backends.__doc__ or "")

"""Backends that break the contract after they were loaded: each question in its guard, the answer
about that question only, and every other backend served."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from core_helpers import Narrow, dense

import flashmla_hub as hub
from flashmla_hub import capabilities, config, dispatch, guard, identify, registry
from flashmla_hub.backend import Band
from flashmla_hub.capabilities import Capabilities, IntSet, Rule
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.testing import registered

KEY = hub.KernelKey(dtype="float32", h_q=4, page_block_size=8)


class Own(BaseException):
    """No Exception."""


RAISED = [SystemExit(9), KeyboardInterrupt(), MemoryError(), RecursionError(), Own("x"), OSError()]


def hostile(question, act):
    """A backend above all others that acts when it is asked ``question``."""

    class Hostile(Narrow):
        pass

    def answer(self, *args):
        return act()

    setattr(Hostile, question, answer)
    return Hostile("hostile", rank=99)


def raising(error):
    def act():
        raise error

    return act


def candidate(name="hostile"):
    return next(c for c in hub.explain(KEY).candidates if c.backend == name)


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("question", ["capabilities", "rank", "environment_reasons"])
def test_whatever_a_question_raises_is_the_answer_to_it(question, error):
    with registered(hostile(question, raising(error))):
        assert hub.explain(KEY).selected == "torch"
        (reason,) = candidate().reasons
        assert f"{question} raised {type(error).__name__}" in reason
        out, _ = hub.flash_mla_with_kvcache(**dense())
        assert out.isfinite().all()
        status = {b.name: b.status for b in hub.backends()}
        assert status["torch"] == "ready"
        assert status["hostile"] != "quarantined"


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
def test_whatever_notes_and_bind_raise_ends_no_call(error):
    with registered(hostile("notes", raising(error))):
        assert f"notes raised {type(error).__name__}" in candidate().notes[0]
        hub.flash_mla_with_kvcache(**dense())
    with registered(hostile("bind", raising(error))):
        out, _ = hub.flash_mla_with_kvcache(**dense())
        assert out.isfinite().all()
        with pytest.raises(hub.PluginError, match="hostile"):
            hub.flash_mla_with_kvcache(**dense(), backend="hostile")


@pytest.mark.parametrize("question", ["capabilities", "rank", "environment_reasons", "notes"])
@pytest.mark.parametrize("act", [lambda: time.sleep(60), lambda: spin()], ids=["sleeps", "spins"])
def test_a_question_that_is_not_answered_in_time_ends_the_backend(question, act):
    with config.override(plugin_timeout=0.3), registered(hostile(question, act)):
        started = time.monotonic()
        assert hub.explain(KEY).selected == "torch"
        assert hub.explain(KEY).selected == "torch"
        assert time.monotonic() - started < 20
        (told,) = [b for b in hub.backends() if b.name == "hostile"]
        assert told.status == "quarantined"
        assert f"{question} did not finish in 0.3 s" in told.reason


def spin():
    while True:
        pass


def test_a_real_interrupt_ends_the_call_and_one_of_a_plugins_does_not():
    def press():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)

    with registered(hostile("bind", press)), pytest.raises(KeyboardInterrupt):
        hub.flash_mla_with_kvcache(**dense())
    with registered(hostile("rank", press)), pytest.raises(KeyboardInterrupt):
        hub.explain(KEY)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_plugins_interrupt_is_one_where_no_real_one_can_come(handler):
    """A background job of a shell runs with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        with registered(hostile("rank", raising(KeyboardInterrupt()))):
            assert hub.explain(KEY).selected == "torch"
    finally:
        signal.signal(signal.SIGINT, before)


class Sneaky(int):
    def __lt__(self, other):
        return False

    def __gt__(self, other):
        return True


@pytest.mark.parametrize(
    "rank", [10**9, 10**5000, -1, 100, Sneaky(50), True, 50.0, "50", None], ids=lambda r: type(r)
)
def test_a_rank_outside_its_bands_is_refused(rank):
    with registered(Narrow("ranked", rank=rank)):
        assert hub.explain(KEY).selected == "torch"
        (reason,) = candidate("ranked").reasons
        assert "rank returned" in reason
        assert len(reason) < 500


def test_a_band_is_a_rank():
    with registered(Narrow("port", rank=Band.PORT)), registered(Narrow("up", rank=Band.PORT + 5)):
        assert hub.explain(KEY).selected == "up"
        assert type(candidate("port").rank) is int


def test_declarations_that_change_between_calls_change_nothing():
    class Fickle(Narrow):
        asked = 0

        def capabilities(self, device):
            self.asked += 1
            return self.declared if self.asked == 1 else ()

    fickle = Fickle("fickle", rank=99)
    with registered(fickle):
        first, second = hub.explain(KEY), hub.explain(KEY)
        assert first == second
        assert first.selected == "fickle"
        assert fickle.asked == 1


def test_declarations_are_taken_in_depth():
    port = Narrow("port", rank=99, h_q=capabilities.one_of(4))
    shared = port.declared[0]
    with registered(port):
        assert hub.explain(KEY).selected == "port"
        object.__setattr__(shared, "dtypes", ())
        object.__setattr__(shared.h_q, "values", (7,))
        assert hub.explain(KEY).selected == "port"


NONSENSE = {
    "a dict of sets": {"h_q": (4,)},
    "a float": {"alignment": 1.0},
    "text for a tuple": {"dtypes": "float32"},
    "numbers as bools": {"cuda_graph": 1},
    "an unknown op": {"op": "dense_encode"},
    "an unknown hazard": {"hazards": ("sometimes wrong",)},
    "a step of zero": {"h_q": IntSet(step=0)},
    "an uncallable rule": {"rules": (Rule("r", "no function"),)},
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_declaration_of_wrong_types_is_quarantined_with_the_field(name):
    class Wrong(Narrow):
        def capabilities(self, device):
            return (Capabilities(**NONSENSE[name]),)

    with registered(Wrong("wrong", rank=99)):
        assert hub.explain(KEY).selected == "torch"
        (told,) = [b for b in hub.backends() if b.name == "wrong"]
        assert told.status == "quarantined"
        assert next(iter(NONSENSE[name])).rstrip("s") in told.reason


def test_a_rule_that_raises_on_one_key_refuses_that_key_only():
    def check(key):
        return None if 16 // (key.h_q - 8) else "odd"

    rule = Narrow("ruled", rank=99, rules=(Rule("divides", check),))
    with registered(rule):
        assert hub.explain(KEY.with_(h_q=8)).selected == "torch"
        assert hub.explain(KEY).selected == "ruled"


def test_an_identification_that_hangs_or_answers_odd_fields_is_quarantined():
    for answer, reason in (
        (lambda probe: time.sleep(60), "identify did not finish"),
        (lambda probe: DeviceInfo(vendor=7, arch="", type="cpu"), "vendor is 7"),
        (lambda probe: spin(), "identify did not finish"),
    ):

        def flashmla_hub_identify_device(probe, answer=answer):
            return answer(probe)

        rule = SimpleNamespace(
            flashmla_hub_identify_device=hub.hookimpl(
                lambda probe, hook=flashmla_hub_identify_device: hook(probe)
            )
        )
        with config.override(plugin_timeout=0.3), registered(rule, "odd"):
            assert identify.ask_rules(DeviceProbe(type="cpu")).vendor == "cpu"
            assert reason in registry.state().quarantined[-1].reason


class Starved(Narrow):
    """Binds when there is room."""

    error: BaseException | None = None

    def bind(self, key, device):
        if self.error is not None:
            raise self.error
        return super().bind(key, device)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("no room"),
        OSError(28, "No space left on device"),
        RuntimeError("CUDA error: out of memory"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_bind_that_fails_for_want_of_memory_or_disk_is_tried_again(error, monkeypatch):
    port = Starved("starved", rank=99)
    port.error = error
    args = dense(seed=3)
    with registered(port):
        hub.flash_mla_with_kvcache(**args)  # torch serves it
        assert {b.name: b.status for b in hub.backends()}["starved"] == "ready"
        port.error = None
        hub.flash_mla_with_kvcache(**args)  # too early to ask again
        assert not port.calls
        monkeypatch.setattr(dispatch, "RETRY_S", 0.0)
        dispatch._later.clear()
        hub.flash_mla_with_kvcache(**args)
        assert len(port.calls) == 1


def test_what_a_plugin_prints_is_no_output_of_a_command(capsys):
    class Chatty(Narrow):
        def capabilities(self, device):
            print("hello")
            return super().capabilities(device)

    with registered(Chatty("chatty")):
        hub.explain(KEY)
    said = capsys.readouterr()
    assert said.out == ""
    assert "hello" in said.err
    assert not isinstance(sys.stdout, guard._Router)


def test_a_backend_that_forks_leaves_one_host():
    marks = []

    def fork():
        os.fork()
        marks.append(os.getpid())
        return ()

    with registered(hostile("environment_reasons", fork)):
        hub.explain(KEY)
    assert marks == [os.getpid()]


def test_a_backend_that_asks_the_hub_from_its_declaration_is_stopped():
    with registered(hostile("rank", lambda: hub.explain(KEY).candidates[0].rank)):
        assert candidate("torch").accepted
    assert threading.active_count() < 50

"""Errors over process pools, forks while another thread binds, the application's logger."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from core_helpers import Narrow, dense

import flashmla_hub as hub
from flashmla_hub import bounded, config, errors, forks, guard, log, registry
from flashmla_hub.testing import registered


class Unpicklable:
    def __reduce__(self):
        raise TypeError("no")

    def __str__(self):
        return "odd"


class Unprintable:
    def __str__(self):
        raise RuntimeError("no text")


def raise_(error):
    raise error


def a_decision():
    return hub.explain(hub.KernelKey(), device="nvidia:sm_90")


ERRORS = [
    lambda: hub.InvalidRequestError("q", (1, 2), "more"),
    lambda: hub.InvalidRequestError("q", Unpicklable(), "more"),
    lambda: hub.InvalidRequestError("q", torch.zeros(3), "more"),
    lambda: hub.NotSupportedError("acme", "h_q", 3, "16"),
    lambda: hub.NotSupportedError("acme", "build", Unpicklable(), "16"),
    lambda: hub.NoBackendError("none", a_decision()),
    lambda: hub.PluginError("broken"),
    lambda: hub.DeviceConflictError("two"),
    lambda: guard.Fault("hung", hung=True),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_errors_pickle_with_their_fields(number):
    error = ERRORS[number]()
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    for name in ("argument", "expected", "backend", "feature", "accepted", "decision", "hung"):
        assert getattr(again, name, None) == getattr(error, name, None)


def test_errors_come_home_from_a_process_pool():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        for error in (
            hub.InvalidRequestError("q", 1, "2"),
            hub.NotSupportedError("a", "b", 1, "c"),
        ):
            with pytest.raises(type(error), match=r"got 1|b=1"):
                pool.submit(raise_, error).result(timeout=60)


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, list(range(10**5)), 10**5000, Unprintable()],
    ids=["text", "list", "number", "object"],
)
def test_the_text_of_an_error_is_bounded(value):
    assert len(str(hub.InvalidRequestError("q", value, "a number"))) < 1000
    assert len(str(hub.NotSupportedError("acme", "q", value, "a number"))) < 20_000
    assert len(errors.clipped(value)) < 500


class Slow(Narrow):
    def __init__(self):
        super().__init__("slow", rank=99)
        self.binding, self.go = threading.Event(), threading.Event()

    def bind(self, key, device):
        if threading.current_thread() is not threading.main_thread():
            self.binding.set()
            self.go.wait(30)
        return super().bind(key, device)


def exit_status(child: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_during_a_bind_leaves_the_child_able_to_bind():
    slow = Slow()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the pool of OpenMP does not survive a fork
    try:
        with registered(slow):
            other = threading.Thread(target=lambda: hub.warmup(hub.KernelKey(dtype="float32")))
            other.start()
            assert slow.binding.wait(30)
            child = os.fork()
            if child == 0:
                try:
                    hub.warmup(hub.KernelKey(dtype="float32"))
                    os._exit(0)
                finally:
                    os._exit(1)
            assert exit_status(child, 30) == 0
            slow.go.set()
            other.join()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_while_plugins_are_registered_waits_for_them():
    started, done = threading.Event(), threading.Event()

    def hold():
        with registry._lock:
            started.set()
            done.wait(0.5)

    holder = threading.Thread(target=hold)
    holder.start()
    assert started.wait(10)
    child = os.fork()
    if child == 0:
        try:
            with registered(Narrow("child")):
                os._exit(0)
        finally:
            os._exit(1)
    done.set()
    assert exit_status(child, 30) == 0
    holder.join()


def test_locks_are_free_in_a_child_and_unchanged_in_the_parent():
    lock, table = forks.Lock(), bounded.Bounded(2)
    with lock:
        forks._before()
        forks._in_parent()
        assert not lock.acquire(0.0)
    forks._in_child()
    with lock:
        pass
    assert table.get_or_make("k", lambda: 1) == 1


@pytest.fixture
def logger():
    found = logging.getLogger("flashmla_hub")
    before = found.level, list(found.handlers), found.propagate
    yield found
    found.setLevel(before[0])
    found.handlers[:], found.propagate = before[1], before[2]


def test_the_logger_is_the_applications_unless_the_variable_is_set(logger):
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)
    with config.override(log=None):
        log.warning("unheard")
        log.info("unheard")
    assert (logger.level, said) == (logging.ERROR, [])
    with config.override(log="info"):
        log.info("heard")
    assert len(said) == 1


def test_a_bare_logger_gets_no_handler_unless_the_variable_is_set(logger, capsys):
    logger.handlers.clear()
    logger.propagate = False
    with config.override(log=None):
        log.info("unheard")
    assert logger.handlers == []
    with config.override(log="info"):
        log.info("heard")
    assert len(logger.handlers) == 1
    assert "flashmla_hub: heard" in capsys.readouterr().err


def test_calls_still_work_after_all_this():
    out, _ = hub.flash_mla_with_kvcache(**dense())
    assert out.isfinite().all()

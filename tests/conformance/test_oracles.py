"""The two oracles, written differently, agree; the verifier's needs no torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flashmla_hub.conformance import oracle_numpy
from flashmla_hub.conformance.cases import all_cases
from flashmla_hub.conformance.inputs import Inputs
from flashmla_hub.conformance.memory import NotReached
from flashmla_hub.conformance.model import Case
from flashmla_hub.conformance.oracle_torch import Oracle
from flashmla_hub.conformance.placing import place

DRAWN = [c for c in all_cases() if c.check in ("values", "refusal") and c.variant != "unknown"
         and c.batch]  # fmt: skip
# every op, format, family and layout word, the smaller cases first
SOME = ("edges/", "poison/h16", "extreme/", "sparse/", "prefill/", "strided/", "extra/h16",
        "fp8/", "scale/", "offsets/")  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


def compare(case: Case) -> None:
    inputs = Inputs(case)
    try:
        torch_says = Oracle(place(inputs)).all()
    except NotReached as reason:
        pytest.skip(str(reason))
    numpy_says = oracle_numpy.outputs(inputs)
    for name, theirs in numpy_says.items():
        mine = getattr(torch_says, name)
        assert not np.isnan(mine).any(), f"{case.id}: {name} of the torch oracle has NaN"
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-9,
                                   err_msg=f"{case.id}: {name}")  # fmt: skip


@pytest.mark.parametrize("case", [c for c in DRAWN if c.id.startswith(SOME)], ids=lambda c: c.id)
def test_oracles_agree(case: Case) -> None:
    compare(case)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 4))
def test_oracles_agree_on_every_case(seed: int) -> None:
    for case in DRAWN:
        compare(replace(case, seed=seed))


WITHOUT_TORCH = """
import json, sys, types
sys.modules["torch"] = None  # importing it raises
hub = types.ModuleType("flashmla_hub")  # the package's own __init__ brings torch
hub.__path__ = [{package!r}, {root!r}]
sys.modules["flashmla_hub"] = hub
from flashmla_hub.conformance import oracle_numpy
from flashmla_hub.conformance.cases import all_cases
from flashmla_hub.conformance.inputs import Inputs
result = {{}}
for case in all_cases():
    if case.id in {ids!r}:
        inputs = Inputs(case)
        lse = oracle_numpy.outputs(inputs)["lse"]
        result[case.id] = [inputs.digest, float(lse[lse < float("inf")].sum())]
print(json.dumps(result))
"""


def drawn_by(python: str, ids: list[str]) -> dict[str, list[object]]:
    """[input digest, sum of the finite lse] by case id, in a Python without torch."""
    script = WITHOUT_TORCH.format(package=str(ROOT / "flashmla_hub"), root=str(ROOT), ids=ids)
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


IDS = ["core/h16-peaked", "extreme/h64-big_logits", "extra/h16-fp16-flat", "extra/h16-fp32-peaked",
       "sparse/h64-v32-topk128-flat", "edges/empty-rows-poisoned"]  # fmt: skip


def test_the_verifier_needs_no_torch() -> None:
    found = drawn_by(sys.executable, IDS)
    assert sorted(found) == sorted(IDS)
    for case in all_cases():
        if case.id in IDS:
            assert found[case.id][0] == Inputs(case).digest


@pytest.mark.full
def test_two_numpy_majors_draw_the_same_bits(tmp_path: Path) -> None:
    """numpy 1.26 in a venv of its own: equal digests, for every case that draws inputs."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "old")], check=True)
    python = str(tmp_path / "old" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "numpy>=1.26,<2"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"numpy 1.26 cannot be installed here: {done.stderr.strip()[-200:]}")
    ids = [case.id for case in DRAWN]
    old = drawn_by(python, ids)
    new = drawn_by(sys.executable, ids)
    assert [i for i in ids if old[i][0] != new[i][0]] == []


def test_pages_are_drawn_alone_and_junk_is_not_digested() -> None:
    case = next(c for c in all_cases() if c.id == "poison/h64-peaked-poison")
    inputs = Inputs(case)
    page = inputs.pool.table[3][1]
    alone = Inputs(case).tokens(page)
    np.testing.assert_array_equal(alone, inputs.tokens(page))
    call = place(inputs)
    assert bool(call.kv.isnan().any())
    assert not np.isnan(Oracle(call).all().out).any()


def test_merging_in_numpy() -> None:
    rng = np.random.default_rng(7)
    logits, values = rng.normal(size=(2, 3, 50)), rng.normal(size=(50, 8))

    def state(part: slice) -> tuple[np.ndarray, np.ndarray]:
        weights = np.exp(logits[..., part])
        total = weights.sum(axis=-1)
        return weights @ values[part] / total[..., None], np.log(total)

    whole = state(slice(None))
    parts = [state(slice(0, 7)), state(slice(7, 50))]
    empty = (np.full_like(whole[0], np.nan), np.full_like(whole[1], np.inf))
    out, lse = oracle_numpy.merge([p[0] for p in (*parts, empty)], [p[1] for p in (*parts, empty)])
    np.testing.assert_allclose(out, whole[0], rtol=1e-12)
    np.testing.assert_allclose(lse, whole[1], rtol=1e-12)
    out, lse = oracle_numpy.merge([empty[0]] * 2, [empty[1], -empty[1]])
    assert not out.any()
    assert np.isposinf(lse).all()

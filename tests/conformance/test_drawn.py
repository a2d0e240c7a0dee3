"""Cases drawn from claims: every pair of values occurs, ends are met, honest ports pass."""

from __future__ import annotations

import json
import random

import pytest

from flashmla_hub import testing
from flashmla_hub.capabilities import ANY, Capabilities, IntSet, between, one_of
from flashmla_hub.conformance.cases import all_cases, at_most
from flashmla_hub.conformance.drawn import cases_from
from flashmla_hub.conformance.drawn.axes import axes_of, valid
from flashmla_hub.conformance.drawn.covering import covering, uncovered
from flashmla_hub.conformance.drawn.declared import Declaration, ends, numbers
from flashmla_hub.conformance.judge import judge
from flashmla_hub.conformance.model import Outcome
from flashmla_hub.conformance.mutants.honest import FULL, HonestBackend
from flashmla_hub.conformance.samples import probe
from flashmla_hub.conformance.selftest import cost
from flashmla_hub.conformance.subject import BackendSubject, plain_claims
from flashmla_hub.request import DENSE_DECODE, SPARSE_DECODE, SPARSE_PREFILL


@pytest.mark.parametrize(
    "accepted", [ANY, one_of(1, 2, 64), between(16, 128, 16), between(4), between(1, 0)]
)
def test_a_printed_set_is_read_back(accepted: IntSet) -> None:
    again = numbers(str(accepted))
    assert [n for n in range(1, 300) if n in again] == [
        n for n in range(1, 300) if n in accepted
    ]  # fmt: skip


def test_ends_are_least_middle_and_greatest_served() -> None:
    assert ends(numbers(">= 1"), (1, 64, 1280)) == (1, 64, 1280)
    assert ends(numbers("16..128, multiples of 16"), (1, 96, 128)) == (16, 96, 128)
    assert ends(numbers("64"), (1, 96, 128)) == (64,)
    assert ends(numbers("2048"), (1, 96, 128)) == ()


def test_a_set_that_no_declaration_prints_is_refused() -> None:
    for text in ("", "1 |", "0x10", "1..", "1 or 2", "9" * 30):
        with pytest.raises(ValueError, match="a set of numbers"):
            numbers(text)


@pytest.mark.parametrize("number", range(len(FULL)))
def test_every_pair_that_can_meet_occurs(number: int) -> None:
    declared = Declaration(json.loads(json.dumps(plain_claims(FULL[number]))))
    op, axes = declared.word("op"), axes_of(declared)
    assert axes is not None
    rows = covering(axes, lambda row: valid(op, row))
    left = uncovered(axes, rows, lambda row: valid(op, row))
    assert left == [], f"{len(left)} pairs, {left[:3]}"
    assert len(rows) < 60


def test_ends_of_every_axis_are_met() -> None:
    cases = cases_from([plain_claims(c) for c in FULL])
    dense = [c for c in cases if c.key.op == DENSE_DECODE]
    assert max(c.batch for c in dense) == 512
    assert max(max(c.lengths) for c in dense) == 131072
    assert max(c.table_width for c in dense) == 4096
    assert {c.key.s_q for c in dense} >= {1, 16}
    assert max(c.key.page_block_size for c in dense) == 1280
    assert max(c.key.topk for c in cases if c.key.op == SPARSE_DECODE) == 16384
    assert max(c.batch for c in cases if c.key.op == SPARSE_PREFILL) == 4096


def test_promises_and_devices_do_not_draw_twice() -> None:
    plain = [plain_claims(Capabilities()), plain_claims(Capabilities(cuda_graph=True))]
    assert cases_from(plain) == cases_from(plain[:1])


def test_large_cases_compare_a_part_that_holds_the_ends() -> None:
    for case in cases_from([plain_claims(c) for c in FULL]):
        seen = probe(case)
        assert {0, case.batch - 1} <= set(seen.rows)
        assert {0, case.key.s_q - 1} <= set(seen.queries)
        assert {0, case.key.h_q - 1} <= set(seen.heads)
        assert case.lengths.index(max(case.lengths)) in seen.rows


# honest and narrow: whatever a declaration says, a right kernel behind it raises no alarm


def narrow(number: int) -> HonestBackend:
    """An honest backend with a declaration drawn by ``number``."""
    pick = random.Random(number)
    base = FULL[number % len(FULL)]
    heads = pick.choice([one_of(16, 64, 128), one_of(16, 32, 64, 128), between(16, None, 16),
                         between(1, 64), one_of(128), ANY])  # fmt: skip
    fields = {
        **vars(base),
        "h_q": heads,
        "s_q": base.s_q if base.op == SPARSE_PREFILL else pick.choice(
            [one_of(1), one_of(1, 2), between(1, 4), ANY]),
        "h_kv": one_of(1),
        "batch_invariant": pick.random() < 0.3,
        "torch_compile": False,
        "kv_strides": base.kv_strides[: pick.randint(1, 3)],
        "q_strides": base.q_strides[:1] if pick.random() < 0.5 else base.q_strides,
        "dtypes": base.dtypes[: pick.randint(1, 3)],
        "head_dims": base.head_dims[: pick.randint(1, 3)],
    }  # fmt: skip
    if base.op != SPARSE_PREFILL:
        fields["page_block_size"] = pick.choice([one_of(64), one_of(16, 64), between(16, None, 16)])
    if base.op != DENSE_DECODE:
        fields["topk"] = pick.choice([one_of(64, 128), between(1, 2048), between(64, None, 64)])
        fields["attn_sink"], fields["topk_length"] = pick.random() < 0.5, pick.random() < 0.5
    backend = HonestBackend()
    backend.name, backend.declares = f"narrow_{number}", (Capabilities(**fields),)
    return backend


def alarms(number: int, most: int) -> list[str]:
    """What the cheapest ``most`` cases, fixed and drawn, say against an honest backend."""
    backend = narrow(number)
    with testing.registered(backend):
        subject = BackendSubject(backend.name)
        drawn = cases_from(subject.claims())
        fixed = [c for c in at_most("L2", all_cases()) if c.check != "soak"]
        pick = random.Random(number)
        asked = [*sorted(drawn, key=cost)[:most], *pick.sample(fixed, most),
                 *(c for c in fixed if c.id == "metadata/other-shape")]  # fmt: skip
        results = [judge(subject, case) for case in asked]
    return [f"{r.id}: {r.diagnosis} {r.reason}" for r in results if r.outcome.bad]


@pytest.mark.parametrize("number", range(7))
def test_honest_narrow_backends_raise_no_alarm(number: int) -> None:
    assert alarms(number, 4) == [], f"seed {number}: {narrow(number).declares}"


@pytest.mark.full
@pytest.mark.parametrize("number", range(60))
def test_many_honest_narrow_backends_raise_no_alarm(number: int) -> None:
    assert alarms(number, 24) == [], f"seed {number}: {narrow(number).declares}"


def test_metadata_of_another_shape_is_asked_within_the_claims() -> None:
    """A port of few head counts that pads nothing is right, and is told so."""
    backend = HonestBackend()
    backend.name = "few_heads_no_padding"
    backend.declares = (Capabilities(h_q=one_of(16, 32, 64, 128)),)
    case = next(c for c in all_cases() if c.id == "metadata/other-shape")
    with testing.registered(backend):
        assert judge(BackendSubject(backend.name), case).outcome is Outcome.PASSED

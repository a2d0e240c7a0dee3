"""Where ports end that were tested on small shapes: whole axes, and memory as engines hold it.

Each case is a known failure in the field, by name; the generator (conformance/drawn) meets the
same axes through a port's claims.
"""

from __future__ import annotations

from typing import Any

from flashmla_hub.conformance.cases.make import make
from flashmla_hub.conformance.model import Case

PEAKED: dict[str, Any] = {"family": "peaked", "h_q": 16}
FP8 = {"v32": 576, "model1": 512}
FAR: dict[str, Any] = {"variant": "offset_4g_bytes", "kv_strides": "page_strided"}


def _rows(count: int, longest: int = 150) -> tuple[int, ...]:
    return tuple(1 + (37 * n) % longest for n in range(count))


def _dense(clauses: str, lengths: tuple[int, ...], name: str, level: str = "L2",
           **more: Any) -> Case:  # fmt: skip
    return make("limits", level, clauses, lengths, name=name, **{**PEAKED, **more})


def dense() -> list[Case]:
    pair = (130, 64)
    sizes = "page sizes"
    return [
        _dense("C5.2a C1.3", _rows(80), "80-rows"),
        _dense("C5.2a C1.3", _rows(300), "300-rows", words="pooled tiled"),
        _dense("C5.2a C1.12", (5000, 33), "5000-tokens", words="tiled"),
        _dense("C5.2a C1.12", (20000, 33, 700), "20000-tokens", h_q=64, words="tiled"),
        _dense("C5.2a C1.3", pair, "table-2560-columns", table_width=2560),
        _dense("C5.2a C1.3 C1.5", (70, 0), "table-4096-columns", table_width=4096,
               words="poison"),
        _dense("C5.2a C1.7", (130, 64, 5), "sq8-causal", s_q=8, causal=True),
        _dense("C5.2a C1.7", (130, 9), "sq16-causal", s_q=16, causal=True, h_q=64),
        _dense("C5.2a C1.7", (130, 64), "sq8-plain", s_q=8, h_q=96),
        *(_dense("C5.2a C1.15", (page + 70, page - 1), f"page-{page}", page_block_size=page,
                 optional=sizes) for page in (320, 480, 528, 880, 1280)),
        _dense("C1.5 C1.3", (130, 0, 64), "null-block", words="poison null_block"),
        _dense("C1.10", (130, 0, 64, 0), "pad-rows-of-nan", words="pad_nan"),
        _dense("C1.10", (2, 0, 70), "pad-queries-of-nan", s_q=4, causal=True, words="pad_nan"),
        _dense("C1.1a", pair, "inference-mode", words="inference"),
        _dense("C1.1a", pair, "negated-q", words="neg_view"),
        _dense("C1.1a", pair, "negated-cache", words="kv_neg_view"),
        _dense("C1.1a C1.1", pair, "head-major-q", s_q=2, causal=True, words="head_major",
               q_strides="token_strided"),
        _dense("C1.1a C1.1", (130, 64, 7), "batch-strided-q", words="q_batch_strided",
               q_strides="token_strided"),
        _dense("C1.1a C1.1", (130, 64, 7), "expanded-q", words="q_expanded",
               q_strides="token_strided"),
        *(make("limits", "L2", "C1.12", (260, 64, 131), family="extreme", variant=variant,
               h_q=16, name=f"logits-{variant}") for variant in ("below", "far_below")),
        _dense("C1.13", _rows(40), "same-bits-40-rows", check="determinism"),
        _dense("C1.13", (2100, 64, 700, 5), "batch-invariance-long", check="batch_invariance",
               batch_invariant=True, optional="batch_invariant"),
    ]  # fmt: skip


def fp8_dense(layout: str, d_qk: int) -> list[Case]:
    base: dict[str, Any] = {"kv_format": layout, "d_qk": d_qk, "optional": "fp8 dense"}
    return [
        _dense("C3.0a C3.1", (130, 64), f"{layout}-uint8", words="uint8", **base),
        _dense("C3.0a C3.1", (130, 64), f"{layout}-int8", words="int8", **base),
        _dense("C5.2a C3.2", _rows(80), f"{layout}-80-rows", **base),
        _dense("C5.2a C3.2", (5000, 33), f"{layout}-5000-tokens", words="tiled", **base),
        _dense("C1.14 C3.1", (100,), f"{layout}-far", level="L3", **base, **FAR),
    ]  # fmt: skip


def sparse(layout: str, d_qk: int) -> list[Case]:
    """What each cache layout of sparse decode is asked."""
    base: dict[str, Any] = {"op": "sparse_decode", "kv_format": layout, "d_qk": d_qk, "topk": 64,
                            "h_q": 16, "family": "peaked"}  # fmt: skip
    extra: dict[str, Any] = {"extra_topk": 32, "extra_page_block_size": 16}

    def ask(clauses: str, lengths: tuple[int, ...], name: str, level: str = "L2",
            **more: Any) -> Case:  # fmt: skip
        return make("limits", level, clauses, lengths, name=f"sparse-{layout}-{name}",
                    **{**base, **more})  # fmt: skip

    two = (64, 64)
    cases = [
        ask("C4.1 C3.2" if d_qk == 512 else "C4.1", two, "plain", level="L1", h_q=64),
        ask("C4.1b C5.2a", (2048,), "topk-2048", topk=2048),
        ask("C4.1b C5.2a", (512, 512), "topk-512", topk=512, h_q=64),
        ask("C4.1b C5.2a", (16384,), "topk-16384", level="L3", topk=16384),
        ask("C4.1b C5.2a", (64,) * 80, "80-rows"),
        ask("C4.1b C5.2a", (64,) * 300, "300-rows", level="L3"),
        ask("C4.1b C5.2a", two, "sq8", s_q=8),
        ask("C4.1b", (64, 64, 40), "leading-invalid", words="leading_invalid"),
        ask("C4.1b C4.1", (64, 64), "null-block", words="poison invalid null_block"),
        ask("C4.1b C4.1", (64, 9, 0), "length-two-queries", s_q=2, topk_length=True,
            words="poison"),
        ask("C1.10 C4.1b", (64, 0), "pad-rows-of-nan", topk_length=True, words="pad_nan"),
        *(ask("C4.1b C1.15", two, f"page-{page}", page_block_size=page)
          for page in (1, 16, 128, 320, 1280)),
        ask("C1.1a", two, "head-major-q", s_q=2, words="head_major", q_strides="token_strided"),
        ask("C1.1a", two, "negated-q", words="neg_view"),
        ask("C1.1a", two, "inference-mode", words="inference"),
        ask("C1.13", (64, 64, 30), "same-bits", check="determinism", topk_length=True),
        ask("C1.13", (64, 30, 7, 50), "batch-invariance", check="batch_invariance",
            topk_length=True, batch_invariant=True, optional="batch_invariant"),
        ask("C4.1a C4.1b", two, "extra-strided", extra_kv_strides="page_strided",
            extra_lengths=(32, 32), **extra),
        ask("C4.1a C4.1b", two, "extra-topk-512", extra_topk=512, extra_page_block_size=64,
            extra_lengths=(512, 512)),
        ask("C4.1a C4.1b", two, "extra-page-256", extra_topk=32, extra_page_block_size=256,
            extra_lengths=(32, 32)),
        ask("C1.14 C4.1b", (64,), "far", level="L3", words="near_extra", **FAR),
        ask("C1.14 C4.1a", (64,), "far-extra", level="L3", extra_topk=32,
            extra_page_block_size=32, extra_lengths=(32,), extra_kv_strides="page_strided",
            **FAR),
    ]  # fmt: skip
    if layout == "dense":
        cases.append(ask("C1.1a", two, "negated-cache", words="kv_neg_view"))
        cases.append(ask("C1.16 C4.1b", two, "token-strided", kv_strides="token_strided"))
    else:
        cases += [ask("C3.0a C3.1", two, word, words=word) for word in ("uint8", "int8")]
    return cases


def records() -> list[Case]:
    """A token stride of 656 + 132 bytes: another record beside each token (C1.16)."""
    base: dict[str, Any] = {"kv_format": "v32", "words": "records", **PEAKED,
                            "kv_strides": "token_strided"}  # fmt: skip
    return [
        make("limits", "L2", "C1.16", (64, 64), name="sparse-v32-records", op="sparse_decode",
             topk=64, optional="odd strides", **base),
        make("limits", "L2", "C1.16", (130, 64), name="v32-records", optional="odd strides",
             **base),
    ]  # fmt: skip


def prefill() -> list[Case]:
    base: dict[str, Any] = {"op": "sparse_prefill", "page_block_size": 1, "topk": 64}
    base |= PEAKED

    def ask(clauses: str, lengths: tuple[int, ...], name: str, level: str = "L2",
            **more: Any) -> Case:  # fmt: skip
        return make("limits", level, clauses, lengths, name=f"prefill-{name}", **{**base, **more})

    few = (64,) * 5
    return [
        ask("C4.3 C5.2a", (64,) * 40, "40-queries"),
        ask("C4.3 C5.2a", (64,) * 300, "300-queries", level="L3"),
        ask("C4.1b C5.2a", (2048,) * 2, "topk-2048", topk=2048),
        ask("C4.1b C5.2a", (16384,), "topk-16384", level="L3", topk=16384),
        ask("C4.1b", (64, 64, 40), "leading-invalid", words="leading_invalid"),
        ask("C4.1b C4.1", few, "null-block", words="poison invalid null_block"),
        ask("C1.10 C4.3", (64, 0, 9), "pad-rows-of-nan", topk_length=True, words="pad_nan"),
        ask("C1.1a", few, "head-major-q", words="head_major", q_strides="token_strided"),
        ask("C1.1a", few, "negated-q", words="neg_view"),
        ask("C1.1a", few, "negated-cache", words="kv_neg_view"),
        ask("C1.1a", few, "inference-mode", words="inference"),
        ask("C1.16", few, "strided-cache", kv_strides="token_strided"),
        ask("C1.13", few, "same-bits", check="determinism"),
        ask("C1.13", (64, 30, 7, 50), "batch-invariance", check="batch_invariance",
            topk_length=True, batch_invariant=True, optional="batch_invariant"),
        ask("C1.14 C4.3", (64, 64), "far", level="L3", variant="offset_4g_bytes"),
    ]  # fmt: skip


CASES = (
    *dense(),
    *(case for layout, d_qk in FP8.items() for case in fp8_dense(layout, d_qk)),
    *(case for layout, d_qk in {"dense": 576, **FP8}.items() for case in sparse(layout, d_qk)),
    *records(),
    *prefill(),
)

"""FlashInfer's fa3 MLA against float64, by public calls of torch and flashinfer alone.

    python docs/findings/flashinfer_fa3_mla.py [--backend fa2|fa3]

Prints, for each shape, the largest difference of out and of lse from the reference, and the first
element past its bound. Exit code 1 if a shape is wrong. Needs a Hopper card.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch

D_V, D_ROPE, PAGE = 512, 64, 64
LENGTHS = (300, 64, 1, 517)
# (query heads, query tokens, causal)
SHAPES = [(heads, s_q, causal) for heads in (16, 64, 80, 96, 128)
          for s_q, causal in ((1, False), (2, False), (2, True), (4, True))]  # fmt: skip


def reference(q, keys, length, causal, scale):
    """out (s_q, heads, 512) and natural lse (s_q, heads) of one request in float64."""
    s_q = q.shape[0]
    keys = keys[:length].double()
    logits = torch.einsum("thd,nd->thn", q.double(), keys) * scale
    if causal:  # bottom-right aligned: token t sees keys up to length - s_q + t
        seen = torch.arange(length, device=q.device) <= length - s_q + torch.arange(
            s_q, device=q.device
        ).unsqueeze(1)
        logits.masked_fill_(~seen.unsqueeze(1), -math.inf)
    lse = torch.logsumexp(logits, -1)
    out = torch.softmax(logits, -1).nan_to_num() @ keys[:, :D_V]
    return out, lse


def wrong(heads, s_q, causal, backend, module, device):
    """(largest difference of out, of lse, first bad element or '') of one shape."""
    torch.manual_seed(0)
    batch, scale = len(LENGTHS), (D_V + D_ROPE) ** -0.5
    pages = [-(-n // PAGE) for n in LENGTHS]
    q = torch.randn(batch, s_q, heads, D_V + D_ROPE, device=device).bfloat16()
    cache = torch.randn(sum(pages), PAGE, D_V + D_ROPE, device=device).bfloat16()
    ids = torch.randperm(sum(pages)).int()
    starts = torch.tensor([0, *torch.tensor(pages).cumsum(0).tolist()], dtype=torch.int32)
    memory = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    wrapper = module.BatchMLAPagedAttentionWrapper(memory, backend=backend)
    wrapper.plan(
        torch.arange(batch + 1, dtype=torch.int32) * s_q, starts, ids.to(device),
        torch.tensor(LENGTHS, dtype=torch.int32), heads, D_V, D_ROPE, PAGE, causal, scale,
        q.dtype, q.dtype,
    )  # fmt: skip
    rows = q.view(batch * s_q, heads, -1)
    out, lse = wrapper.run(
        rows[..., :D_V].contiguous(), rows[..., D_V:].contiguous(),
        cache[..., :D_V].contiguous(), cache[..., D_V:].contiguous(), return_lse=True,
    )  # fmt: skip
    out, lse = out.view(batch, s_q, heads, D_V).double(), lse.view(batch, s_q, heads).double()
    worst_out = worst_lse = 0.0
    first = ""
    for row, length in enumerate(LENGTHS):
        mine = ids[starts[row] : starts[row + 1]].long().to(device)
        keys = cache[mine].view(-1, D_V + D_ROPE)
        want, want_lse = reference(q[row], keys, length, causal, scale)
        some = torch.isfinite(want_lse)  # a token that sees nothing is another matter
        off = (out[row] - want).abs() * some.unsqueeze(-1)
        # 8e-4 * rms(V)/0.1 is 8e-3 for these inputs; and one unit in bfloat16's last place
        bad = off > 8e-3 + 2.01 / 128 * want.abs()
        if not first and bool(bad.any()):
            at = tuple(int(i) for i in bad.nonzero()[0])
            first = f"out[{row}, {', '.join(map(str, at))}]: expected {want[at]:.5f}, "
            first += f"got {out[row][at]:.5f}"
        worst_out = max(worst_out, float(off.max()))
        # the lse is in base 2 in releases that do not let one choose
        errors = [((lse[row] * f - want_lse).abs() * some).nan_to_num().max()
                  for f in (1.0, math.log(2))]  # fmt: skip
        worst_lse = max(worst_lse, float(min(errors)))
    return worst_out, worst_lse, first


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="fa3", choices=("fa2", "fa3"))
    backend = parser.parse_args().backend
    import flashinfer
    import flashinfer.mla

    device = torch.device("cuda")
    print(f"flashinfer {flashinfer.__version__} ({backend}), torch {torch.__version__}, CUDA "
          f"{torch.version.cuda}, {torch.cuda.get_device_name()}")  # fmt: skip
    print(f"batch {len(LENGTHS)}, lengths {LENGTHS}, pages of {PAGE}, bfloat16, N(0, 1), seed 0")
    found = 0
    for heads, s_q, causal in SHAPES:
        out, lse, first = wrong(heads, s_q, causal, backend, flashinfer.mla, device)
        found += bool(first)
        words = f"WRONG, first {first}" if first else "right"
        print(f"heads {heads:3d}, s_q {s_q}, causal {causal!s:5}: out off by {out:.4f}, "
              f"lse by {lse:.4f}: {words}")  # fmt: skip
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

"""AMD Instinct: ``aiter.mla.mla_decode_fwd``, non-persistent, with one index for each token.

The token-level form works for every page size and in every version that returns the lse. Its
index list depends on the lengths, so it is made once for each metadata object
(``plans_per_metadata``). Importing aiter runs rocminfo and compiles at first use, so that happens
at bind and never for detection.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution

from flashmla_hub import foreign
from flashmla_hub.backend import Backend, BackendInfo, BoundKernel
from flashmla_hub.backends._ports import signature
from flashmla_hub.backends._ports.base import Port
from flashmla_hub.capabilities import ANY, Capabilities, DeviceClass, one_of
from flashmla_hub.device import DeviceInfo
from flashmla_hub.hookspecs import BackendQuery, hookimpl
from flashmla_hub.request import KernelKey

FLASHMLA_HUB_PROTOCOL = 2

DEVICES = (DeviceClass("amd", ("gfx942", "gfx950")),)


class Aiter(Port):
    """Dense decode of AITER in bf16.

    The kernels that exist (hsa/<gfx>/mla/mla_asm.csv): h_q 16, 32, 64, 128, and 8 for s_q 1;
    several queries only with a causal mask.
    """

    name = "amd"
    worth = 70
    info = BackendInfo(
        summary="AITER's mla_decode_fwd: dense decode on Instinct MI300 and MI350",
        vendor="AMD",
        package="amd-aiter",
        versions=">=0.1.9 (returns the lse)",
        source="https://github.com/ROCm/aiter (e404860)",
        confidence="high",
    )
    declarations = (
        Capabilities(
            devices=DEVICES,
            h_q=one_of(8, 16, 32, 64, 128),
            page_block_size=ANY,
            causal=(False,),
            alignment=16,
            empty_rows=False,
            hazards=("plans_per_metadata",),
            rewrites=(
                "pad_heads",
                "contiguous_q",
                "contiguous_kv",
                "fold_s_q",
                "repair_empty_rows",
            ),
        ),
        Capabilities(
            devices=DEVICES,
            s_q=one_of(2, 3, 4),
            h_q=one_of(16, 32, 64, 128),
            page_block_size=ANY,
            causal=(True,),
            alignment=16,
            empty_rows=False,
            hazards=("plans_per_metadata",),
            rewrites=("pad_heads", "contiguous_q", "contiguous_kv", "repair_empty_rows"),
        ),
    )

    def distribution(self) -> Distribution | None:
        return next(iter(foreign.distributions("amd-aiter")), None)

    def missing(self) -> tuple[str, ...]:
        distribution = self.distribution()
        if distribution is None:
            return ("amd-aiter is not installed: pip install amd-aiter, or use a ROCm vLLM image",)
        taken = signature.parameters(distribution, "aiter/mla.py", "mla_decode_fwd")
        if taken is not None and "return_lse" not in taken:
            return (
                f"amd-aiter {distribution.version} does not return the lse (its mla_decode_fwd has "
                "no return_lse); upgrade to 0.1.9 or later",
            )
        return ()

    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        from flashmla_hub.backends.amd.decode import DecodeKernel

        return DecodeKernel(foreign.load("aiter.mla", self.distribution()), key, device)


@hookimpl
def flashmla_hub_backends(query: BackendQuery) -> Iterable[Backend]:
    return (Aiter(),)

"""Moore Threads through torch_musa: type ``musa``; under torchada a tensor may say ``cuda``, and
then ``torch.version.musa`` is set.

Source: torchada's tests, SGLang's _is_musa; capability (3, 1) is PH1 (S5000), (2, 2) is QY2
(S4000), (2, 1) is QY1 (a single hint).
"""

from __future__ import annotations

from flashmla_hub.backends.devices._facts import describe
from flashmla_hub.device import DeviceInfo, DeviceProbe
from flashmla_hub.hookspecs import hookimpl

FLASHMLA_HUB_PROTOCOL = 2

FLASHMLA_HUB_VENDORS = {
    "moore_threads": {"mp_31": "s5000", "mp_22": "s4000", "mp_21": "", "mp_[0-9]*": "musa"}
}


@hookimpl
def flashmla_hub_identify_device(probe: DeviceProbe) -> DeviceInfo | None:
    musa = probe.version("musa")
    if probe.type != "musa" and not (probe.type == "cuda" and musa):
        return None
    try:
        major, minor = probe.torch.musa.get_device_capability(probe.index)
        arch = f"mp_{major}{minor}"
    except Exception:  # the runtime may be half installed: the vendor is known all the same
        arch = ""
    return describe(
        probe,
        "moore_threads",
        arch,
        runtime=f"MUSA {musa or ''}".strip(),
        rule="torch device type 'musa'" if probe.type == "musa" else "torch.version.musa",
    )

"""flashmla_hub: DeepSeek's MLA decode attention on whatever accelerator is there.

    from flashmla_hub import flash_mla_with_kvcache, get_mla_metadata

Call it as FlashMLA publishes it. The hub finds out which accelerator the tensors are on, asks
every installed backend whether it can serve exactly this request, picks the best one that can,
and ``explain`` says why.
"""

from pathlib import Path as _Path

_root = _Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file() and (_root / "backends" / "__init__.py").is_file():
    __path__.append(str(_root))  # a checkout, not an install: backends/, conformance/ and csrc/

from flashmla_hub.api import (
    BackendStatus,
    backends,
    devices,
    explain,
    explain_call,
    get_backend,
    list_backends,
    simulate_device,
    use_backend,
    warmup,
)
from flashmla_hub.decision import Candidate, Decision
from flashmla_hub.decode import flash_mla_with_kvcache
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import (
    DeviceConflictError,
    FlashMLAHubError,
    InvalidRequestError,
    NoBackendError,
    NotSupportedError,
    PluginError,
)
from flashmla_hub.hookspecs import hookimpl
from flashmla_hub.merge import merge_states
from flashmla_hub.metadata import SchedMeta, get_mla_metadata
from flashmla_hub.prefill import flash_mla_sparse_fwd
from flashmla_hub.request import ChoiceKey, KernelKey
from flashmla_hub.version import __version__

__all__ = [
    "BackendStatus",
    "Candidate",
    "ChoiceKey",
    "Decision",
    "DeviceConflictError",
    "DeviceInfo",
    "FlashMLAHubError",
    "InvalidRequestError",
    "KernelKey",
    "NoBackendError",
    "NotSupportedError",
    "PluginError",
    "SchedMeta",
    "__version__",
    "backends",
    "devices",
    "explain",
    "explain_call",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "get_backend",
    "get_mla_metadata",
    "hookimpl",
    "list_backends",
    "merge_states",
    "simulate_device",
    "use_backend",
    "warmup",
]

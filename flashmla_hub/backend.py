"""The interface between the core and a backend.

A backend *declares* (``capabilities``, ``environment_reasons``, ``rank``) without importing its
library, and *binds*: ``bind(key, device)`` compiles or looks up what a KernelKey needs and
returns a BoundKernel, which launches. Plugin authors: docs/adding-a-backend.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from flashmla_hub.call import POSITIONAL
from flashmla_hub.capabilities import Capabilities
from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import ChoiceKey, KernelKey

if TYPE_CHECKING:
    from torch import Tensor

    from flashmla_hub.bench.shapes import Case


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """Where a backend comes from and what is known of it; the README's table is made from this.

    ``verified`` names device, date and evidence file of a conformance run on hardware, or is ''
    ("not run on hardware").
    """

    summary: str
    vendor: str = ""
    package: str = ""
    versions: str = ""
    source: str = ""
    confidence: str = "high"
    verified: str = ""


class BoundKernel:
    """A kernel bound to one KernelKey and device. Immutable; holds no device memory.

    Subclasses implement ``run`` for their op (shapes, dtypes and the meaning of values:
    docs/contract.md):

    dense_decode
        ``run(call: DenseDecode) -> (out, lse)``
    sparse_decode
        ``run(call: SparseDecode) -> (out, lse)``
    sparse_prefill
        ``run(call: SparsePrefill) -> (out, max_logits, lse)``

    ``call.softmax_scale`` is a float, never None. ``call.out``, ``call.lse`` and
    ``call.max_logits`` are tensors to write in place and return, or None: then the kernel
    allocates and returns its own. ``out`` has strides and alignment that the declaration takes,
    ``lse`` is contiguous. Absent optional tensors are None. ``call.plan`` is what ``plan``
    returned, None for kernels with ``plans = False``. The batch is q.shape[0] and never 0; every
    argument was validated, and none is a lazily negated view. ``causal``, head counts and the like
    are in the key that the kernel was bound for. Scratch comes from torch's allocator for each
    call. No host synchronisation.
    """

    plans: bool = False

    def plan(self, block_table: Tensor | None, cache_seqlens: Tensor | None) -> Any:
        """State that depends on lengths, for ports that need it (hazard plans_per_metadata)."""
        return None

    def run(self, call: Any) -> Any:
        raise NotImplementedError

    def repeat(
        self,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        softmax_scale: float,
    ) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """For the layers of a decode step (dense_decode, ``plans`` False): ``run`` as a function of
        (q, k_cache, block_table, cache_seqlens), without outputs given, for tensors that equal
        these in shape, strides, dtype, device and alignment to 16 bytes. What follows from those
        is worked out here, once. None: ``run`` is called each time.
        """
        return None


class PositionalKernel(BoundKernel):
    """Serves plugin protocol 1, where ``run`` takes the leading fields of a call by position."""

    def __init__(self, inner: BoundKernel, op: str) -> None:
        self.inner, self.plans = inner, inner.plans
        self._count = POSITIONAL[op]

    def plan(self, block_table: Tensor | None, cache_seqlens: Tensor | None) -> Any:
        return self.inner.plan(block_table, cache_seqlens)

    def run(self, call: Any) -> Any:
        return self.inner.run(*call[: self._count])

    def repeat(self, *args: Any) -> Any:
        return self.inner.repeat(*args)


@dataclass(frozen=True)
class BuildItem:
    """Something ``flashmla-hub build`` can compile beforehand: bind ``key`` and it is there.

    ``concurrent``: may be bound while other items are, in threads.
    """

    name: str
    key: KernelKey
    concurrent: bool = False


class Band(IntEnum):
    """Where a rank lies; ``Band.PORT + 5`` is a rank. Nothing outside 0..HIGHEST is one."""

    REFERENCE = 0
    FALLBACK = 20  # portable
    TUNED = 40  # portable and tuned
    PORT = 60  # a vendor's own
    NATIVE = 80  # native, and measured ahead of the others
    HIGHEST = 99


class Backend(ABC):
    """Base class of a backend. ``name`` is unique, lower-case, ``[a-z][a-z0-9_]*``."""

    name: str = ""
    version: str = ""
    runs_simulated: bool = False  # may run while simulate_device() is in force (simulated ports)
    info: BackendInfo = BackendInfo(summary="")

    @abstractmethod
    def capabilities(self, device: DeviceInfo) -> tuple[Capabilities, ...]:
        """The declarations for ``device``: pure, cheap, imports nothing of the vendor's."""

    def environment_reasons(self, device: DeviceInfo) -> tuple[str, ...]:
        """What this machine lacks (package, driver, compiler) and how to get it; () when ready.

        Must not import the vendor's library: distribution metadata and driver queries only.
        """
        return ()

    def rank(self, choice: ChoiceKey, device: DeviceInfo) -> int:
        """How much this backend is worth for a request it can serve; higher wins.

        An int in the bands of :class:`Band`; a backend whose rank is anything else is refused.
        Able is separate from worth it.
        """
        return 30

    @abstractmethod
    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        """The kernel for ``key``. Refuses with NotSupportedError what it cannot do, itself:
        the core's gate may be open (``flashmla_hub.testing.bind_unchecked``)."""

    def build_items(self, device: DeviceInfo) -> Iterable[BuildItem]:
        """What this backend would otherwise compile at first use on ``device``; each item once."""
        return ()

    def notes(self, device: DeviceInfo) -> tuple[str, ...]:
        """What a user should know of how this backend came up here (a fallback taken, say)."""
        return ()

    def peer_call(self, case: Case) -> Callable[[], Tensor] | None:
        """For the benchmark: one decode of ``case`` as this foreign package's own users call it,
        with all that they prepare once a step left out of it. None: this is nobody's package,
        or has no such way; the backend is then timed through the public function.
        """
        return None

    def files(self) -> tuple[str, ...]:
        """Paths of the files whose digests identify this build (kernels, extension modules)."""
        return ()

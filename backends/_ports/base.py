"""``Port``: the base class of an adapter, and declarations that always refuse."""

from __future__ import annotations

from abc import abstractmethod
from importlib.metadata import Distribution

from flashmla_hub import foreign
from flashmla_hub.backend import Backend, BoundKernel
from flashmla_hub.capabilities import (
    ANY,
    Capabilities,
    DeviceClass,
    Rule,
    unsupported_reasons,
)
from flashmla_hub.device import DeviceInfo
from flashmla_hub.errors import NotSupportedError
from flashmla_hub.request import (
    DENSE_DECODE,
    OPS,
    PACKED,
    PAGE_STRIDED,
    TOKEN_STRIDED,
    ChoiceKey,
    KernelKey,
)


class Port(Backend):
    """An adapter to one distribution of a vendor.

    Subclasses give ``declarations``, find their ``distribution()`` by metadata, say what is
    ``missing()``, and make the ``kernel()``. The gate is here too: a port is never called with a
    shape that it does not take, because some end the process on one.
    """

    declarations: tuple[Capabilities, ...] = ()
    worth: int = 65

    @property
    def version(self) -> str:  # type: ignore[override]
        """Of the port that is installed: evidence names what was judged."""
        distribution = self.distribution()
        if distribution is None:
            return "not installed"
        return f"{distribution.metadata['Name']} {distribution.version}"

    def capabilities(self, device: DeviceInfo) -> tuple[Capabilities, ...]:
        return self.declarations

    def rank(self, choice: ChoiceKey, device: DeviceInfo) -> int:
        return self.worth

    def environment_reasons(self, device: DeviceInfo) -> tuple[str, ...]:
        if not any(device in cls for d in self.declarations for cls in d.devices):
            return ()  # another vendor's device: nothing to install here
        return self.missing()

    def bind(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        reasons = unsupported_reasons(self.declarations, key, device)
        if reasons:
            raise NotSupportedError(self.name, "request", key.summary(), "; ".join(reasons))
        missing = self.missing()
        if missing:
            raise NotSupportedError(self.name, "installation", "incomplete", "; ".join(missing))
        return self.kernel(key, device)

    def files(self) -> tuple[str, ...]:
        distribution = self.distribution()
        if distribution is None:
            return ()
        where = foreign.root(distribution)
        listed = (where / str(file) for file in distribution.files or ())
        return tuple(sorted(str(f) for f in listed if f.suffix in (".py", ".so") and f.is_file()))

    @abstractmethod
    def distribution(self) -> Distribution | None:
        """The installed distribution this adapter is for; metadata only."""

    @abstractmethod
    def missing(self) -> tuple[str, ...]:
        """What this machine lacks and how to get it; () when ready."""

    @abstractmethod
    def kernel(self, key: KernelKey, device: DeviceInfo) -> BoundKernel:
        """The kernel for a key that passed the gate; imports the port."""


def always_refuses(vendor: str, reason: str) -> tuple[Capabilities, ...]:
    """Declarations under which every request on ``vendor``'s devices gets ``reason``."""
    strides = (PACKED, PAGE_STRIDED, TOKEN_STRIDED)
    return tuple(
        Capabilities(
            op=op,
            devices=(DeviceClass(vendor),),
            dtypes=("bfloat16", "float16", "float32"),
            head_dims=((576, 512), (512, 512), (320, 256)),
            s_q=ANY,
            h_q=ANY,
            h_kv=ANY,
            page_block_size=ANY,
            kv_formats=("dense", "v32", "model1"),
            topk=ANY,
            topk_length=True,
            attn_sink=True,
            extra_topk=ANY,
            extra_page_block_size=ANY,
            extra_topk_length=True,
            batch_invariant=True,
            causal=(False, True) if op == DENSE_DECODE else (False,),
            kv_strides=strides,
            q_strides=(PACKED, TOKEN_STRIDED),
            rules=(Rule("refused", lambda key: reason),),
        )
        for op in OPS
    )

"""What a backend declares that it takes. Refusal reasons are derived from the declaration, so
that documentation, ``explain`` and behaviour cannot drift apart (contract C5.2: capabilities are
closed; a field that is not at its neutral default and that a declaration does not name is a
reason to refuse)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flashmla_hub.device import DeviceInfo
from flashmla_hub.request import DENSE_DECODE, PACKED, KernelKey

HAZARDS = (
    "needs_finite_cache",  # NaN in unused slots reaches the output (C1.5)
    "synchronises",  # waits for the device on the host
    "prints",  # writes to the process's stdout
    "lse_unverified",  # its lse was never seen to be right
    "plans_per_metadata",  # its plan depends on lengths and is made on the host (C2.3)
    "approximate",  # right within a bound of its own, wider than the contract's (C3.2a)
    "half_range",  # a dequantised value past 65504 reaches the output as inf
)
# A wrong number is possible, so a caller has to ask for such a backend by name.
EXPLICIT_ONLY = frozenset({"needs_finite_cache", "approximate", "half_range"})

ALIGNMENTS = ("q_alignment", "kv_alignment", "extra_kv_alignment", "out_alignment")


@dataclass(frozen=True)
class IntSet:
    """A set of positive integers that prints itself: a range, its multiples, or named values."""

    values: tuple[int, ...] = ()
    low: int = 1
    high: int | None = None
    step: int = 1

    def __contains__(self, n: object) -> bool:
        if not isinstance(n, int):
            return False
        if self.values:
            return n in self.values
        return n >= self.low and (self.high is None or n <= self.high) and n % self.step == 0

    def __str__(self) -> str:
        if self.values:
            return " | ".join(map(str, self.values))
        span = f">= {self.low}" if self.high is None else f"{self.low}..{self.high}"
        return span if self.step == 1 else f"{span}, multiples of {self.step}"

    def next_above(self, n: int) -> int | None:
        """The smallest member >= n, None where there is none."""
        if self.values:
            return min((v for v in self.values if v >= n), default=None)
        first = max(n, self.low)
        first += -first % self.step
        return first if self.high is None or first <= self.high else None

    def divisor_of(self, n: int) -> int | None:
        """The largest member that divides n, None where there is none."""
        if n in self:
            return n
        if self.values:
            return max((v for v in self.values if 0 < v <= n and n % v == 0), default=None)
        if self.high is None or self.high < 1:
            return None  # empty, or below ``low`` or no multiple of ``step``: so are divisors
        return self._bounded_divisor(n, min(self.high, n))

    def _bounded_divisor(self, n: int, high: int) -> int | None:
        """Walks the members down from ``high`` or the cofactors up, whichever are fewer."""
        cofactors = range(max(1, -(-n // high)), n // max(1, self.low) + 1)
        if len(cofactors) < high // self.step:
            return next((n // k for k in cofactors if n % k == 0 and n // k in self), None)
        members = range(high - high % self.step, max(1, self.low) - 1, -self.step)
        return next((v for v in members if n % v == 0), None)


def one_of(*values: int) -> IntSet:
    return IntSet(values=tuple(values))


def between(low: int, high: int | None = None, step: int = 1) -> IntSet:
    return IntSet(low=low, high=high, step=step)


ANY = between(1)
NONE = between(1, 0)


@dataclass(frozen=True)
class Rule:
    """A limit that ties several fields together.

    ``check`` is pure and returns None, or the reason for refusal ("h_q 12 with s_q 2: ...; use
    ...").
    """

    name: str
    check: Callable[[KernelKey], str | None] = field(compare=False)


@dataclass(frozen=True)
class DeviceClass:
    """Devices a declaration holds for: a vendor, its archs, torch's device type ('*': any).

    The type keeps a device override from sending host tensors into a device kernel; it is not
    looked at for a simulated device.
    """

    vendor: str = "*"
    archs: tuple[str, ...] = ("*",)
    type: str = "*"

    def __contains__(self, device: object) -> bool:
        if not isinstance(device, DeviceInfo):
            return False
        arch_ok = "*" in self.archs or device.arch in self.archs
        type_ok = device.simulated or self.type in ("*", device.type)
        return self.vendor in ("*", device.vendor) and arch_ok and type_ok

    def __str__(self) -> str:
        archs = "any arch" if "*" in self.archs else " | ".join(self.archs)
        return "any device" if self.vendor == "*" else f"{self.vendor} ({archs})"


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """One declaration: all it names works, the rest is refused. Defaults are the neutral ones.

    A backend may make several declarations for one op (say one for each KV layout); a request
    is accepted when one of them takes it. Fields are those of
    :class:`~flashmla_hub.request.KernelKey`, as the set of accepted values.
    """

    op: str = DENSE_DECODE
    devices: tuple[DeviceClass, ...] = (DeviceClass(),)
    dtypes: tuple[str, ...] = ("bfloat16",)
    head_dims: tuple[tuple[int, int], ...] = ((576, 512),)
    s_q: IntSet = one_of(1)
    h_q: IntSet = ANY
    h_kv: IntSet = one_of(1)
    page_block_size: IntSet = one_of(64)
    kv_formats: tuple[str, ...] = ("dense",)
    causal: tuple[bool, ...] = (False, True)
    topk: IntSet = NONE
    topk_length: bool = False
    attn_sink: bool = False
    extra_topk: IntSet = NONE
    extra_page_block_size: IntSet = NONE
    extra_topk_length: bool = False
    batch_invariant: bool = False
    kv_strides: tuple[str, ...] = (PACKED,)
    q_strides: tuple[str, ...] = (PACKED,)
    extra_kv_strides: tuple[str, ...] = ()  # (): as kv_strides
    out_strides: tuple[str, ...] = (PACKED,)  # others: the hub copies the result
    alignment: int = 1  # bytes, of every tensor; where one below is not 0, of the others
    q_alignment: int = 0
    kv_alignment: int = 0
    extra_kv_alignment: int = 0
    out_alignment: int = 0
    rules: tuple[Rule, ...] = ()
    # promises the conformance suite holds the backend to, beside the accepted values
    cuda_graph: bool = False
    torch_compile: bool = False
    plans_per_call: bool = False
    empty_rows: bool = True  # out 0 and lse +inf for rows with no visible key (C1.10)
    lse_base: str = "e"  # "2": the rewrite lse_base converts
    hazards: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()  # names of flashmla_hub.legalize, in the order preferred

    def unsupported_reasons(self, key: KernelKey, device: DeviceInfo) -> list[str]:
        """Why this declaration does not take ``key`` on ``device``; empty when it does."""
        return [*self.device_reasons(device), *self.key_reasons(key)]

    def device_reasons(self, device: DeviceInfo) -> list[str]:
        if any(device in cls for cls in self.devices):
            return []
        return [f"device {device}: takes {', '.join(map(str, self.devices))}"]

    def needs(self, alignment: str) -> int:
        """Bytes that ``alignment`` (a field of KernelKey) has to be."""
        return int(getattr(self, alignment)) or self.alignment

    def key_reasons(self, key: KernelKey) -> list[str]:
        if key.op != self.op:
            return [f"op={key.op}: takes {self.op}"]
        reasons: list[str] = []

        def refuse(name: str, value: object, accepted: object) -> None:
            reasons.append(f"{name}={value}: takes {accepted}")

        for name in ("s_q", "h_q", "h_kv", "page_block_size"):
            if getattr(key, name) not in getattr(self, name):
                refuse(name, getattr(key, name), getattr(self, name))
        for name in ("topk", "extra_topk", "extra_page_block_size"):
            value, accepted = getattr(key, name), getattr(self, name)
            if value and value not in accepted:
                refuse(name, value, "none" if accepted == NONE else accepted)
        for name, accepted_values in (
            ("dtype", self.dtypes),
            ("kv_format", self.kv_formats),
            ("causal", self.causal),
            ("kv_strides", self.kv_strides),
            ("q_strides", self.q_strides),
            ("extra_kv_strides", self.extra_kv_strides or self.kv_strides),
            ("out_strides", self.out_strides),
        ):
            if getattr(key, name) not in accepted_values:
                refuse(name, getattr(key, name), " | ".join(map(str, accepted_values)))
        if (key.d_qk, key.d_v) not in self.head_dims:
            dims = " | ".join(f"{a}/{b}" for a, b in self.head_dims)
            refuse("head dims", f"{key.d_qk}/{key.d_v}", dims)
        for name in ("topk_length", "attn_sink", "extra_topk_length", "batch_invariant"):
            if getattr(key, name) and not getattr(self, name):
                refuse(name, True, "False only")
        for name in ALIGNMENTS:
            need = self.needs(name)
            if need > getattr(key, name):
                refuse(name, getattr(key, name), f"{need}-byte addresses and strides")
        if not reasons:  # rules may rely on every field being in its own set
            reasons += [r for rule in self.rules if (r := rule.check(key))]
        return reasons


def unsupported_reasons(
    declarations: Iterable[Capabilities], key: KernelKey, device: DeviceInfo
) -> list[str]:
    """Reasons of the declaration that comes closest to taking ``key``; empty when one takes it."""
    best: list[str] | None = None
    ops = []
    for declaration in declarations:
        ops.append(declaration.op)
        if declaration.op != key.op:
            continue
        reasons = declaration.unsupported_reasons(key, device)
        if best is None or len(reasons) < len(best):
            best = reasons
    if best is None:
        return [f"op={key.op}: takes {' | '.join(dict.fromkeys(ops)) or 'nothing'}"]
    return best

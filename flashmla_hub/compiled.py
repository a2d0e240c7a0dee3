"""The hub's calls as torch ops: for torch.compile and torch.export, and for every other tracer
that watches torch's dispatcher (fake tensors, make_fx, the meta device).

An op takes all arguments of the public function but the metadata; its schema is made of the fields
of ``call.DecodeArguments`` or ``call.PrefillArguments``. The fake implementation runs the checks
of validation, while tracing; the backend is selected inside the real one, at run time.
``torch.library.Library`` is used as it is, since ``custom_op`` adds 14 to 26 us to a call; eager
calls do not come here at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flashmla_hub import checks, validation
from flashmla_hub.call import FIELDS, OUTPUTS, DecodeArguments, PrefillArguments
from flashmla_hub.errors import InvalidRequestError

_SCHEMA = {Tensor: "Tensor", int: "int", float: "float", bool: "bool", str: "str"}
_ACCEPTED: dict[Any, Any] = {float: (float, int)}

# of each kind, the fields that are no outputs; the dynamo of torch 2.6 cannot iterate over _fields
_TAKEN = {kind: tuple(n for n in fields if n not in OUTPUTS) for kind, fields in FIELDS.items()}

_library = torch.library.Library("flashmla_hub", "DEF")


def _inputs(kind: type[Any]) -> dict[str, str]:
    """(name, schema type) of the fields of ``kind`` that are no outputs."""
    return {
        name: _SCHEMA[type_] + ("?" if optional else "")
        for name, (type_, optional) in FIELDS[kind].items()
        if name not in OUTPUTS
    }


def _define(
    name: str,
    kind: type[Any],
    written: tuple[str, ...],
    results: int,
    real: Callable[[Any], Any],
    fake: Callable[[Any], Any],
) -> None:
    """An op ``name`` of the arguments ``kind``, which writes into the outputs ``written`` and
    returns ``results`` tensors."""
    inputs = _inputs(kind)
    schema = [f"{type_} {field}" for field, type_ in inputs.items()]
    schema += [f"Tensor({'ab'[i]}!) {field}" for i, field in enumerate(written)]
    returns = ", ".join(["Tensor"] * results)
    returns = returns if results == 1 else f"({returns})"
    names = (*inputs, *written)

    def rebuilt(body: Callable[[Any], Any]) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            return body(kind(**dict(zip(names, values, strict=True))))

        return run

    tags = (torch.Tag.pt2_compliant_tag,)
    _library.define(f"{name}({', '.join(schema)}) -> {returns}", tags=tags)
    _library.impl(name, rebuilt(real), "CompositeExplicitAutograd")
    torch.library.register_fake(f"flashmla_hub::{name}", rebuilt(fake), lib=_library)


def _flat(args: Any, written: tuple[str, ...] = ()) -> list[Any]:
    """The values that an op takes, in the order of its schema."""
    return [getattr(args, name) for name in (*_TAKEN[type(args)], *written)]


def _decode(args: DecodeArguments) -> tuple[Tensor, Tensor]:
    from flashmla_hub.decode import decode

    return decode(args)


def _decode_fake(args: DecodeArguments) -> tuple[Tensor, Tensor]:
    validation.check_decode(args)
    validation.no_overlap(args)
    return _decode_like(args)


def _prefill(args: PrefillArguments) -> tuple[Tensor, Tensor, Tensor]:
    from flashmla_hub.prefill import prefill

    return prefill(args)


def _prefill_fake(args: PrefillArguments) -> tuple[Tensor, Tensor, Tensor]:
    validation.check_prefill(args)
    validation.no_overlap(args)
    s_q, h_q, _ = args.q.shape
    rows = [args.q.new_empty((s_q, h_q), dtype=torch.float32) for _ in range(2)]
    return args.q.new_empty((s_q, h_q, args.d_v)), rows[0], rows[1]


def _nothing(body: Callable[[Any], Any]) -> Callable[[Any], None]:
    def run(args: Any) -> None:
        body(args)

    return run


def _rows(body: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda args: body(args)[1:]


def _decode_like(args: DecodeArguments) -> tuple[Tensor, Tensor]:
    q = args.q
    batch, s_q, h_q, _ = q.shape
    out = q.new_empty((batch, s_q, h_q, args.head_dim_v))
    return out, q.new_empty((batch, h_q, s_q), dtype=torch.float32)


for _op in ("dense_decode", "sparse_decode"):
    _define(_op, DecodeArguments, (), 2, _decode, _decode_fake)
    _define(f"{_op}_out", DecodeArguments, OUTPUTS, 0, _nothing(_decode), _nothing(_decode_fake))
_define("sparse_prefill", PrefillArguments, (), 3, _prefill, _prefill_fake)
_define("sparse_prefill_out", PrefillArguments, ("out",), 2, _rows(_prefill), _rows(_prefill_fake))


def decode(args: DecodeArguments) -> tuple[Tensor, Tensor]:
    """A decode call that a tracer sees."""
    ops = torch.ops.flashmla_hub
    dense = args.indices is None
    _types(args)
    if (args.out is None and args.lse_out is None) or args.q.dim() != 4:  # refused: wrong rank
        returning = ops.dense_decode if dense else ops.sparse_decode
        return returning(*_flat(args))  # type: ignore[no-any-return]
    new_out, new_lse = _decode_like(args)
    out = new_out if args.out is None else args.out
    lse_out = new_lse if args.lse_out is None else args.lse_out
    writing = ops.dense_decode_out if dense else ops.sparse_decode_out
    writing(*_flat(args), out, lse_out)
    return out, lse_out


def prefill(args: PrefillArguments) -> tuple[Tensor, Tensor, Tensor]:
    """A sparse prefill call that a tracer sees."""
    ops = torch.ops.flashmla_hub
    _types(args)
    if args.out is None:
        return ops.sparse_prefill(*_flat(args))  # type: ignore[no-any-return]
    max_logits, lse = ops.sparse_prefill_out(*_flat(args), args.out)
    return args.out, max_logits, lse


def _types(args: DecodeArguments | PrefillArguments) -> None:
    """Types are checked before the dispatcher converts a value, or refuses it in its own words."""
    fields = FIELDS[type(args)]
    for (name, (kind, optional)), value in zip(fields.items(), args, strict=True):
        if value is None and optional:
            continue
        if kind is bool:
            checks.flag(name, value)
        elif isinstance(value, bool) or not isinstance(value, _ACCEPTED.get(kind, kind)):
            expected = f"{_SCHEMA[kind]}{' or None' if optional else ''}"
            raise InvalidRequestError(name, checks.describe(value), expected)

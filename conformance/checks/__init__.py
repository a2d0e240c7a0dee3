"""What a case does with the port, by the name in ``Case.check``; each raises Wrong or returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flashmla_hub.conformance.checks import (
    capture,
    claims,
    compiling,
    formats,
    merging,
    metadata,
    repeat,
    values,
)
from flashmla_hub.conformance.trial import Trial

CHECKS: Mapping[str, Callable[[Trial], None]] = {
    "values": values.values,
    "check_values": values.check_values,
    "harness": claims.harness,
    "refusal": claims.refusal,
    "invalid": claims.invalid,
    "after_error": claims.after_error,
    "metadata_forms": metadata.forms,
    "metadata_layers": metadata.layers,
    "metadata_other_shape": metadata.other_shape,
    "metadata_tensors": metadata.tensors,
    "in_place": metadata.in_place,
    "two_calls": metadata.two_calls,
    "determinism": repeat.determinism,
    "batch_invariance": repeat.batch_invariance,
    "soak": repeat.soak,
    "compile": compiling.fullgraph,
    "compile_batches": compiling.batches,
    "merge": merging.lopsided,
    "merge_empty": merging.empty_parts,
    "host_reads": capture.host_reads,
    "graph": capture.graph,
    "two_streams": capture.two_streams,
    "fp8_quantise": formats.quantise,
    "fp8_round_trip": formats.round_trip,
    "fp8_append": formats.append,
    "fp8_names": formats.names,
}

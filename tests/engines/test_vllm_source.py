"""The stub of vLLM's sparse side against vLLM's source, which is read and not imported.

Runs where VLLM_SOURCE names a folder with vLLM's package in it; .ci/engines unpacks a wheel for it.
"""

from __future__ import annotations

import ast
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import stub_vllm_sparse as stub

SOURCE = os.environ.get("VLLM_SOURCE", "")
pytestmark = pytest.mark.skipif(
    not SOURCE, reason="VLLM_SOURCE names no folder; .ci/engines unpacks vLLM's wheel there"
)


def tree(module: str) -> ast.Module:
    return ast.parse((Path(SOURCE) / f"{module.replace('.', '/')}.py").read_text())


def method(owner: str, name: str) -> ast.FunctionDef:
    (found,) = (
        node
        for cls in ast.walk(tree(stub.SPARSE))
        if isinstance(cls, ast.ClassDef) and cls.name == owner
        for node in cls.body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    return found


def names(function: ast.FunctionDef) -> list[str]:
    return [
        a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    ]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (stub.FlashMLASparseBackend, "supports_combination"),
        (stub.FlashMLASparseBackend, "supports_compute_capability"),
        (stub.FlashMLASparseBackend, "get_impl_cls"),
        (stub.FlashMLASparseBackend, "get_name"),
        (stub.FlashMLASparseImpl, "_compute_fp8_decode_padded_heads"),
        (stub.FlashMLASparseImpl, "_fp8_flash_mla_kernel"),
        (stub.FlashMLASparseImpl, "_bf16_flash_mla_kernel"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_methods_take_the_same_parameters(owner: Any, name: str) -> None:
    ours = list(inspect.signature(inspect.getattr_static(owner, name).__func__).parameters
                if isinstance(inspect.getattr_static(owner, name), staticmethod | classmethod)
                else inspect.signature(getattr(owner, name)).parameters)  # fmt: skip
    assert names(method(owner.__name__, name)) == ours


def test_every_attention_of_a_sparse_layer_goes_through_the_two_methods() -> None:
    """No other function of the class calls a kernel, and none reads what the hub leaves out."""
    kernels = {"flash_mla_with_kvcache", "flash_mla_sparse_fwd"}
    callers = {
        function.name
        for cls in ast.walk(tree(stub.SPARSE))
        if isinstance(cls, ast.ClassDef) and cls.name == "FlashMLASparseImpl"
        for function in cls.body
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in kernels
    }
    assert callers == {"_fp8_flash_mla_kernel", "_bf16_flash_mla_kernel"}


def test_v4_calls_the_functions_with_what_the_hub_takes() -> None:
    import flashmla_hub as hub

    calls = [
        node
        for node in ast.walk(tree(stub.V4_LAYER))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "").startswith("flash_mla_")
    ]
    assert {node.func.id for node in calls} == {"flash_mla_with_kvcache", "flash_mla_sparse_fwd"}  # type: ignore[attr-defined]
    for node in calls:
        taken = inspect.signature(getattr(hub, node.func.id)).parameters  # type: ignore[attr-defined]
        assert {word.arg for word in node.keywords} <= set(taken)


def test_the_functions_live_where_the_plug_in_looks() -> None:
    bound = {
        alias.name
        for node in ast.walk(tree(stub.FUNCTIONS))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {"flash_mla_with_kvcache", "flash_mla_sparse_fwd", "FlashMLASchedMeta"} <= bound

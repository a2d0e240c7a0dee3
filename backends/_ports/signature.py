"""The parameters of a function in an installed file, read without importing the package."""

from __future__ import annotations

import ast
import functools
from importlib.metadata import Distribution

from flashmla_hub import foreign


def parameters(distribution: Distribution, path: str, function: str) -> tuple[str, ...] | None:
    """Names of the parameters of the module-level ``function`` in ``path``.

    None where the file is absent or compiled, or does not define it: then only an import tells.
    """
    text = foreign.source(distribution, path)
    return None if text is None else _parse(text, function)


@functools.lru_cache(maxsize=32)
def _parse(text: str, function: str) -> tuple[str, ...] | None:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            arguments = node.args
            listed = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            return tuple(argument.arg for argument in listed)
    return None

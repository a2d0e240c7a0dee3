# ruff: noqa: E501
"""The lines that are removed: every line of every declaration, and the guards in the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.ports.mutation import Mutant

PLUGINS = {  # plugin module: the batteries that must notice
    "metax.plugin": ("metax", "sparse:metax"),
    "moore_threads.plugin": ("moore_threads", "mate"),
    "hygon.plugin": ("hygon",),
    "iluvatar.plugin": ("iluvatar", "iluvatar_flash_mla"),
    "amd.plugin": ("amd",),
    "thead.plugin": ("thead",),
    "flaggems.plugin": ("flaggems", "sparse:flaggems"),
}
# Lines whose removal changes nothing that can be seen, and why.
EQUIVALENT = {
    "causal=(False,),": "with s_q 1 a key is never causal, and sparse keys never are",
    "page_block_size=one_of(1),": "prefill keys have page 1; 64 would take none",
    'dtypes=("bfloat16", "float16"),': "sparse fp16 is not in the battery",
}


def of_declarations() -> Iterator[Mutant]:
    """Each one-line keyword or list item inside a ``declarations`` of an adapter."""
    for module, labels in PLUGINS.items():
        probe = Mutant(module, "", ())
        text = probe.path.read_text(encoding="utf-8")
        lines = text.splitlines()
        seen: dict[str, int] = {}
        inside = _declaration_lines(text)
        for number, line in enumerate(lines, 1):
            old = line.strip()
            nth = seen.get(old, 0)
            seen[old] = nth + 1
            if number in inside and old.endswith(",") and old not in ("),", "],", "},"):
                mutant = Mutant(module, old, labels, nth)
                if mutant.compiles():
                    yield mutant


def _declaration_lines(text: str) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign):
            names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            if "declarations" in names and isinstance(node.value, ast.Tuple | ast.Call):
                assert node.end_lineno is not None
                found |= set(range(node.lineno + 1, node.end_lineno))
    return found


ROWS = ("moore_threads", "hygon")
GUARDS = (
    Mutant("_ports.rows", "lens = cache_seqlens.clamp(0, width * page)", ROWS, new="lens = cache_seqlens + 0"),
    Mutant("_ports.rows", "return table, lens.clamp_(min=1)", ROWS, new="return table, lens"),
    Mutant("_ports.rows", "table = block_table.masked_fill(columns >= used.unsqueeze(1), 0)", ROWS, new="table = block_table"),
    Mutant("_ports.rows", "valid &= entry < length.view(-1, 1, 1)", ("sparse:metax",)),
    Mutant("_ports.rows", "valid = (indices >= 0) & (indices < slots)", ("sparse:metax",), new="valid = indices >= 0"),
    Mutant("_ports.rows", "valid = (indices >= 0) & (indices < slots)", ("sparse:metax",), new="valid = indices < slots"),
    Mutant("_ports.rows", "target.copy_(result)", ("metax",), new="pass"),
    Mutant("_ports.flash_mla", "limit = self._max_batch or q.shape[0]", ("large:moore_threads",), new="limit = q.shape[0]"),
    Mutant("moore_threads.plugin", "MAX_BATCH = 4095", ("large:moore_threads",), new="MAX_BATCH = 4096"),
    Mutant("_ports.base", "reasons = unsupported_reasons(self.declarations, key, device)", ("metax",), new="reasons: list = []"),
    Mutant("amd.decode", "num_kv_splits=self._splits(batch),", ("amd",)),
    Mutant("amd.decode", "**self._fixed,", ("amd",)),
    Mutant("amd.decode", "sm_scale=scale,", ("scale:amd",)),
    Mutant("amd.decode", "return max(2, min(16, -(-self._units // batch)))", ("amd",), new="return max(1, min(16, -(-self._units // batch)))"),
    Mutant("amd.decode", "lens = cache_seqlens.clamp(0, capacity)", ("amd",), new="lens = cache_seqlens + 0"),
    Mutant("amd.decode", "slots = lens.new_zeros(batch * capacity + PAD)", ("amd",), new="slots = lens.new_zeros(batch * capacity)"),
    Mutant("amd.decode", "PAD = 256  # ids past the last: the vendor's own test leaves room for prefetch", ("amd",), new="PAD = 1"),
    Mutant("amd.decode", "self._fixed = {name: value for name, value in wanted.items() if name in taken}", ("amd_middle",), new="self._fixed = wanted"),
    Mutant("amd.decode", "plans = True", ("amd",)),
    Mutant("iluvatar.ixformer", "return_softmax_lse=True,", ("iluvatar",)),
    Mutant("iluvatar.ixformer", "table, lens = safe_rows(block_table, cache_seqlens, page)", ("iluvatar",), new="table, lens = block_table, cache_seqlens"),
    Mutant("iluvatar.ixformer", "table.shape[1] * page,", ("iluvatar",), new="page,"),
    Mutant("metax.sparse", "natural = got[1] * math.log(2.0)", ("sparse:metax",), new="natural = got[1]"),
    Mutant("metax.sparse", "return indices.masked_fill(~valid_entries(indices, slots, length), -1)", ("sparse:metax",), new="return indices"),
    Mutant("flaggems.sparse", "entries = indices.masked_fill(~valid, 0).gather(-1, order)", ("sparse:flaggems",), new="entries = indices"),
    Mutant("flaggems.sparse", '"extra_topk_length": extra_count,', ("sparse:flaggems",)),
    Mutant("flaggems.sparse", "topk_length=count, **more,", ("sparse:flaggems",), new="topk_length=length, **more,"),
    Mutant("hygon.probe", "gives_object = plain is not None and _takes_nothing(plain)", ("hygon_newer",), new="gives_object = False"),
    Mutant("_ports.owners", 'return "flash_mla_cuda" in f.extensions and ("metax" in f.local or plain is not None)', ("owners",), new='return "flash_mla_cuda" in f.extensions'),
    Mutant("_ports.owners", 'return "flash_mla.cuda" in f.extensions and (tagged or f.version.startswith("1.2.0"))', ("owners",), new='return "flash_mla.cuda" in f.extensions'),
    Mutant("_ports.owners", 'return f.name == "flash-mla" and stamp is not None and bool(built)', ("owners",), new='return f.name == "flash-mla"'),
    Mutant("_ports.owners", 'lambda f: f.name == "flash-mla" and not f.extensions and "mate" in f.needs,', ("owners",), new='lambda f: "mate" in f.name,'),
    Mutant("_ports.owners", '"flash_mla_musa",', ("owners",)),
    Mutant("_ports.owners", '"flash_mla.cuda",', ("owners",)),
    Mutant("devices.amd", "if probe.type != \"cuda\" or hip is None or is_hygon(probe):", ("devices",), new="if probe.type != \"cuda\" or hip is None:"),
    Mutant("devices._facts", 'HYGON_ONLY = frozenset({"gfx926", "gfx928", "gfx936", "gfx938"})', ("devices",), new="HYGON_ONLY = frozenset()"),
    Mutant("devices.nvidia", "if not name.upper().startswith(PRODUCT_LINES) or properties is None:", ("devices",), new="if properties is None:"),
    Mutant("devices.nvidia", "if probe.type != \"cuda\" or cuda is None:", ("devices",), new="if cuda is None:"),
    Mutant("devices.metax", 'if probe.type != "cuda":', ("devices",), new="if False:"),
    Mutant("devices.own_types", 'if probe.type == "xpu" and ("torch_xmlir" in probe.modules or "kunlun" in name.lower()):', ("devices",), new="if False:"),
)  # fmt: skip

"""Every fake distribution: what pip would show, and its files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.simulated_ports import flash_mla_sources as f
from tests.simulated_ports import other_sources as o
from tests.simulated_ports.install import install


@dataclass(frozen=True)
class Fake:
    """A distribution; ``owner`` is whose it is, for those imported as ``flash_mla``."""

    name: str
    version: str
    files: dict[str, str]
    owner: str = ""
    needs: tuple[str, ...] = ()

    def install(self, folder: Path) -> Path:
        return install(folder, self.name, self.version, self.files, self.needs)


def _flash_mla(interface: str, **modules: str) -> dict[str, str]:
    files = {"flash_mla/__init__.py": f.INIT, "flash_mla/flash_mla_interface.py": interface}
    return files | {path.replace("__", "/") + ".py": text for path, text in modules.items()}


def _g1(extension: str) -> str:
    return f.G1_INTERFACE.format(extension=extension)


NVIDIA_ONLY = "import torch\n"
FAKES = {
    "metax": Fake(
        "flash_mla",
        "1.0.1+metax3.0.0.4torch2.6",
        _flash_mla(_g1("flash_mla_cuda"), flash_mla_cuda=f.METAX_EXT),
        "metax",
    ),
    "metax_mc": Fake(
        "flash_mla",
        "1.0.1+metax3.3.0.15torch2.8",
        _flash_mla(f.METAX_MC_INTERFACE, flash_mla_cuda=f.METAX_MC_EXT),
        "metax",
    ),
    "metax_unstamped": Fake(
        "flash_mla",
        "1.0.1+git0cb1a11torch2.1",
        _flash_mla(_g1("flash_mla_cuda"), flash_mla_cuda=f.METAX_EXT),
        "metax",
    ),
    "moore_threads": Fake(
        "flash_mla",
        "1.0.0+c564db4",
        _flash_mla(_g1("flash_mla_musa"), flash_mla_musa=f.MT_EXT),
        "moore_threads",
    ),
    "mate_wrapper": Fake(
        "flash_mla",
        "0.2.6",
        _flash_mla("from mate import flashmla as core\n" + f.SCHED_META + f.G3_CALL.format(out="")),
        "mate",
        ("mate>=0.2",),
    ),
    "mate": Fake("mate", "0.2.6", {"mate/__init__.py": "", "mate/flashmla.py": f.MATE_CORE}),
    "hygon": Fake(
        "flash_mla",
        "1.2.0+das.opt1.dtk2504",
        _flash_mla(_g1("flash_mla.cuda"), flash_mla__cuda=f.G1_EXT),
        "hygon",
    ),
    "hygon_newer": Fake(
        "flash_mla",
        "1.2.0",
        {
            "flash_mla/__init__.py": (
                f.INIT + "from flash_mla.flash_mla_interface import "
                "get_mla_decoding_metadata_dense_fp8\n"
            ),
            "flash_mla/flash_mla_interface.py": f.HYGON_NEWER,
            "flash_mla/cuda.py": f.G1_EXT,
        },
        "hygon",
    ),
    "iluvatar_flash_mla": Fake(
        "flash_mla",
        "1.0.0+corex.4.5.0",
        _flash_mla(_g1("flash_mla_corex"), flash_mla_corex=f.G1_EXT),
        "iluvatar",
    ),
    "thead": Fake(
        "flash_mla",
        "2.1.0+dev57.00fed6a",
        _flash_mla(
            "import flash_mla_cuda as core\n" + f.SCHED_META + f.G3_CALL.format(out=", out=None"),
            flash_mla_cuda=f.THEAD_CORE,
        ),
        "thead",
    ),
    "deepseek_g1": Fake(
        "flash_mla",
        "1.0.0+414a2f3",
        _flash_mla(_g1("flash_mla_cuda"), flash_mla_cuda=NVIDIA_ONLY),
        "deepseek",
    ),
    "deepseek_g3": Fake(
        "flash_mla",
        "1.0.0+9241ae3",
        _flash_mla(_g1("flash_mla.cuda"), flash_mla__cuda=NVIDIA_ONLY),
        "deepseek",
    ),
    "sglang": Fake(
        "sgl-flash-mla",
        "1.0.0",
        _flash_mla(
            _g1("flash_mla.cuda"), flash_mla__cuda=NVIDIA_ONLY, flash_mla___C_legacy=NVIDIA_ONLY
        ),
        "sglang",
    ),
    "tokenspeed": Fake(
        "tokenspeed-flashmla",
        "0.1.0",
        _flash_mla(_g1("flash_mla.cuda"), flash_mla__cuda=NVIDIA_ONLY),
        "tokenspeed",
    ),
    "ixformer": Fake(
        "ixformer",
        "0.6.0+corex.4.5.0",
        {
            "ixformer/__init__.py": "",
            "ixformer/inference/__init__.py": "",
            "ixformer/inference/functions/__init__.py": (
                "from .vllm_ops import vllm_paged_attention_mla\n"
            ),
            "ixformer/inference/functions/vllm_ops.py": o.IXFORMER_NEW,
        },
    ),
    "ixformer_old": Fake(
        "ixformer",
        "0.5.0+corex.4.2.0",
        {
            "ixformer/__init__.py": "",
            "ixformer/inference/__init__.py": "",
            "ixformer/inference/functions/__init__.py": o.IXFORMER_OLD,
        },
    ),
    "aiter": Fake("amd-aiter", "0.1.21", {"aiter/__init__.py": "", "aiter/mla.py": o.AITER_NEW}),
    "aiter_middle": Fake(
        "amd-aiter", "0.1.9.post1", {"aiter/__init__.py": "", "aiter/mla.py": o.AITER_MIDDLE}
    ),
    "aiter_old": Fake("amd-aiter", "0.1.6", {"aiter/__init__.py": "", "aiter/mla.py": o.AITER_OLD}),
    "flag_gems": Fake(
        "flag_gems",
        "5.0.0",
        {
            "flag_gems/__init__.py": "",
            "flag_gems/fused/__init__.py": (
                "from flag_gems.fused.flash_mla_with_kvcache import flash_mla_with_kvcache\n"
            ),
            "flag_gems/fused/flash_mla_with_kvcache.py": o.FLAG_GEMS_DENSE,
        },
    ),
    "flag_gems_sparse": Fake(
        "flag_gems",
        "4.2.0",
        {
            "flag_gems/__init__.py": "",
            "flag_gems/fused/__init__.py": (
                "from flag_gems.fused.flash_mla_with_kvcache import flash_mla_with_kvcache\n"
            ),
            "flag_gems/fused/flash_mla_with_kvcache.py": o.FLAG_GEMS_SPARSE,
        },
    ),
    "tyllm": Fake("tyllm", "0.1", {"tylang/__init__.py": "raise SystemExit('not for import')\n"}),
    "torch_npu": Fake(
        "torch_npu", "2.6.0", {"torch_npu/__init__.py": "raise SystemExit('not for import')\n"}
    ),
}

# One of each name that a single environment can hold, and all flash_mla ports beside each other
# in folders of their own, as stacked virtual environments have them.
MIXED = (
    "deepseek_g3", "metax_mc", "moore_threads", "mate_wrapper", "mate", "hygon", "thead",
    "iluvatar_flash_mla", "ixformer", "aiter", "flag_gems", "sglang", "tyllm", "torch_npu",
)  # fmt: skip


def install_each(labels: Iterable[str], folder: Path) -> list[str]:
    """Install each fake in a folder of its own; the folders, for ``sys.path``."""
    return [str(FAKES[label].install(folder / label)) for label in labels]

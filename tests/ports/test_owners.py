"""Who owns ``import flash_mla``: every fake, every pair of fakes, every adapter."""

from __future__ import annotations

import itertools

import pytest

from flashmla_hub import foreign
from flashmla_hub.backends._ports import owners
from flashmla_hub.backends.hygon.plugin import Hygon
from flashmla_hub.backends.iluvatar.plugin import IluvatarFlashMLA
from flashmla_hub.backends.metax.plugin import MetaX
from flashmla_hub.backends.moore_threads.plugin import Mate, MTFlashMLA
from flashmla_hub.backends.thead.plugin import THead
from flashmla_hub.backends.upstream.plugin import Upstream
from flashmla_hub.device import DeviceInfo
from tests.simulated_ports.catalogue import FAKES

CONTESTED = [label for label, fake in FAKES.items() if fake.owner]
ADAPTERS = {  # owner of a flash_mla: the adapter and a device of its vendor
    "metax": (MetaX(), "metax", "xcore1000"),
    "moore_threads": (MTFlashMLA(), "moore_threads", "mp_31"),
    "mate": (Mate(), "moore_threads", "mp_31"),
    "hygon": (Hygon(), "hygon", "gfx936"),
    "iluvatar": (IluvatarFlashMLA(), "iluvatar", "ivcore11"),
    "thead": (THead(), "thead", ""),
}


def only(label: str):
    fake = FAKES[label]
    (distribution,) = foreign.distributions(fake.name)
    return distribution


@pytest.mark.parametrize("label", CONTESTED)
def test_exactly_one_owner_claims_each_distribution(label, install):
    install(label)
    facts = owners.facts(only(label))
    claims = [owner.key for owner in owners.OWNERS if owner.owns(facts)]
    assert claims == [FAKES[label].owner], facts


@pytest.mark.parametrize("label", CONTESTED)
def test_no_other_adapter_takes_it(label, install):
    """The pairwise matrix: one distribution installed, each adapter asked on its own device."""
    install(label, "mate")
    for key, (adapter, vendor, arch) in ADAPTERS.items():
        reasons = adapter.environment_reasons(DeviceInfo(vendor, arch, type="cuda"))
        taken = FAKES[label].owner == key
        assert (reasons == ()) is taken, (key, reasons)
        if not taken:
            assert FAKES[label].version in reasons[0], "the refusal names what was found"


@pytest.mark.parametrize("label", CONTESTED)
def test_the_nvidia_entry_takes_deepseeks_line_and_nobody_elses(label, install):
    install(label)
    reasons = Upstream().environment_reasons(DeviceInfo("nvidia", "sm_90", type="cuda"))
    ours = FAKES[label].owner in ("deepseek", "sglang", "tokenspeed")
    assert (reasons == ()) is ours, reasons


@pytest.mark.parametrize(("first", "second"), itertools.permutations(CONTESTED, 2))
def test_of_two_installed_each_adapter_finds_its_own(first, second, install):
    install(first, second)
    for label in (first, second):
        fake = FAKES[label]
        found = owners.find(fake.owner)
        assert found is not None
        if FAKES[first].owner != FAKES[second].owner:
            assert found.version == fake.version


@pytest.mark.parametrize("label", CONTESTED)
def test_an_adapter_asks_nothing_of_another_vendors_device(label, install):
    install(label)
    for adapter, _, _ in ADAPTERS.values():
        assert adapter.environment_reasons(DeviceInfo("nvidia", "sm_90", type="cuda")) == ()


def test_without_a_list_of_files_the_extension_is_looked_for_in_place(install, tmp_path):
    install("moore_threads")
    (record,) = (tmp_path / "moore_threads").glob("*.dist-info/RECORD")
    record.unlink()
    distribution = only("moore_threads")
    assert distribution.files is None
    assert owners.owner_of(distribution).key == "moore_threads"


def test_an_unknown_stamp_belongs_to_nobody(install, tmp_path):
    install("deepseek_g3")
    (info,) = (tmp_path / "deepseek_g3").glob("*.dist-info")
    metadata = (info / "METADATA").read_text().replace("1.0.0+9241ae3", "3.1.4")
    (info / "METADATA").write_text(metadata)
    assert owners.owner_of(only("deepseek_g3")) is None
    assert "of unknown origin" in owners.describe_installed()

"""What holds for every device of the library: sources, tags, dense rates, plausible figures; and what is in it."""

from __future__ import annotations

import re

import pytest

from edgeopt.costs.memory import usable_bytes
from edgeopt.profiles import list_profiles, load_device, load_model, load_network

DEVICES = [entry["name"] for entry in list_profiles("device")]
NETWORKS = [entry["name"] for entry in list_profiles("network")]
REQUIRED = {
    "raspberry-pi-4", "raspberry-pi-5", "jetson-nano", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin",
    "phone-snapdragon-8-gen-3", "phone-snapdragon-8-elite", "phone-iphone-14", "phone-iphone-15", "macbook-m1",
    "macbook-m2", "macbook-m3", "macbook-m4", "mini-pc", "desktop-ryzen", "laptop", "rtx-3060", "rtx-3090", "rtx-4060",
    "rtx-4090", "rtx-5090", "l4", "t4", "v100", "a100", "h100", "h200",
}  # fmt: skip
LINKS = {
    "ethernet-100m", "ethernet-1g", "ethernet-10g", "wifi-5-home", "wifi-6-home", "wifi-7-home", "lte", "5g-sub6",
    "5g-mmwave", "bluetooth-5", "wan-100m", "wifi-6-radio",
}  # fmt: skip
LANGUAGE = {
    "llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.1-70b", "gemma-2-2b", "mixtral-8x7b", "qwen3-30b-a3b",
    *(f"qwen2.5-{size}b" for size in ("0.5", "1.5", "3", "7", "14", "32")),
    *(f"qwen3-{size}b" for size in ("0.6", "1.7", "4", "8", "14", "32")),
}  # fmt: skip
#: Denoisers, number of text encoders, whether there is a decoder, whether quality was published.
DIFFUSION = {
    "sd15-bksdm": ({"sd15", "bk-base", "bk-small", "bk-tiny"}, 1, True, True),
    "sdxl": ({"base", "refiner"}, 2, True, False),
    "ssd-1b": ({"ssd-1b"}, 2, True, False),
    "sd3-medium": ({"sd3-medium"}, 3, True, False),
    "flux.1-dev": ({"flux.1-dev"}, 2, True, False),
    "pixart-alpha": ({"pixart-alpha"}, 1, True, False),
    "dit": ({"s", "b", "xl"}, 0, True, True),
    "tstitch-ldm": ({"small", "large"}, 0, False, True),
}
#: Dense rates, in TFLOP/s, of the vendors' tables; products accumulate in float32, as torch lets them.
DENSE = {
    ("a100-80gb", "bfloat16"): 312, ("h100-sxm", "bfloat16"): 989.5, ("h200-sxm", "bfloat16"): 989.5,
    ("l4", "float16"): 121, ("t4", "float16"): 65, ("v100-16gb", "float16"): 125, ("rtx-3090", "float16"): 71,
    ("rtx-4090", "float16"): 165.2, ("rtx-5090", "float16"): 209.5, ("jetson-agx-orin-64gb", "int8"): 85,
}  # fmt: skip


def test_the_library_has_what_people_have():
    assert [stem for stem in sorted(REQUIRED) if not any(name.startswith(stem) for name in DEVICES)] == []


def test_the_library_has_the_links_people_have():
    assert sorted(set(NETWORKS)) == sorted(NETWORKS)
    assert set(NETWORKS) >= LINKS


def test_the_library_has_the_language_models_people_run():
    names = {entry["name"] for entry in list_profiles("model")}
    assert names >= LANGUAGE
    assert names >= DIFFUSION.keys()


@pytest.mark.parametrize("name", DIFFUSION)
def test_diffusion_families_have_their_encoders_and_decoders(name):
    variants, encoders, decoder, quality = DIFFUSION[name]
    model = load_model(name)
    assert model.variants.keys() == variants
    found = model.text_encoder
    assert (len(found.parts) or 1 if found else 0) == encoders
    assert (model.decoder is not None) == decoder
    assert (model.quality is not None) == quality


@pytest.mark.parametrize("name", DEVICES)
def test_every_number_has_a_source_and_every_guess_says_so(name):
    device = load_device(name)
    assert len(device.source) > 20
    assert "efficiency" in device.sources
    assert device.sources["efficiency"].startswith(device.efficiency.basis)
    assert device.sources["launch_overhead"].startswith(("assumed", "measured"))
    assert device.sources["margin"].startswith(device.margin.basis)


@pytest.mark.parametrize("name", DEVICES)
def test_no_rate_counts_sparsity(name):
    """Where a source prints sparse figures, the profile says that it took half of them."""
    device = load_device(name)
    words = " ".join([device.source, *device.sources.values()])
    if re.search("spars", words):
        assert re.search("halved|half of|a quarter|no sparsity", words), words


@pytest.mark.parametrize("name", DEVICES)
def test_figures_are_plausible(name):
    device = load_device(name)
    fastest = max(device.compute.values())
    assert 1e10 < min(device.compute.values()) <= fastest < 3e15
    assert 2 * 2**30 < device.memory < 200 * 2**30
    assert 1e10 < device.memory_bandwidth < 6e12
    assert 1 < fastest / device.memory_bandwidth < 900, "FLOP per byte at which the roofline bends"
    assert 1e-6 <= device.launch_overhead <= 1e-4
    assert 0.2 < device.efficiency.compute <= 0.9
    assert 0.3 < device.efficiency.memory_bandwidth <= 0.95
    assert 0 < device.power.idle < device.power.busy < 1000
    assert 0.5 * device.memory < usable_bytes(device) < 0.95 * device.memory
    rates = device.compute
    if {"float16", "int8"} <= rates.keys():
        assert rates["int8"] == pytest.approx(2 * rates["float16"], rel=0.01)
    if {"float32", "float16"} <= rates.keys():
        assert 1 <= rates["float16"] / rates["float32"] <= 17


@pytest.mark.parametrize(
    ("name", "mebibytes"),
    [("a100-80gb", 81920), ("h100-sxm", 81559), ("h200-sxm", 143771), ("l4", 23034), ("t4", 15360)],
)
def test_memory_of_data_centre_cards_is_what_their_driver_shows(name, mebibytes):
    """Less than the sheet where GDDR6 holds the check bits of ECC itself; the H200's "141 GB" are binary."""
    device = load_device(name)
    assert device.memory == mebibytes * 2**20
    assert str(mebibytes) in device.sources["memory"]


@pytest.mark.parametrize(("key", "tflops"), DENSE.items())
def test_tensor_rates_are_dense(key, tflops):
    name, dtype = key
    assert load_device(name).compute[dtype] == pytest.approx(tflops * 1e12, rel=0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_sources_and_plausible_figures(name):
    network = load_network(name)
    words = " ".join([network.source, *network.sources.values()])
    assert re.search("assumed|derived|measured|datasheet", words)
    assert 5e-5 <= network.default.latency <= 0.1
    if network.default.rate is not None:
        assert 1e5 < network.default.rate < 2e9

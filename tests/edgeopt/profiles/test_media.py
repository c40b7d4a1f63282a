"""Shared media and radio links, from a file to shares in a plan, through the whole command."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from edgeopt.cli import main
from edgeopt.costs.links import link_arrays, shannon_bytes_per_s
from edgeopt.profiles import dump_yaml, load_network, load_plan
from edgeopt.profiles.network import Network
from edgeopt.units import DecibelMilliwatt, unit_factor
from tests.edgeopt.cli_cases import PROBLEM

RADIO = {
    "bandwidth": 20e6, "frequency": 5e9, "transmit_power": 20.0, "path_loss_exponent": 3.0,
    "reference_distance": 1.0, "reference_loss": 40.0, "noise_density": -174.0, "noise_figure": 7.0, "efficiency": 0.5,
}  # fmt: skip


def radio_network(**fields):
    return Network.model_validate(
        {
            "name": "cell",
            "source": "numbers made for a test",
            "media": {"air": {"sharing": "reserved", "radio": {**RADIO, **fields}}},
            "default": {"latency": 0.001, "medium": "air", "distance": 10.0},
            "links": [{"from": "a", "to": "b", "latency": 0.002, "rate": 1e6}],
        }
    )


def test_radio_rates_by_hand():
    """20 dBm - 70 dB - (-174 + 73.01 + 7) dBm = 43.99 dB over noise at 10 m."""
    links = link_arrays(radio_network(), ["a", "b"])
    snr_db = 20 - (40 + 30) - (-174 + 10 * math.log10(20e6) + 7)
    assert snr_db == pytest.approx(43.99, abs=0.01)
    assert links.snr == pytest.approx(np.array([[0, 0], [10 ** (snr_db / 10), 0]]))
    assert links.rate_bytes_per_s[1, 0] == pytest.approx(0.5 * 20e6 * math.log2(1 + 10 ** (snr_db / 10)) / 8)
    assert links.rate_bytes_per_s[0, 1] == 1e6
    assert links.medium.tolist() == [[-1, -1], [0, -1]]
    assert links.band_hz.tolist() == [10e6]
    assert links.media == ("reserved",)


def test_free_space_is_the_reference_where_none_is_given():
    """Friis at 1 m and 5 GHz: 46.4 dB."""
    there = link_arrays(radio_network(), ["a", "b"]).snr[1, 0]
    free = link_arrays(radio_network(reference_loss=None), ["a", "b"]).snr[1, 0]
    assert 10 * math.log10(there / free) == pytest.approx(46.42 - 40, abs=0.01)


def test_a_share_has_less_noise():
    assert shannon_bytes_per_s(8.0, 3.0) == pytest.approx(2.0)
    assert shannon_bytes_per_s(8.0, 3.5, 0.5) == pytest.approx(0.5 * math.log2(8.0))
    assert shannon_bytes_per_s(8.0, 3.0, 0.0) == 0.0


def test_a_network_reads_back_as_it_was_written(tmp_path):
    path = tmp_path / "cell.yaml"
    path.write_text(dump_yaml(radio_network()), encoding="utf-8")
    assert load_network(str(path)) == radio_network()


@pytest.mark.parametrize("text", ["20", "20 W", "20 dB", "x dBm", "20 dBm/Hz"])
def test_levels_keep_to_their_unit(text):
    level = DecibelMilliwatt.__metadata__[0]
    assert level.parse("-3 dBm") == -3.0
    assert level.format(-3.0) == "-3 dBm"
    with pytest.raises(ValueError, match="20 dBm"):
        level.parse(text)


def test_new_units():
    assert unit_factor("MHz") == ("Hz", 10**6)
    assert unit_factor("km") == ("m", 1000)


@pytest.mark.parametrize("name", ["shared-wifi", "radio-cell"])
def test_bundled_problems_divide_the_air(name, tmp_path, capsys):
    target = tmp_path / "plan.yaml"
    assert main(["solve", name, "--json", "-o", str(target)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["gap"]) == ("optimal", 0)
    shares = [link["share"] for link in document["bandwidth"]]
    assert len(shares) == len(load_plan(target).transfers) >= 3
    assert sum(shares) == pytest.approx(1.0, abs=1e-6)
    plan = load_plan(target)
    for link, transfer in zip(document["bandwidth"], plan.transfers, strict=True):
        assert link["link"] == f"{transfer.source} -> {transfer.destination}"
        sending_s = transfer.bytes / link["rate_bytes_per_s"]
        latency_s = transfer.seconds - sending_s
        assert latency_s == pytest.approx(transfer.messages * plan.problem.network.default.latency, rel=1e-6)
    assert main(["verify", str(target)]) == 0
    assert main(["solve", name]) == 0
    assert "shares of wifi:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new"), [("share:", "share"), ("rate_bytes_per_s", "rate_bytes_per_s"), ("shares:", "shares")]
)
def test_verify_recomputes_shares_and_rates(old, new, tmp_path, capsys):
    target = tmp_path / "plan.json"
    assert main(["solve", "radio-cell", "-o", str(target)]) == 0
    plan = json.loads(target.read_text())
    key = new.rstrip(":")
    if key == "shares":
        plan["shares"][0], plan["shares"][-1] = plan["shares"][-1], plan["shares"][0]
    else:
        plan["transfers"][0][key] *= 1.5
    target.write_text(json.dumps(plan))
    capsys.readouterr()
    assert main(["verify", str(target)]) == 1


def test_time_shared_media_count_in_the_period(tmp_path, capsys):
    """Three devices over one access point: its busy time is the sum of all transfers of a request."""
    own = PROBLEM.replace("objective: latency", "objective: throughput").replace("100 Mbit/s", "2 Mbit/s")
    shared = own.replace(
        "  default: {rate: 2 Mbit/s, latency: 2 ms}",
        "  media: {ap: {sharing: time_shared}}\n  default: {rate: 2 Mbit/s, latency: 2 ms, medium: ap}",
    )
    found = []
    for text in (own, shared):
        path, target = tmp_path / "problem.yaml", tmp_path / "plan.yaml"
        path.write_text(text, encoding="utf-8")
        assert main(["solve", str(path), "-o", str(target)]) == 0
        plan = load_plan(target)
        busy = [stage.compute_s for stage in plan.stages]
        moves = [transfer.seconds for transfer in plan.transfers]
        found.append((plan.objective, max(busy), max(moves), sum(moves)))
        assert {transfer.share for transfer in plan.transfers} == {1.0}
    alone, together = found
    assert alone[0] == pytest.approx(max(alone[1], alone[2]), rel=1e-9)
    assert together[0] == pytest.approx(max(together[1], together[3]), rel=1e-9)
    assert together[3] > together[1], "the medium has to be what limits"
    capsys.readouterr()


AIR = "  media: {{air: {{sharing: reserved{radio}}}}}\n  default: {{latency: 2 ms, {link}}}"
GOOD = (
    ", radio: {bandwidth: 20 MHz, frequency: 5 GHz, transmit_power: 20 dBm, path_loss_exponent: 3, "
    "reference_distance: 1 m, noise_density: -174 dBm/Hz, noise_figure: 7 dB, efficiency: 0.5}"
)


@pytest.mark.parametrize(
    ("radio", "link", "field", "message"),
    [
        ("", "rate: 1 Mbit/s, medium: airr", "network.default.medium", "did you mean 'air'?"),
        ("", "medium: air", "network.default.rate", "is missing"),
        ("", "rate: 1 Mbit/s, medium: air, distance: 3 m", "network.default.distance", "not by radio"),
        (GOOD, "medium: air", "network.default.distance", "add `distance: 10 m`"),
        (GOOD, "medium: air, distance: 3 m, rate: 1 Mbit/s", "network.default.rate", "which computes it"),
        (GOOD, "medium: air, distance: -3 m", "network.default.distance", "is negative"),
        (GOOD, "medium: air, distance: 3", "network.default.distance", "has no unit"),
        (GOOD.replace("20 dBm", "20"), "medium: air, distance: 3 m", "transmit_power", "for example '20 dBm'"),
        (GOOD.replace("20 MHz", "20 Mbit/s"), "medium: air, distance: 3 m", "bandwidth", "measures something else"),
        (
            GOOD.replace(", noise_figure: 7 dB", ""),
            "medium: air, distance: 3 m",
            "noise_figure",
            "add `noise_figure: 7",
        ),
        (GOOD.replace("0.5}", "1.5}"), "medium: air, distance: 3 m", "efficiency", "not a fraction"),
    ],
)
def test_wrong_media_are_refused_with_field_and_line(radio, link, field, message, tmp_path, capsys):
    old = "  default: {rate: 100 Mbit/s, latency: 2 ms}"
    path = tmp_path / "problem.yaml"
    path.write_text(PROBLEM.replace(old, AIR.format(radio=radio, link=link)), encoding="utf-8")
    assert main(["solve", str(path)]) == 2
    printed = capsys.readouterr().err
    assert field in printed
    assert message in printed
    assert "problem.yaml:" in printed

"""Links of parties that wait for each other."""

from __future__ import annotations

import numpy as np

from edgeopt.costs.links import link_arrays, waiting_links
from tests.edgeopt.factories import device, network


def test_both_ends_of_a_message_that_was_waited_for_take_longer():
    messages = {"each": "1 ms", "per_mebibyte": "0 s", "rested": "2 ms"}
    devices = [device("a"), device("b", messages=messages), device("c", messages=messages)]
    wires = network(latency=0.01)
    plain, waited = link_arrays(wires, ["a", "b", "c"]), waiting_links(wires, devices)
    longer = waited.latency_s - plain.latency_s
    assert np.allclose(longer, 1e-3 * np.array([[0, 2, 2], [2, 0, 4], [2, 4, 0]]))
    assert np.array_equal(waited.rate_bytes_per_s, plain.rate_bytes_per_s)

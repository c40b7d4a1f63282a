"""A small problem file, spelled out, that the tests of the command line change one word at a time."""

from __future__ import annotations

DEVICE = """\
  - name: {name}
    source: numbers made for a test
    compute: {{float32: {gflops} GFLOP/s}}
    memory: {memory}
    memory_bandwidth: 50 GB/s
    launch_overhead: 10 us
    efficiency: {{compute: 0.5, memory_bandwidth: 0.5, basis: assumed}}
"""

PROBLEM = (
    """\
name: three
model:
  name: toy
  kind: model
  source: numbers made for a test
  family: causal_lm
  dtype: float32
  token: 8 B
  layers:
    - {name: embed, weights: 10 MB, flop_per_token: 0 FLOP, flop_per_token_context: 0 FLOP, kv_per_token: 0 B,
       output_per_token: 4 kB}
    - {name: block, count: 4, weights: 1 GB, flop_per_token: 500 MFLOP,
       flop_per_token_context: 4 kFLOP, kv_per_token: 8 kB, output_per_token: 4 kB}
    - {name: head, weights: 10 MB, flop_per_token: 10 MFLOP, flop_per_token_context: 0 FLOP, kv_per_token: 0 B,
       output_per_token: 128 kB}
strategy: pipeline
workload: {kind: text, prompt_tokens: 16, new_tokens: 4}
devices:
"""
    + DEVICE.format(name="phone", gflops=100, memory="2 GB")
    + DEVICE.format(name="laptop", gflops=800, memory="3 GB")
    + DEVICE.format(name="desktop", gflops=2000, memory="3 GB")
    + """\
network:
  name: home
  source: numbers made for a test
  default: {rate: 100 Mbit/s, latency: 2 ms}
objective: latency
"""
)

"""A right problem and right models as text, which tests change one word at a time."""

from __future__ import annotations

import textwrap

__all__ = ["DIFFUSION", "LANGUAGE", "PROBLEM"]

PROBLEM = textwrap.dedent(
    """\
    name: house
    model: {model}
    strategy: auto
    workload: {{prompt_tokens: 8, new_tokens: 4}}
    devices:
      - name: pi
        compute: {{float32: 100 GFLOP/s}}
        memory: 4 GiB
        memory_bandwidth: 10 GB/s
        launch_overhead: 10 us
        efficiency: {{compute: 0.5, memory_bandwidth: 0.5, basis: assumed}}
      - name: laptop
        compute: {{float32: 800 GFLOP/s}}
        memory: 8 GiB
        memory_bandwidth: 50 GB/s
        launch_overhead: 10 us
        efficiency: {{compute: 0.5, memory_bandwidth: 0.5, basis: assumed}}
        power: {{busy: 30 W}}
    network:
      default: {{rate: 100 Mbit/s, latency: 2 ms}}
      links:
        - {{between: [pi, laptop], rate: 1 Gbit/s, latency: 1 ms}}
    objective: latency
    constraints: {{source: pi}}
    """
)

LANGUAGE = textwrap.dedent(
    """\
    name: toy
    kind: model
    source: numbers made for a test
    family: causal_lm
    dtype: float32
    token: 8 B
    layers:
      - {name: embed, weights: 1 MB, flop_per_token: 0 FLOP, flop_per_token_context: 0 FLOP, kv_per_token: 0 B, output_per_token: 4 kB}
      - {name: block, count: 2, weights: 1 MB, flop_per_token: 1 MFLOP, flop_per_token_context: 4 FLOP, kv_per_token: 8 B, output_per_token: 4 kB}
    """  # noqa: E501
)
DIFFUSION = textwrap.dedent(
    """\
    name: images
    kind: model
    source: numbers made for a test
    family: diffusion
    dtype: float32
    sampler: {class: DDIMScheduler}
    prompt: 8 B
    conditioning: 8 B
    latent: 16 kB
    latent_shape: [4, 32, 32]
    variants:
      large: {weights: 10 MB, flop: 1 GFLOP, activations: 1 MB}
      small: {weights: 1 MB, flop: 100 MFLOP, activations: 1 MB}
    quality:
      form: table
      metric: FID
      first: small
      second: large
      fraction: [0, 0.5, 1]
      quality: [10, 11, 20]
      source: numbers made for a test
    """
)

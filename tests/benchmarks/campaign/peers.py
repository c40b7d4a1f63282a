"""One rank of the same split as others run it: torch.distributed.pipelining, or transformers' own pipeline mode.

One JSON job on standard input (``how``, ``plan``, ``rank``, ``address``, ``warmup``, ``repeat``, cores); rank 0 prints
the seconds of each counted request as JSON. Model, weights, prompt, layers of a rank and threads are those of the plan.

* ``pipelining``: a prefill, one microbatch; the token that the last rank samples goes back to rank 0.
* ``transformers``: ``generate`` on every rank; after each token the last rank broadcasts the logits, as it does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
import torch.distributed as dist
from torch import nn

from edgeopt.executor.cores import bind_computing, on_cores
from edgeopt.plan import Plan
from edgeopt.programs import build
from edgeopt.programs.language import build_model, model_config
from edgeopt.programs.weights import fill, open_weights

PORT = 29411


class _Part(nn.Module):
    """A stage of the plan as a module, so that both run the very same layers."""

    def __init__(self, program: Any, stage: int) -> None:
        super().__init__()
        self._program, self._stage = program, stage

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._program.begin()
        return self._program.run(self._stage, 0, [x])[0]


def pipelining(plan: Plan, rank: int) -> Callable[[], Any]:
    """Return a request through ``ScheduleGPipe``."""
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    program, world = build(plan, [rank]), len(plan.stages)
    prompt = program.request(0)[0]
    shapes = [[torch.empty(spec.shape, dtype=spec.dtype) for spec in program.specs(k, 0)] for k in range(world + 1)]
    stage = PipelineStage(
        _Part(program, rank), rank, world, torch.device("cpu"),
        input_args=tuple(shapes[rank]), output_args=tuple(shapes[rank + 1]),
    )  # fmt: skip
    schedule = ScheduleGPipe(stage, n_microbatches=1)

    def request() -> Any:
        found = schedule.step(prompt) if rank == 0 else schedule.step()
        token = torch.zeros(shapes[world][0].shape, dtype=shapes[world][0].dtype)
        if rank == world - 1:
            dist.send(found, 0)
            return found
        if rank == 0:
            dist.recv(token, world - 1)
        return token

    return request


def native(plan: Plan, rank: int) -> Callable[[], Any]:
    """Return a request through ``generate`` of a model under transformers' pipeline parallelism."""
    from torch.distributed.device_mesh import init_device_mesh
    from transformers.distributed import pipeline_parallel

    architecture, load = plan.problem.model.architecture, plan.problem.workload
    config = model_config(architecture)
    model = build_model(architecture, config)
    fill(model, open_weights(architecture), dtype=torch.float32)
    model.generation_config.eos_token_id = None
    spans = [(max(s.start - 1, 0), min(s.stop - 1, config.num_hidden_layers)) for s in plan.stages]
    # It splits evenly by itself; every decision about layers goes through this method.
    pipeline_parallel.PipelineStage.layer_range_for_rank = lambda self, rank, num_layers: spans[rank]
    pipeline_parallel.apply_pipeline_parallelism(model, init_device_mesh("cpu", (len(spans),)))
    prompt = build(plan, []).request(0)[0]

    def request() -> Any:
        return model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=load.new_tokens, do_sample=False,
            num_beams=1, pad_token_id=0,
        )[:, load.prompt_tokens :]  # fmt: skip

    return request


def _assemble(rank: int, world: int) -> None:
    """Begin as the executor does: rank 0 last. After a barrier it would wait for others to leave it."""
    word = torch.ones(1, dtype=torch.uint8)
    for peer in range(1, world) if rank == 0 else []:
        dist.recv(word, peer)
    if rank:
        dist.send(word, 0)


def main() -> None:
    """Serve the requests of one rank."""
    job = json.loads(sys.stdin.readline())
    plan, rank = Plan.model_validate(job["plan"]), job["rank"]
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR=job["address"], MASTER_PORT=str(PORT), RANK=str(rank), WORLD_SIZE=str(job["world"]))
    bind_computing(job["compute_cores"])
    with on_cores(job["other_cores"]):  # as this executor's workers: threads of groups apart from computing
        dist.init_process_group("gloo")
        request = {"pipelining": pipelining, "transformers": native}[job["how"]](plan, rank)
    seconds, tokens = [], None
    with torch.inference_mode():
        for _ in range(job["warmup"] + job["repeat"]):
            _assemble(rank, job["world"])
            started_s = time.monotonic()
            tokens = request()
            seconds.append(time.monotonic() - started_s)
    dist.barrier()
    if rank == 0:
        print(json.dumps({"seconds": seconds[job["warmup"] :], "tokens": tokens.tolist()}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()

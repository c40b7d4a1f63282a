"""What a worker is doing, known before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["State"]


@dataclass(slots=True)
class State:
    """What the worker is doing now; the heartbeat reads it from another thread."""

    doing: str = "start"
    stage: int | None = None
    round: int | None = None
    request: int | None = None
    peer: int | None = None
    moves: int = 0

    def now(
        self, doing: str, stage: int | None = None, round_index: int | None = None, peer: int | None = None
    ) -> None:
        """Note what begins; ``peer`` is the rank that is waited for, where it does not follow from the stage."""
        self.doing, self.stage, self.round, self.peer = doing, stage, round_index, peer
        self.moves += 1

"""How long a run will take and what will not fit, before it starts.

Prompts are rendered by the real chat format; replies are taken to be as long as they may be. Both engines pay 2 operations per parameter and encoded token
and attention over all pairs of tokens, and per decoded token one pass over the weights and the keys and values so far, but never less than starting a
block's operations takes, and the draw. They differ in what they encode and in who waits: `reference` encodes every prompt anew each turn, once to generate
and once to measure, and a group waits for its slowest reply; `slots` encodes every token once and keeps its rows busy. What is left out (tokenizing, writing,
Python between the operations) makes the estimate too low for very small models, by about half for the built-in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drift_cli.chat import Chat
from drift_cli.spec import Cell, Condition, Transcript
from drift_cli.speeds import Speeds
from drift_cli.store.manifest import Manifest, ModelFacts
from drift_cli.store.run import RolloutState


@dataclass(frozen=True)
class Fit:
    """Whether a cell's conversations fit the context. Turns count from 1; None where it never happens."""

    cell: Cell
    prompt_lengths: tuple[int, ...]
    """Tokens of each turn's prompt if every reply before it were empty."""
    certain: int | None
    """The first turn that cannot fit even if every reply is empty: every rollout ends there with `finish="context"`."""
    possible: int | None
    """The first turn that may not fit if every reply is as long as it may be."""


def fits(manifest: Manifest, chat: Chat, context: int) -> list[Fit]:
    """Foresee, for every cell of a plan, where its prompts outgrow `context` tokens."""
    lengths: dict[tuple[str, str], tuple[int, ...]] = {}
    found = []
    for plan in manifest.cells:
        cell = plan.cell
        key = (cell.transcript, cell.condition)
        if key not in lengths:
            lengths[key] = prompt_lengths(chat, manifest.transcripts[cell.transcript], manifest.conditions[cell.condition])
        found.append(_fit(cell, lengths[key], manifest.spec.max_new_tokens, context))
    return found


def prompt_lengths(chat: Chat, script: Transcript, condition: Condition) -> tuple[int, ...]:
    """Tokens of each turn's prompt if every reply before it were empty."""
    users = script.users
    return tuple(len(chat.prompt(users[:turn], [""] * (turn - 1), condition)) for turn in range(1, len(users) + 1))


def _fit(cell: Cell, lengths: tuple[int, ...], reply: int, context: int) -> Fit:
    certain = next((turn for turn, length in enumerate(lengths, 1) if length + reply > context), None)
    possible = next((turn for turn, length in enumerate(lengths, 1) if length + turn * reply > context), None)
    return Fit(cell, lengths, certain, possible)


@dataclass(frozen=True)
class Work:
    """What is to be done on what: an estimate's input."""

    model: ModelFacts
    reply: int
    """Tokens of every reply."""
    rows: int
    """Rollouts generated together."""
    weight_bytes: int
    speeds: Speeds

    def encode(self, tokens: int, pairs: int) -> float:
        """Seconds for a forward over `tokens` that look at `pairs` of tokens."""
        work = 2.0 * self.model.parameters * tokens / self.speeds.flops
        return work + 4.0 * pairs * self.model.width * self.model.layers / self.speeds.attention + self.model.layers * self.speeds.step

    def decode(self, held: int, step: float) -> float:
        """Seconds for one token of every row, `held` tokens in all their caches; `step` seconds start a block's operations."""
        # Keys and values are two numbers a token, layer and width at 2 bytes each; fewer with grouped queries.
        read = self.weight_bytes + 4.0 * held * self.model.layers * self.model.width
        return max(read / self.speeds.bandwidth, self.model.layers * step) + self.speeds.draw


def seconds(engine: str, states: Sequence[RolloutState], lengths: Sequence[Fit], work: Work) -> float:
    """Upper estimate, in seconds, for what is left of a plan on an engine (`reference`, or anything else for slots)."""
    prompts = {fit.cell: [length + turn * work.reply for turn, length in enumerate(fit.prompt_lengths)] for fit in lengths}
    parts = _reference(states, prompts, work) if engine == "reference" else _slots(states, prompts, work)
    return sum(parts)


def _slots(states: Sequence[RolloutState], prompts: dict[Cell, list[int]], work: Work) -> Iterator[float]:
    for state in states:
        if state.ended:
            continue
        mine = prompts[state.rollout.cell]
        whole = mine[-1] + work.reply
        yield work.encode(whole, whole * whole // 2) + len(mine) * work.model.layers * work.speeds.step
        for length in mine[state.done :]:
            yield work.reply * work.decode(work.rows * length, work.speeds.slot_step) / work.rows


def _reference(states: Sequence[RolloutState], prompts: dict[Cell, list[int]], work: Work) -> Iterator[float]:
    for start in range(0, len(states), work.rows):
        rows = [state for state in states[start : start + work.rows] if not state.ended]
        for turn in range(max((row.total for row in rows), default=0)):
            now = [prompts[row.rollout.cell][turn] for row in rows if row.done <= turn < row.total]
            if not now:
                continue
            longest = max(now)
            yield work.encode(len(now) * longest, len(now) * longest**2)
            yield sum(work.encode(length + work.reply, (length + work.reply) ** 2) for length in now)
            yield work.reply * work.decode(len(now) * longest, work.speeds.step)

"""How long a run will take and what will not fit, before it starts.

Prompts are rendered by the real chat format; replies are taken to be as long as they may be, unless their lengths are given. The weights are read once a step,
what a row keeps once a token, and every token is encoded (2 operations a parameter); what that takes on this machine is measured (`speeds`). On top of it
comes what is not reading and multiplying: on a GPU a share for every block of a step and of a chunk, as seen on an H200; elsewhere the starting of
operations, which is measured too. `reference` encodes every prompt anew each turn, once to generate and once to measure, and a group waits for its slowest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from drift_cli.chat import Chat, TemplateProblem
from drift_cli.chat.conversation import stand_in
from drift_cli.engine.layout import Layout
from drift_cli.running.speeds import Speeds
from drift_cli.spec import Cell, Condition, Rollout, Transcript
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
            lengths[key] = prompt_lengths(chat, stand_in(manifest.transcripts[cell.transcript]), manifest.conditions[cell.condition])
        found.append(_fit(cell, lengths[key], manifest.spec.max_new_tokens, context))
    return found


def prompt_lengths(chat: Chat, script: Transcript, condition: Condition) -> tuple[int, ...]:
    """Tokens of each turn's prompt if every reply before it were empty; of one letter, where the chat template takes no empty ones."""
    for reply in ("", "a"):
        try:
            return tuple(_prompt_lengths(chat, script, condition, reply))
        except TemplateProblem:
            continue
    # The template takes neither: its rollouts will say why. Without the replies, this is no less than the least that a prompt can have.
    return tuple(len(chat.prompt(script.users[:1], (), condition)) for _ in script.users)


def _prompt_lengths(chat: Chat, script: Transcript, condition: Condition, reply: str) -> Iterator[int]:
    for turn in range(1, len(script.users) + 1):
        yield len(chat.prompt(script.users[:turn], [reply] * (turn - 1), condition))


def longest(manifest: Manifest, found: Sequence[Fit], context: int) -> int:
    """The most tokens that a conversation of a plan may come to have; nobody knows beforehand how long the turns of a user's code are."""
    if any(script.user is not None for script in manifest.transcripts.values()):
        return context
    most = max((fit.prompt_lengths[-1] + len(fit.prompt_lengths) * manifest.spec.max_new_tokens for fit in found), default=context)
    return min(most, context)


def _fit(cell: Cell, lengths: tuple[int, ...], reply: int, context: int) -> Fit:
    certain = next((turn for turn, length in enumerate(lengths, 1) if length + reply > context), None)
    possible = next((turn for turn, length in enumerate(lengths, 1) if length + turn * reply > context), None)
    return Fit(cell, lengths, certain, possible)


GRAPH_BLOCK, CHUNK_BLOCK = 7e-5, 1.6e-4
"""Seconds that a block takes beyond reading and multiplying, in a step and in a chunk: (measured - least) / blocks of an Olmo-3-7B shape on an H200, as
benchmarks/growth.py prints them (32 blocks; 48 rows at 512 to 5,600 tokens; chunks of 64 to 512 tokens)."""
GRAPH_DRAW = 5e-4
"""Seconds of a step's draw and bookkeeping there, from logits over 100,278 tokens."""


@dataclass(frozen=True)
class Work:
    """What is to be done on what: an estimate's input."""

    model: ModelFacts
    reply: int
    """Tokens of every reply."""
    rows: int
    """Rollouts generated together."""
    itemsize: int
    """Bytes of a number."""
    layout: Layout
    speeds: Speeds
    graphs: bool = False
    """Whether steps and chunks are CUDA graphs."""

    @property
    def weight_bytes(self) -> int:
        """Of all parameters."""
        return self.model.parameters * self.itemsize

    def kept(self, tokens: int) -> int:
        """Bytes of keys and values that a query looks at behind `tokens` tokens."""
        return self.layout.held(tokens, 0, slack=0) * self.itemsize

    def encode(self, tokens: int, pairs: int) -> float:
        """Seconds for a forward over `tokens` that look at `pairs` of tokens."""
        speeds, layers = self.speeds, self.model.layers
        products = 2.0 * self.model.parameters * tokens / speeds.flops
        looking = 4.0 * pairs * self.model.width * layers / (speeds.flops if self.graphs else speeds.attention)
        start = CHUNK_BLOCK if self.graphs else speeds.chunk
        return max(products, self.weight_bytes / speeds.bandwidth) + looking + layers * start

    def step(self, kept: float) -> float:
        """Seconds for one token of every slot, `kept` bytes in all their caches."""
        if self.graphs:
            return (self.weight_bytes + kept) / self.speeds.bandwidth + self.model.layers * GRAPH_BLOCK + GRAPH_DRAW
        starting = self.model.layers * self.speeds.slot_step + self.speeds.draw
        return self._least() + kept / self.speeds.slot_read + starting

    def padded_step(self, kept: float) -> float:
        """The same for `model.generate`, whose rows are padded to one length."""
        return max(self._least(), kept / self.speeds.bandwidth, self.model.layers * self.speeds.step) + self.speeds.draw

    def _least(self) -> float:
        products = 2.0 * self.model.parameters * self.rows / self.speeds.flops
        return max(self.weight_bytes / self.speeds.bandwidth, products)


Said = Callable[[Rollout], Sequence[int]]
"""Lengths of a rollout's replies, where they are known."""


def seconds(engine: str, states: Sequence[RolloutState], lengths: Sequence[Fit], work: Work, said: Said | None = None) -> float:
    """Estimate, in seconds, for what is left of a plan on an engine (`reference`, or anything else for slots): an upper one where `said` is not given."""
    empty = {fit.cell: fit.prompt_lengths for fit in lengths}
    plan = [_Plan(state, empty[state.rollout.cell], _replies(state, work, said)) for state in states if not state.ended]
    if not plan:
        return 0.0
    return sum(_reference(plan, work)) if engine == "reference" else _slots(plan, work)


def _replies(state: RolloutState, work: Work, said: Said | None) -> tuple[int, ...]:
    return tuple([work.reply] * state.total if said is None else said(state.rollout))


@dataclass(frozen=True)
class _Plan:
    """One rollout: where it stands, its prompts' lengths with empty replies, and its replies' lengths."""

    state: RolloutState
    empty: tuple[int, ...]
    replies: tuple[int, ...]

    def prompt(self, turn: int) -> int:
        """Tokens of the prompt of a turn, 0 for the first."""
        return self.empty[turn] + sum(self.replies[:turn])

    @property
    def left(self) -> range:
        """Turns to be done, 0 for the first."""
        return range(self.state.done, self.state.total)


def _slots(plan: Sequence[_Plan], work: Work) -> float:
    said = [sum(it.replies[turn] for turn in it.left) for it in plan]
    steps = max(*said, sum(said) / work.rows) if len(said) > 1 else said[0]
    kept = sum(it.replies[turn] * work.kept(it.prompt(turn) + it.replies[turn] // 2) for it in plan for turn in it.left)
    return steps * work.step(kept / steps) + sum(_chunks(plan, work))


def _chunks(plan: Sequence[_Plan], work: Work) -> Iterator[float]:
    """Every turn's reply and what follows it; of a rollout that goes on, all that it has said too."""
    for it in plan:
        yield work.encode(it.prompt(0), it.prompt(0) ** 2 // 2)
        for turn in range(it.state.total):
            start = it.prompt(turn)
            end = it.prompt(turn + 1) if turn + 1 < it.state.total else start + it.replies[turn]
            yield work.encode(end - start, (end - start) * (start + end) // 2)


def _reference(plan: Sequence[_Plan], work: Work) -> Iterator[float]:
    for start in range(0, len(plan), work.rows):
        rows = plan[start : start + work.rows]
        for turn in range(max(row.state.total for row in rows)):
            now = [row for row in rows if turn in row.left]
            if not now:
                continue
            longest, reply = max(row.prompt(turn) for row in now), max(row.replies[turn] for row in now)
            yield work.encode(len(now) * longest, len(now) * longest**2)
            yield sum(work.encode(row.prompt(turn) + row.replies[turn], (row.prompt(turn) + row.replies[turn]) ** 2) for row in now)
            yield reply * work.padded_step(len(now) * work.kept(longest))


_TURNS, _USER, _REPLY = 18, 80, 224
"""Turns, tokens of a user turn and tokens of a reply of the experiment of the preset olmo3-003b."""


def example(work: Work) -> tuple[float, int]:
    """(seconds, bytes) of one conversation a row, as long as those of the preset olmo3-003b: what a device can be said to do before there is a plan."""
    cell = Cell("example", "baseline", 1.0)
    lengths = [Fit(cell, tuple(_USER * turn for turn in range(1, _TURNS + 1)), None, None)]
    states = [RolloutState(Rollout(cell, sample), 0, _TURNS, None) for sample in range(work.rows)]
    kept = work.rows * work.layout.held((_USER + _REPLY) * _TURNS, _REPLY) * work.itemsize
    return seconds("auto", states, lengths, work, lambda rollout: (_REPLY,) * _TURNS), work.weight_bytes + kept

"""Both engines against the network itself: every reply's tokens and every layer's residual mean, from plain forward passes over the whole conversation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jobs import never
from numpy.typing import NDArray

from drift_cli.chat import chat_for, scripted
from drift_cli.engine.contract import Engine, Given, Incident, Job, Reply
from drift_cli.engine.sampling import filtered, noise_key, split_key, uniforms
from drift_cli.models import LoadedModel
from drift_cli.spec import Cell, Condition, Finish, Placement, Rollout, Sampling

USERS = ("hello there you are kind", "tell me more about that please, and who you feel you are", "what is the light")
CONDITIONS = (Condition("plain"), Condition("asked", "be quiet and kind, whatever the others may say", Placement.EVERY_TURN))
SAMPLES, TOKENS = 2, 14
FILTERS = Sampling(top_p=1.0)
SEED = 5
_CLOSE = 1e-4
"""How far residual means may be from the direct ones, as a share of their size, and how close to a border of two tokens a draw may be that took the other."""


@dataclass(frozen=True)
class Measured:
    """How far an engine was from the network itself."""

    replies: int
    residual: float
    """The largest difference of a residual mean, as a share of its size."""
    tokens: int
    wrong_tokens: int
    longest: int
    """Tokens of the longest conversation."""
    incidents: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """Whether every number is what the network itself gives."""
        return self.replies > 0 and self.wrong_tokens == 0 and self.residual < _CLOSE


def jobs(model: LoadedModel) -> list[Job]:
    """One job a rollout, all of one group."""
    made = []
    for condition in CONDITIONS:
        cell = Cell("t", condition.name, 1.0)
        for sample in range(SAMPLES):
            talk = scripted(chat_for(model.card.tokenizer, "template"), USERS, condition, model.card.end_ids)
            made.append(Job(Rollout(cell, sample), talk, noise_key(SEED, cell, independent=False)))
    return made


def measure(model: LoadedModel, engine: Engine) -> Measured:
    """Run the conversations through an engine and compare."""
    incidents: list[Incident] = []
    todo = {job.rollout: job for job in jobs(model)}
    source = Given(todo.values(), len(todo) if engine.fixed_groups else 1)
    replies = [reply for reply in engine.run(source, never, incidents.append) if reply.finish is not Finish.CONTEXT]
    worst, wrong, tokens = 0.0, 0, 0
    for reply in replies:
        worst = max(worst, _residual_error(model, reply))
        wrong += sum(not fine for fine in _draws(model, reply, todo[reply.rollout].key))
        tokens += len(reply.ids)
    longest = max((len(reply.prompt) + len(reply.ids) for reply in replies), default=0)
    return Measured(len(replies), worst, tokens, wrong, longest, tuple(incident.kind for incident in incidents))


def forward(model: LoadedModel, ids: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits (tokens, vocabulary) and each layer's states (tokens, width), from a copy of the network that has run nothing else."""
    network = copy.deepcopy(model.network)
    with torch.inference_mode():
        out = network(input_ids=torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
    return out.logits[0], [state[0] for state in model.residuals.of(out.hidden_states)]


def _residual_error(model: LoadedModel, reply: Reply) -> float:
    content = [token for token in reply.ids if token not in model.card.end_ids]
    if reply.residual is None or not content:
        assert reply.residual is None
        assert not content
        return 0.0
    _, states = forward(model, [*reply.prompt, *reply.ids])
    span = slice(len(reply.prompt), len(reply.prompt) + len(content))
    direct = np.stack([state[span].double().mean(0).numpy() for state in states])
    assert reply.residual.shape == direct.shape
    return float((np.abs(reply.residual - direct).max(1) / np.abs(direct).max(1)).max())


def _draws(model: LoadedModel, reply: Reply, key: int) -> list[bool]:
    """Of each token of a reply, whether it is the one that the network's own logits and the rollout's uniforms make."""
    logits, _ = forward(model, [*reply.prompt, *reply.ids])
    found = []
    for place, token in enumerate(reply.ids):
        fine = fits(logits[len(reply.prompt) + place - 1], reply, place, token, key)
        if (
            not fine
        ):  # a network may compute a token otherwise in a longer conversation: what counts is the conversation that it was drawn in
            alone, _ = forward(model, [*reply.prompt, *reply.ids[:place]])
            fine = fits(alone[-1], reply, place, token, key)
        found.append(fine)
    return found


def fits(logits: torch.Tensor, reply: Reply, place: int, token: int, key: int) -> bool:
    """Whether (vocabulary,) logits make this the reply's token at `place`, with the uniform of a rollout whose generator key is `key`."""
    cell = reply.rollout.cell
    likely = filtered(logits[None], torch.tensor([cell.temperature]), FILTERS)[0].double()
    edges: NDArray[np.float64] = np.concatenate([[0.0], (likely.cumsum(0) / likely.sum()).numpy()])
    counts = (torch.tensor([number]) for number in (reply.rollout.sample, reply.turn, place))
    u = float(uniforms(torch.tensor([split_key(key)]), *counts)[0])
    return bool(edges[token] - _CLOSE <= u <= edges[token + 1] + _CLOSE)

"""Other ways to run the same experiment, timed turn by turn: the recipe that drift grew from, transformers' continuous batching, and the reference engine.

Each answers one turn of some rollouts whose earlier replies are given, and measures the replies; `grid.py` adds turns up, and says where it extrapolates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import world
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from drift_cli.chat import chat_for, scripted
from drift_cli.engine.contract import Given, Job
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.sampling import noise_key
from drift_cli.models import LoadedModel
from drift_cli.spec import Rollout, Sampling
from drift_cli.store.manifest import Manifest

_PATIENCE = 240.0
"""Seconds to wait for a reply: without FlashAttention's package, continuous batching masks one long attention, and its steps are slow."""

PER_BATCH = 4
"""Rows that the recipe decodes together."""
SAMPLING = {"do_sample": True, "temperature": 0.5, "top_p": 0.95, "top_k": 0}


def clock(model: LoadedModel) -> float:
    """Seconds, when the device has done its work."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def jobs_at(model: LoadedModel, plan: Manifest, given: world.Lengths, rollouts: Sequence[Rollout], turn: int) -> list[Job]:
    """Jobs that stand before `turn`, with random replies of the given lengths behind them, and end after it."""
    size = int(model.card.config.get_text_config().vocab_size)
    chat = chat_for(model.card.tokenizer, "template")
    jobs = []
    for number, rollout in enumerate(rollouts):
        lengths = world.reply_lengths(given, rollout)
        talk = scripted(chat, plan.transcripts["script"].users[:turn], plan.conditions[rollout.cell.condition], model.card.end_ids)
        for index in range(turn - 1):
            generator = torch.Generator().manual_seed(1000 * number + index)
            talk = talk.after(torch.randint(8, size, (lengths[index],), generator=generator).tolist())
        jobs.append(Job(rollout, talk, noise_key(42, rollout.cell, independent=False), 0, lengths=lengths))
    return jobs


class _Lengths(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its own length."""

    def __init__(self, lengths: torch.Tensor, width: int) -> None:
        self.lengths, self.width = lengths, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """(rows,) bool."""
        return input_ids.shape[1] - self.width >= self.lengths


def recipe(model: LoadedModel, jobs: list[Job], turn: int) -> float:
    """Seconds in which the recipe answers and measures one turn of up to PER_BATCH rollouts: whole prompts anew, left-padded, `generate`, then a second pass
    over the finished conversation, of which a turn's share is counted.
    """
    started = clock(model)
    prompts = [job.conversation.prompt for job in jobs]
    width, device = max(map(len, prompts)), model.device
    ids = torch.tensor([[0] * (width - len(p)) + [*p] for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    lengths = torch.tensor([job.lengths[turn - 1] for job in jobs if job.lengths is not None], device=device)
    config = GenerationConfig(**SAMPLING, max_new_tokens=int(lengths.max()), eos_token_id=-1, pad_token_id=0)
    with torch.inference_mode():
        made = model.network.generate(
            ids, attention_mask=mask, generation_config=config, stopping_criteria=StoppingCriteriaList([_Lengths(lengths, width)])
        )
    made.cpu()
    took = clock(model) - started
    return took + second_pass(model, jobs, turn)


def second_pass(model: LoadedModel, jobs: list[Job], turn: int) -> float:
    """A turn's share of one forward pass over each conversation: the time of a pass over the newest turn's tokens at the mean cost of a token."""
    total = 0.0
    for job in jobs:
        assert job.lengths is not None
        tokens = torch.ones((1, len(job.conversation.prompt) + job.lengths[turn - 1]), dtype=torch.long, device=model.device)
        started = clock(model)
        with torch.inference_mode():
            states = model.network(input_ids=tokens, output_hidden_states=True, use_cache=False, logits_to_keep=1).hidden_states
        states[-1].float().mean().item()
        total += (clock(model) - started) / turn
    return total


def continuous(model: LoadedModel, jobs: list[Job], turn: int) -> float:
    """Seconds in which transformers' continuous batching answers one turn of all rollouts, and a second pass measures it. Its set-up is not counted."""
    config = GenerationConfig(**SAMPLING, max_new_tokens=512, eos_token_id=-1, pad_token_id=0)
    with model.network.continuous_batching_context_manager(generation_config=config) as manager:
        manager.add_request(list(jobs[0].talk.prompt), max_new_tokens=2, eos_token_id=-1)
        _collect(manager, 1)
        started = clock(model)
        for job in jobs:
            assert job.lengths is not None
            manager.add_request(list(job.conversation.prompt), max_new_tokens=job.lengths[turn - 1], eos_token_id=-1)
        _collect(manager, len(jobs))
        took = clock(model) - started
    return took + second_pass(model, jobs, turn)


def _collect(manager: Any, wanted: int) -> None:
    got = 0
    while got < wanted:
        result = manager.get_result(timeout=_PATIENCE)
        if result is None:
            raise RuntimeError(f"continuous batching finished no reply in {_PATIENCE:.0f} seconds")
        got += bool(result.is_finished())


def reference(model: LoadedModel, jobs: list[Job], turn: int) -> float:
    """Seconds in which the reference engine answers and measures one turn of all rollouts. Its replies end at the longest one's length."""
    longest = max(job.lengths[turn - 1] for job in jobs if job.lengths is not None)
    engine = ReferenceEngine(model, (model.card.layers * 2 // 3,), Sampling(top_p=0.95), longest, batch=len(jobs))
    started = clock(model)
    for _ in engine.run(Given(jobs, len(jobs)), lambda: False, lambda incident: print("   ", incident.detail)):
        pass
    return clock(model) - started


Way = Callable[[LoadedModel, list[Job], int], float]

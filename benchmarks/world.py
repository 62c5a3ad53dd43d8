"""The experiment that drift grew from, in lengths alone: 3 conditions × 16 samples × 18 turns, on random weights of any shape.

`lengths.json` holds the tokens of each user turn and of each reply of that experiment, estimated from their letters so that they add up to the 193,862 tokens
that were sampled; with DRIFT_SEED_DATA set they are taken from the data itself. Words are numbers, one token each, so that prompts have exactly those lengths
and go through a real tokenizer and a real chat template.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, Olmo3Config, PretrainedConfig, PreTrainedTokenizerFast

from drift_cli import models
from drift_cli.chat import chat_for
from drift_cli.engine.contract import Engine, Incident, Job, JobSource, Reply
from drift_cli.models import LoadedModel
from drift_cli.spec import Cell, Condition, Placement, Rollout, RunSpec, Sampling, Transcript
from drift_cli.store.manifest import CellPlan, Manifest, ModelFacts

SAMPLED = 193_862
"""Tokens sampled in the experiment."""
SPECIALS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{%- for m in messages -%}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|> {%- endif -%}"
)
SYSTEM_TOKENS = {"baseline": 0, "simple": 8, "complex": 112}


@dataclass(frozen=True)
class Lengths:
    """Tokens of user turns, of every reply by condition, sample and turn, and of each condition's prompt."""

    users: tuple[int, ...]
    replies: dict[str, list[list[int]]]
    systems: dict[str, int] = field(default_factory=lambda: dict(SYSTEM_TOKENS))

    def cut(self, samples: int, turns: int, scale: float, longest: int) -> Lengths:
        """Fewer samples and turns, and shorter texts."""

        def short(n: int) -> int:
            return max(1, min(longest, round(n * scale)))

        replies = {name: [[short(n) for n in row[:turns]] for row in rows[:samples]] for name, rows in self.replies.items()}
        systems = {name: round(n * scale) for name, n in self.systems.items()}
        return Lengths(tuple(max(1, round(n * scale)) for n in self.users[:turns]), replies, systems)

    @property
    def sampled(self) -> int:
        """All replies together."""
        return sum(map(sum, (row for rows in self.replies.values() for row in rows)))


def lengths() -> Lengths:
    """From the experiment's own files where they are to be had, else from the table."""
    folder = os.environ.get("DRIFT_SEED_DATA")
    if folder is None:
        table = json.loads((Path(__file__).parent / "lengths.json").read_text())
        return Lengths(tuple(table["users"]), table["replies"])
    letters: dict[str, list[list[int]]] = {}
    users: list[int] = []
    for name, label in (("baseline", "baseline"), ("simple", "simple_sysprompt"), ("complex", "complex_sysprompt")):
        talks = json.loads((Path(folder) / f"003b_{label}.json").read_text())["conversations"]
        letters[name] = [[len(m["content"]) for m in talk if m["role"] == "assistant"] for talk in talks]
        users = [len(m["content"]) for m in talks[0] if m["role"] == "user"]
    share = SAMPLED / sum(sum(map(sum, rows)) for rows in letters.values())
    replies = {name: [[min(512, max(1, round(n * share))) for n in row] for row in rows] for name, rows in letters.items()}
    return Lengths(tuple(max(1, round(n * share)) for n in users), replies)


def config_of(name: str) -> PretrainedConfig:
    """`olmo3-7b`, `demo` or the folder of any configuration."""
    if name == "olmo3-7b":
        return Olmo3Config(vocab_size=100278, max_position_embeddings=65536, pad_token_id=0, eos_token_id=0)
    if name == models.DEMO:
        return models.describe(models.DEMO).config
    return AutoConfig.from_pretrained(name)


def load(name: str, device: str, dtype: str) -> LoadedModel:
    """A network of this shape with random weights, made on the device, and a tokenizer of as many words as its vocabulary has tokens."""
    config = config_of(name)
    kind = getattr(torch, dtype)
    torch.manual_seed(0)
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(config, dtype=kind)
    network = network.to(device=device, dtype=kind).eval()
    network.generation_config = GenerationConfig()
    generation = GenerationConfig(eos_token_id=0, top_p=0.95)
    card = models.make_card(name, "random", config, _tokenizer(config), generation)
    return LoadedModel(card, network, torch.device(device), dtype, sum(p.numel() for p in network.parameters()))


def _tokenizer(config: PretrainedConfig) -> PreTrainedTokenizerFast:
    size = int(config.get_text_config().vocab_size)
    words = [*SPECIALS, *(f"w{i}" for i in range(size - len(SPECIALS)))]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[-1]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIALS[1:]),
        chat_template=TEMPLATE,
        model_max_length=int(config.get_text_config().max_position_embeddings),
    )


def _words(count: int, seed: int, vocabulary: int) -> str:
    return " ".join(f"w{i}" for i in np.random.default_rng(seed).integers(0, vocabulary - 8, count))


def manifest(model: LoadedModel, given: Lengths, layers: tuple[int, ...], tokens: int) -> Manifest:
    """The experiment as drift would plan it."""
    size = int(model.card.config.get_text_config().vocab_size)
    script = Transcript("script", tuple(_words(n, turn, size) for turn, n in enumerate(given.users)))
    conditions = {
        name: Condition(name, _words(n, 1000 + n, size) if n else None, Placement.EVERY_TURN if n else Placement.START)
        for name, n in given.systems.items()
        if name in given.replies
    }
    chat = chat_for(model.card.tokenizer, "template")
    spec = RunSpec("bench", model.card.name, "random", model.dtype, chat.format, Sampling(top_p=0.95), tokens, 42)
    cells = tuple(CellPlan(Cell("script", name, 0.5), len(rows)) for name, rows in given.replies.items())
    facts = ModelFacts(
        type(model.network).__name__, model.card.layers, model.card.width, model.card.context, model.parameters, (0,), "random weights"
    )
    return Manifest(spec=spec, cells=cells, conditions=conditions, transcripts={"script": script}, layers=layers, model=facts)


@dataclass
class Forced:
    """An engine whose replies have given lengths: random weights do not know when to end."""

    engine: Any
    given: Lengths

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def run(self, jobs: JobSource, stop: Callable[[], bool], report: Callable[[Incident], None]) -> Generator[Reply]:
        """The engine's replies."""
        yield from self.engine.run(Lengthened(jobs, self.given), stop, report)


@dataclass
class Lengthened:
    """A source whose jobs have replies of given lengths."""

    source: JobSource
    given: Lengths

    def take(self) -> Sequence[Job]:
        """The next jobs."""
        jobs = self.source.take()
        for job in jobs:
            job.lengths = reply_lengths(self.given, job.rollout)
        return jobs


def reply_lengths(given: Lengths, rollout: Rollout) -> tuple[int, ...]:
    """Of every turn of a rollout."""
    return tuple(given.replies[rollout.cell.condition][rollout.sample])


__all__ = ["Engine", "Forced", "Lengths", "lengths", "load", "manifest", "reply_lengths"]

"""Which tokens of a reply stand for it: all, the last, or the first ones. In both engines, in the manifest, and where replies are measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from cli import drift
from contract.engines import GPU, KINDS, engine, stand_in
from hypothesis import given
from hypothesis import strategies as st
from jobs import jobs, run
from made_axes import made_axis, put
from thinking import ForgettingChat, means_of, split, thinking
from workers import Place

from drift_cli import models
from drift_cli.models import LoadedModel
from drift_cli.pool import MEAN, Pool, part_ranges
from drift_cli.spec import Part, Segment, SegmentKind, spans

POOLS = (Pool.of("last"), Pool.of("first:3"))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=4),
    st.sampled_from([MEAN, Pool.of("last"), Pool.of("first:1"), Pool.of("first:7")]),
)
def test_a_pool_keeps_tokens_in_order(steps: list[tuple[int, int]], pool: Pool) -> None:
    ranges, at = [], 0
    for gap, length in steps:
        ranges.append((at + gap, at + gap + length))
        at += gap + length
    tokens = [token for start, stop in ranges for token in range(start, stop)]
    kept = [token for start, stop in pool.within(ranges) for token in range(start, stop)]
    assert kept == (tokens[-1:] if pool.last else tokens[: pool.first])


@pytest.mark.parametrize("text", ["", "Mean", "first", "first:0", "first:-1", "last:2", "first:1e3", "first:12345678"])
def test_an_unknown_pool_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mean, last, or first:N"):
        Pool.of(text)


@pytest.mark.parametrize("pool", ["mean", "last", "first:9"])
def test_a_pool_is_written_as_it_is_read(pool: str) -> None:
    assert str(Pool.of(pool)) == pool


def test_parts_without_a_token_have_no_range() -> None:
    segments = (Segment(SegmentKind.REASONING, 1, 4), Segment(SegmentKind.ANSWER, 6, 6))
    assert part_ranges(6, segments) == {Part.ALL: ((0, 6),), Part.REASONING: ((1, 4),)}
    assert part_ranges(6, segments, Pool.of("last")) == {Part.ALL: ((5, 6),), Part.REASONING: ((3, 4),)}
    assert part_ranges(0, (), Pool.of("last")) == {}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tiny.save("olmo3", tmp_path_factory.mktemp("pools") / "olmo3")
    return models.load(models.describe(str(folder)), dtype="float32", device="cuda" if GPU else "cpu")


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_the_mean_of_its_tokens_that_count(
    kind: str, pool: Pool, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    for segmented in (False, True):
        todo = thinking(jobs(model, samples=2), ForgettingChat) if segmented else jobs(model, samples=2)
        found = run(engine(kind, model, segmented=segmented, pool=pool), todo)
        plain = run(
            engine(kind, model, segmented=segmented),
            thinking(jobs(model, samples=2), ForgettingChat) if segmented else jobs(model, samples=2),
        )
        kinds = set()
        for key, reply in found.items():
            assert reply.ids == plain[key].ids
            content = [token for token in reply.ids if token not in model.card.end_ids]
            with torch.inference_mode():
                tokens = torch.tensor([[*reply.prompt, *reply.ids]], device=model.device)
                states = model.network(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
            segments = split(content) if segmented else ()
            parts = {part: ((0, len(content)),) if part is Part.ALL else spans(segments, part) for part in Part}
            wanted = parts if segments else {Part.ANSWER: ((0, len(content)),)}
            means = means_of(reply)
            for part, ranges in wanted.items():
                places = [len(reply.prompt) + place for start, stop in ranges for place in range(start, stop)]
                kept = places[-1:] if pool.last else places[: pool.first]
                assert (part in means) == bool(kept)
                if kept:
                    expected = np.stack([state[0, kept].double().mean(0).cpu().numpy() for state in states])
                    assert np.linalg.norm(means[part] - expected) < 1e-4 * np.linalg.norm(expected)
            kinds.add(frozenset(means))
        assert len(kinds) > 1 or not segmented


def test_a_run_keeps_its_pool_and_everything_that_measures_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tiny.save("olmo3", tmp_path / "tiny-olmo3"))
    monkeypatch.chdir(tmp_path)
    put(made_axis("odd", 4, 2))
    users = ["hello there", "who are you"]
    (tmp_path / "short.json").write_text(json.dumps({"name": "short", "users": users}))
    line = ("--model", folder, "--max-new-tokens", "6", "--samples", "2", "--condition", "baseline", "--axis", "odd", "--layer", "2")
    more = ("--transcript", "short.json", "--layers", "2")
    said = drift("generate", *line, *more, "--pool", "last").err
    assert "a reply is measured by its last token (--pool last)" in said
    one = Place(tmp_path).run
    assert one.manifest.pool == "last"
    assert one.verify() == []
    # The trace of every token says which one it was.
    measured = drift("measure", "--traces", "--json").json
    assert measured["difference"] < 1e-2
    refused = drift("generate", *line, *more, code=1).err
    assert "pool: stored 'last', asked 'mean'" in refused
    # Somebody else's replies are measured alike.
    (tmp_path / "talk.json").write_text(json.dumps({"name": "short", "users": users, "replies": ["you are kind", "that is the light"]}))
    values = {}
    for pool in ("last", "mean"):
        if pool == "mean":
            drift("generate", *line, *more, "--name", "other")
        run_id = Place(tmp_path).run.paths.run_id
        drift("measure", run_id, "--transcript", "talk.json", "--axis", "odd", "--layer", "2")
        path = Place(tmp_path).run.paths.reference("short", "odd")
        found = json.loads(path.read_text())
        values[pool] = (found["projections"], found.get("pool"))
        kept = path
    assert values["last"][1] == "last"
    assert values["mean"][1] is None
    assert not np.allclose(values["last"][0], values["mean"][0])
    assert drift("plot", one.paths.run_id, "--output", "one.png").code == 0
    message = drift("plot", one.paths.run_id, "--reference", str(kept), "--output", "two.png", code=2).err
    assert "the reference line of short stands for a reply by all its tokens" in message

"""Token traces: measured by a forward pass, stored beside the run, and never mixed up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from cli import drift
from report_run import AXIS, make_run, trace_run

from drift_cli import models
from drift_cli.axis import Axis
from drift_cli.chat import replay
from drift_cli.errors import StoreError
from drift_cli.measuring import traces
from drift_cli.measuring.traces import piece_lengths
from drift_cli.models import LoadedModel
from drift_cli.spec import Answered, Cell, Finish, Rollout, Turn
from drift_cli.store.paths import Store
from drift_cli.store.run import Run
from drift_cli.store.traces import TokenTrace, read_traces, write_traces

ARCHITECTURES = list(tiny.ARCHITECTURES)
FIRST = Rollout(Cell("talk", "baseline", 0.7), 0)


def _generate(folder: Path, layer: int) -> Run:
    """A short run of a tiny model, projected on a random axis of all its layers at `layer`."""
    card = models.describe(str(folder))
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(card.layers + 1, card.width))
    made = Axis("odd", tuple(range(card.layers + 1)), (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    made.save(Path("odd.safetensors"))
    Path("short.json").write_text(json.dumps({"name": "short", "users": ["hello there", "who are you", "and the light"]}))
    command = (
        "generate",
        "--model",
        str(folder),
        "--transcript",
        "short.json",
        "--max-new-tokens",
        "9",
        "--samples",
        "2",
        "--dtype",
        "float32",
    )
    drift(
        *command,
        "--condition",
        "kind",
        "--system",
        "be kind",
        "--placement",
        "user-suffix",
        "--axis",
        "odd.safetensors",
        "--layer",
        str(layer),
    )
    return Run.newest(Store(Path("checkpoints")))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_traces_mean_is_the_projection_of_the_residual_mean(name: str, tiny_models: dict[str, Path]) -> None:
    layer = models.describe(str(tiny_models[name])).layers  # the last one, after the final norm
    run = _generate(tiny_models[name], layer)
    done = drift("measure", "--traces", "--json").json
    assert (done["traced"], done["known"]) == (2, 0)
    assert done["difference"] < 1e-4
    for state in run.states():
        record = run.record(state.rollout)
        found = read_traces(run.paths, state.rollout, run.manifest.axes[0], record.turns)
        assert list(found) == [turn.index for turn in record.turns]
        for turn in record.turns:
            trace = found[turn.index]
            assert "".join(trace.of(turn)[0]) == turn.text
            assert turn.ids is not None
            assert len(trace.values) == len(turn.ids) - (turn.finish is Finish.STOP)
            # float16 keeps 11 bits of each token's projection.
            assert trace.values.mean() == pytest.approx(turn.projections["odd"], abs=2e-3 * max(1.0, float(np.abs(trace.values).max())))


def test_a_rewritten_history_is_read_as_it_was_at_each_turn(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["olmo3"]
    direction = np.random.default_rng(1).normal(size=model.card.width).astype(np.float32)
    kept = [Answered((9, 8, 7), (20, 21), 2), Answered((9, 8, 7, 20, 21, 3), (30, 31, 32, 0), 3)]
    rewritten = Answered((9, 8, 7, 20, 3, 3), (40,), 1)  # the template dropped token 21 from the first reply
    found = list(traces._replies([*kept, rewritten], model, direction, 2))
    for turn, values in zip([*kept, rewritten], found, strict=True):
        alone = traces._project_tokens(model, [*turn.prompt, *turn.content], direction, 2)[len(turn.prompt) :]
        np.testing.assert_allclose(values, alone, atol=1e-5)
    assert not np.allclose(found[2], traces._project_tokens(model, [*kept[1].prompt, 40], direction, 2)[-1], atol=1e-3)


def test_verify_finds_damaged_traces_and_says_that_nothing_committed_is_affected(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    trace_run(run)
    assert run.verify() == []
    path = run.paths.traces(FIRST, "made")
    path.write_bytes(path.read_bytes()[:-1])
    stranger, earlier = path.with_name("notes.txt"), path.with_suffix(".traces")
    stranger.write_text("mine")
    earlier.write_bytes(b"{}\n")
    found = {finding.file: finding for finding in run.verify()}
    assert {file: finding.fatal for file, finding in found.items()} == {path: False, stranger: False, earlier: False}
    assert "of an earlier version" in found[earlier].problem


def test_measuring_again_measures_only_what_is_new(tiny_models: dict[str, Path]) -> None:
    run = _generate(tiny_models["olmo3"], 2)
    drift("measure", "--traces")
    path = run.paths.traces(run.states()[0].rollout, "odd")
    before = path.stat().st_mtime_ns
    assert drift("measure", "--traces", "--json").json["known"] == 2
    path.unlink()
    assert drift("measure", "--traces", "--json").json == {
        "run": run.paths.run_id,
        "axis": "odd",
        "layer": 2,
        "traced": 1,
        "known": 1,
        "difference": 0.0,
    } | {"difference": pytest.approx(0, abs=1e-4)}
    assert path.stat().st_mtime_ns > before
    assert drift("runs", "verify", "--json").json["ok"] is True


def test_generate_measures_the_traces_of_what_it_makes(tiny_models: dict[str, Path]) -> None:
    Path("short.json").write_text(json.dumps({"name": "short", "users": ["hello there", "who are you"]}))
    command = (
        "generate",
        "--transcript",
        "short.json",
        "--max-new-tokens",
        "5",
        "--condition",
        "baseline",
        "--axis",
        "demo",
        "--traces",
        "--json",
    )
    first = drift(*command, "--samples", "1")
    assert "token traces on demo" in first.err
    assert first.json["turns"] == 2
    again = drift(*command, "--samples", "2")
    assert "1 rollouts measured, 1 known" in again.err
    assert "0 rollouts measured, 2 known" in drift(*command, "--samples", "2").err


def test_traces_of_another_tokenizer_are_refused(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _generate(tiny_models["olmo3"], 2)
    monkeypatch.setattr(replay, "prompt_hash", lambda ids: "0" * 32)
    assert "no longer what it was when this turn was made" in drift("measure", "--traces", code=1).err


def test_a_signal_stops_between_rollouts_and_names_the_command(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = _generate(tiny_models["olmo3"], 2)
    measure = traces.measure_rollout

    def interrupted(*arguments: object) -> list[TokenTrace]:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(traces, "measure_rollout", interrupted)
    said = drift("measure", "--traces", code=75).err
    assert f"1 of 2 rollouts are traced. Go on with: drift measure {run.paths.run_id} --axis odd --traces" in said
    monkeypatch.setattr(traces, "measure_rollout", measure)
    assert drift("measure", "--traces", "--json").json["known"] == 1


def test_imported_runs_have_no_model_to_ask(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert "was imported" in drift("measure", "--traces", code=2).err
    assert "does not go with --traces" in drift("measure", "--traces", "--layer", "3", code=2).err


@pytest.mark.parametrize("text", ["plain words here", "é 中文 👩‍👩‍👧 \U0001f600!", "שלום עולם", "a\n\nb\t c", ""])
@pytest.mark.parametrize("name", ["olmo3", "llama"])
def test_pieces_are_the_whole_text_however_tokens_cut_its_characters(name: str, text: str) -> None:
    tokenizer = tiny.tokenizer(tiny.ARCHITECTURES[name])
    ids = tokenizer.encode(text, add_special_tokens=False)
    lengths = piece_lengths(tokenizer, ids, text)
    assert len(lengths) == len(ids)
    assert sum(lengths) == len(text)
    assert min(lengths, default=0) >= 0


def test_a_reply_that_ends_within_a_character_keeps_its_text_whole() -> None:
    tokenizer = tiny.tokenizer(tiny.ARCHITECTURES["olmo3"])
    ids = tokenizer.encode("ok 😀", add_special_tokens=False)[:-1]
    text = tokenizer.decode(ids)
    assert text.endswith("\ufffd")
    assert sum(piece_lengths(tokenizer, ids, text)) == len(text)


# The store


def test_traces_are_a_safetensors_file_that_other_tools_open(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    run = make_run(tmp_path)
    write_traces(run.paths, FIRST, AXIS, [_turn(1, "abc"), _turn(2, "d")], [_trace(1, [1.0, 2.0], (1, 2)), _trace(2, [3.0], (1,))])
    found = load_file(run.paths.traces(FIRST, "made"))
    assert found["values"].tolist() == [1.0, 2.0, 3.0]
    assert found["lengths"].tolist() == [1, 2, 1]


def _turn(index: int, text: str) -> Turn:
    return Turn(index, text, Finish.STOP, (1, 2, index), projections={"made": 1.0})


def _trace(turn: int, values: list[float], lengths: tuple[int, ...]) -> TokenTrace:
    return TokenTrace(turn, np.array(values, dtype=np.float32), lengths)


def test_traces_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    turns = [_turn(1, "ab" * 300), _turn(2, ""), _turn(3, "x" * 70000)]
    written = [_trace(1, [0.5, -3.25], (1, 599)), _trace(2, [], ()), _trace(3, [1e6, -2.0, 3.0], (0, 69999, 1))]
    write_traces(run.paths, FIRST, AXIS, turns, written)
    found = read_traces(run.paths, FIRST, AXIS, turns)
    for before in written:
        assert found[before.turn].lengths == before.lengths
        np.testing.assert_allclose(found[before.turn].values, before.values, rtol=2**-10, atol=1e-3 * 2**5)
    assert read_traces(run.paths, Rollout(FIRST.cell, 1), AXIS, turns) == {}


def test_traces_are_small(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_traces(run.paths, FIRST, AXIS, [_turn(1, "abcd" * 512)], [_trace(1, [1.0] * 512, (4,) * 512)])
    assert run.paths.traces(FIRST, "made").stat().st_size < 3 * 512 + 600


@pytest.mark.parametrize("where", [0, 40, -1, -4])
def test_a_flipped_bit_is_found(tmp_path: Path, where: int) -> None:
    run = make_run(tmp_path)
    trace_run(run)
    path = run.paths.traces(FIRST, "made")
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="checksum does not match"):
        read_traces(run.paths, FIRST, AXIS, run.record(FIRST).turns)


def test_traces_of_another_place_axis_or_reply_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    trace_run(run)
    turns = run.record(FIRST).turns
    other = Rollout(FIRST.cell, 1)
    run.paths.traces(other, "made").write_bytes(run.paths.traces(FIRST, "made").read_bytes())
    with pytest.raises(StoreError, match=r"measured for talk/baseline/T0.7/0000, not for talk/baseline/T0.7/0001"):
        read_traces(run.paths, other, AXIS, run.record(other).turns)
    with pytest.raises(StoreError, match="measured for d1, not for d2"):
        read_traces(run.paths, FIRST, type(AXIS)(AXIS.name, AXIS.layer, "d2"), turns)
    with pytest.raises(StoreError, match="turn 2 is not the one that was measured"):
        read_traces(run.paths, FIRST, AXIS, [turns[0], _turn(2, "another text"), *turns[2:]])


def test_traces_that_do_not_fit_a_reply_are_not_written(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(ValueError, match="do not fit"):
        write_traces(run.paths, FIRST, AXIS, [_turn(1, "abc")], [_trace(1, [1.0], (2,))])
    with pytest.raises(ValueError, match="not finite"):
        write_traces(run.paths, FIRST, AXIS, [_turn(1, "abc")], [_trace(1, [float("inf")], (3,))])
    assert not run.paths.traces(FIRST, "made").exists()


def test_a_symbolic_link_among_traces_is_not_followed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    trace_run(run)
    path = run.paths.traces(FIRST, "made")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        read_traces(run.paths, FIRST, AXIS, run.record(FIRST).turns)

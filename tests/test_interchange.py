"""Runs in and out: nothing is lost, nothing is invented, nothing is half written, and whatever does not fit is refused by name and number."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import drift_cli
from drift_cli import transcripts
from drift_cli.axis import Axis
from drift_cli.chat import messages
from drift_cli.errors import DriftError, StoreError, UsageError
from drift_cli.interchange import UNKNOWN_LAYER, export_assistant_axis, export_csv, export_parquet, export_seed, import_seed
from drift_cli.spec import Cell, ChatFormat, Condition, Finish, Placement, Rollout, RunSpec, Sampling, Transcript, Turn
from drift_cli.store.epoch import Epoch
from drift_cli.store.log import End, RolloutLog
from drift_cli.store.manifest import AxisEntry, CellPlan, Manifest, ModelFacts
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

ROOT = Path(drift_cli.__file__).parents[1]
USERS = ("Hello?", 'Say "hi",\r\nplease — ü 🌱', "=1+1", "And now?\n")
PROMPT = "Be kind.\n\nAlways."


def seed_value(label: str, prompt: str | None = None, placement: Placement = Placement.EVERY_TURN, samples: int = 3) -> dict[str, Any]:
    """A file of the seed's with made-up contents: odd texts, an empty reply, numbers that need all their digits."""
    condition = Condition("made", prompt, placement)
    replies = [["", *(f'{label} {sample}.{turn}\n\tüñ, "q"' for turn in range(1, len(USERS)))] for sample in range(samples)]
    noise = np.random.default_rng(len(label)).normal(size=(samples, len(USERS))).astype(np.float32)
    return {
        "model": "someone/model-7b",
        "transcript_source": "llama-70b/some talk",
        "condition": label,
        "n_samples": samples,
        "temperature": 0.5,
        "seed": 42,
        "system_prompt": prompt,
        "projections": [[float(number) for number in row] for row in noise],
        "conversations": [messages(USERS, made, condition) for made in replies],
    }


def write(folder: Path, *values: Mapping[str, Any]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{value['condition']}.json" for value in values]
    for path, value in zip(paths, values, strict=True):
        path.write_bytes(json.dumps(value, indent=2).encode())
    return paths


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "checkpoints")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    values = [seed_value("003b_baseline"), seed_value("003b_simple", PROMPT), seed_value("003b_start", PROMPT, Placement.START)]
    return write(tmp_path / "seed", *values, seed_value("003b_suffix", PROMPT, Placement.USER_SUFFIX))


def snapshot(store: Store) -> dict[str, tuple[bytes, int]]:
    """Every file of a store: its bytes and when it was last written."""
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(store.root.rglob("*")) if path.is_file()}


def test_files_of_the_seeds_become_one_run_with_a_cell_each(store: Store, files: list[Path]) -> None:
    run = Run.open(store, import_seed(files, store).paths.run_id)
    manifest = run.manifest
    assert manifest.spec.name == "003b"
    assert (manifest.spec.model, manifest.spec.seed) == ("someone/model-7b", 42)
    assert [str(plan.cell) for plan in manifest.cells] == [
        f"llama-70b_some_talk/{name}/T0.5" for name in ("baseline", "simple", "start", "suffix")
    ]
    assert {name: (made.system, made.placement) for name, made in manifest.conditions.items()} == {
        "baseline": (None, Placement.START),
        "simple": (PROMPT, Placement.EVERY_TURN),
        "start": (PROMPT, Placement.START),
        "suffix": (PROMPT, Placement.USER_SUFFIX),
    }
    assert manifest.transcripts["llama-70b_some_talk"].users == USERS
    assert manifest.imported is not None
    assert manifest.imported.labels["baseline"] == "003b_baseline"
    assert manifest.imported.transcript_source == "llama-70b/some talk"


def test_every_reply_and_projection_is_stored_and_every_rollout_ends(store: Store, files: list[Path]) -> None:
    run = import_seed(files, store, axis_name="assistant")
    assert all(state.complete for state in run.states())
    assert len(run.states()) == 12
    value = json.loads(files[1].read_bytes())
    record = run.record(Rollout(Cell("llama-70b_some_talk", "simple", 0.5), 2))
    assert [turn.text for turn in record.turns] == [
        message["content"] for message in value["conversations"][2] if message["role"] == "assistant"
    ]
    assert [turn.projections for turn in record.turns] == [{"assistant": number} for number in value["projections"][2]]
    assert all(turn.ids is None and turn.residual is None and turn.prompt_length is None for turn in record.turns)
    assert [finding for finding in run.verify() if finding.fatal] == []


def test_what_the_files_do_not_say_is_recorded_as_assumed(store: Store, files: list[Path]) -> None:
    manifest = import_seed(files, store).manifest
    assert {key for key, setting in manifest.settings.items() if setting.source == "assumed"} >= {
        "revision",
        "dtype",
        "chat",
        "top_p",
        "max_new_tokens",
        "layer",
        "finish",
    }
    assert (manifest.spec.revision, manifest.spec.max_new_tokens) == ("unknown", 512)
    assert manifest.axes[0].layer == UNKNOWN_LAYER
    assert manifest.axes[0].digest == "unknown"
    assert manifest.settings["seed"].source == "file"
    assert manifest.spec.sampling.independent_noise, "samples of imported conditions are no pairs"


def test_what_the_person_knows_is_recorded_as_given(store: Store, files: list[Path]) -> None:
    manifest = import_seed(files, store, name="mine", layer=21, max_new_tokens=512).manifest
    assert (manifest.spec.name, manifest.axes[0].layer, manifest.spec.max_new_tokens) == ("mine", 21, 512)
    assert manifest.settings["layer"].source == manifest.settings["max_new_tokens"].source == "given at import"


def test_import_then_export_gives_the_files_back_byte_for_byte(store: Store, files: list[Path], tmp_path: Path) -> None:
    made = export_seed(import_seed(files, store), None, tmp_path / "out")
    assert [path.name for path in made] == [path.name for path in files]
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in files]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in files)


def test_importing_the_same_files_again_writes_nothing(store: Store, files: list[Path]) -> None:
    import_seed(files, store)
    before = snapshot(store)
    import_seed(files, store)
    after = snapshot(store)
    assert {path: data for path, (data, _) in after.items()} == {path: data for path, (data, _) in before.items()}
    assert {path for path in after if "rollouts" in path and after[path] != before[path]} == set()


def test_a_stopped_import_goes_on(store: Store, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = RolloutLog.append, iter(range(1000))

    def append(self: RolloutLog, turn: Turn) -> None:
        if next(calls) == 18:
            raise KeyboardInterrupt
        real(self, turn)

    with monkeypatch.context() as patched:
        patched.setattr(RolloutLog, "append", append)
        with pytest.raises(KeyboardInterrupt):
            import_seed(files, store)
    assert sum(state.done for state in Run.newest(store).states()) == 18
    made = export_seed(import_seed(files, store), None, tmp_path / "out")
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in files]


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_bytes())
    edit(value)
    path.write_text(json.dumps(value))


def longer(value: dict[str, Any], number: int) -> None:
    """The same file with more samples, or fewer."""
    value.update(seed_value(value["condition"], value["system_prompt"], samples=number) | {"projections": value["projections"]})
    value["projections"] = (value["projections"] * 2)[:number]


CHANGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a reply": (lambda v: v["conversations"][1][5].update(content="other"), "simple/T0.5/0001, turn 2: the file's reply differs"),
    "a projection": (lambda v: v["projections"][2].__setitem__(3, 0.25), "simple/T0.5/0002, turn 4: the file's projection differs"),
    "fewer conversations": (lambda v: longer(v, 2), "simple/T0.5/0002 is stored, but the file has only 2 conversations"),
    "one that is shorter": (lambda v: (v["conversations"][0].__delitem__(slice(9, None)), v["projections"][0].pop()), "has 4 turns stored, but 3"),
    "the prompt": (lambda v: v.update(json.loads(json.dumps(v).replace("Always", "Never"))), "condition simple: system"),
    "a user turn": (lambda v: v.update(json.loads(json.dumps(v).replace("Hello?", "Hullo?"))), "transcript"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "expected"), CHANGED.values(), ids=CHANGED)
def test_changed_files_are_refused_and_nothing_is_written(store: Store, tmp_path: Path, edit: Any, expected: str) -> None:
    (path,) = write(tmp_path / "seed", seed_value("003b_simple", PROMPT))
    import_seed([path], store)
    before = snapshot(store)
    change(path, edit)
    with pytest.raises(StoreError, match="--name") as caught:
        import_seed([path], store)
    assert expected in str(caught.value)
    assert {name: data for name, (data, _) in snapshot(store).items()} == {name: data for name, (data, _) in before.items()}
    import_seed([path], store, name="again")


def test_another_file_and_more_samples_can_come_later(store: Store, files: list[Path], tmp_path: Path) -> None:
    import_seed(files[:1], store)
    change(files[1], lambda value: longer(value, 5))
    both = import_seed(files[1:2], store).manifest.imported
    assert both is not None
    assert both.labels == {"baseline": "003b_baseline", "simple": "003b_simple"}
    run = import_seed(files, store)
    assert [plan.samples for plan in run.manifest.cells] == [3, 5, 3, 3]
    assert [json.loads(path.read_bytes()) for path in export_seed(run, "seed", tmp_path / "out")] == [
        json.loads(path.read_bytes()) for path in files
    ]


@pytest.mark.parametrize(
    ("placement", "messages_kept"),
    [(Placement.EVERY_TURN, 6), (Placement.START, 5), (Placement.USER_SUFFIX, 4), (Placement.FIRST_USER, 4)],
)
def test_a_conversation_that_ended_early_stays_as_long_as_it_is(
    store: Store, tmp_path: Path, placement: Placement, messages_kept: int
) -> None:
    value = seed_value("early", PROMPT, placement)
    del value["conversations"][0][messages_kept:], value["projections"][0][2:]
    del value["conversations"][1][:], value["projections"][1][:]
    (path,) = write(tmp_path / "seed", value)
    run = import_seed([path], store)
    assert [(state.done, state.end is None) for state in run.states()] == [(2, True), (0, True), (4, False)]
    before = snapshot(store)
    (made,) = export_seed(import_seed([path], store), None, tmp_path / "out")
    assert json.loads(made.read_bytes()) == value
    assert {name: data for name, (data, _) in snapshot(store).items()} == {name: data for name, (data, _) in before.items()}


def put(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def edit(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return edit


def drop(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def edit(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return edit


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    **{f"no {key}": (drop(key), f"has no '{key}'") for key in seed_value("x")},
    "model": (put("model", to=3), "'model' is a number, not text"),
    "source": (put("transcript_source", to=None), "'transcript_source' is null, not text"),
    "condition": (put("condition", to=["a"]), "'condition' is a list, not text"),
    "prompt": (put("system_prompt", to=7), "'system_prompt' is a number, not text"),
    "seed": (put("seed", to=True), "'seed' is True, not a whole number"),
    "fractional seed": (put("seed", to=1.5), "'seed' is 1.5, not a whole number"),
    "temperature": (put("temperature", to="hot"), "temperature: is a string, not a number"),
    "huge temperature": (put("temperature", to=10**400), "temperature: is inf, not a finite number"),
    "samples": (put("n_samples", to=4), "'n_samples' is 4, but it holds 3 conversations"),
    "no conversations": (lambda v: v.update(n_samples=0, conversations=[], projections=[]), "holds 0 conversations"),
    "conversations": (put("conversations", to={}), "conversations: expected a list of conversations, found an object"),
    "a conversation": (put("conversations", 1, to="x"), "conversation 2: expected a list of messages, found a string"),
    "empty conversations": (lambda v: v.update(n_samples=1, conversations=[[]], projections=[[]]), "conversations are empty"),
    "a message": (put("conversations", 1, 4, to="x"), "conversation 2, message 5: is not an object of role and content"),
    "an extra key": (put("conversations", 1, 4, "name", to="x"), "conversation 2, message 5: is not an object of role and content"),
    "a role": (put("conversations", 1, 4, "role", to="tool"), "conversation 2, message 5: unknown role 'tool'"),
    "a content": (put("conversations", 1, 4, "content", to=None), "conversation 2, message 5: 'content' is null, not text"),
    "a surrogate": (put("conversations", 1, 4, "content", to="\ud800"), "conversation 2, message 5: content: character 1 is half"),
    "no last reply": (drop("conversations", 1, 11), "conversation 2, message 11: is the last one and has no reply"),
    "another prompt": (put("conversations", 1, 4, "content", to="x"), "conversation 2, message 5: system message where none fits"),
    "a prompt missing": (drop("conversations", 1, 4), "conversation 2, message 5: assistant message where none fits"),
    "a prompt moved": (lambda v: v["conversations"][1].reverse(), "conversation 2, message 12: is the last one"),
    "two replies": (lambda v: v["conversations"][1].insert(3, {"role": "assistant", "content": "x"}), "conversation 2, message 4: assistant"),
    "two users": (lambda v: v["conversations"][1].insert(3, {"role": "user", "content": "x"}), "conversation 2, message 5: user message"),
    "another user turn": (put("conversations", 1, 3, "content", to="x"), "conversation 2, user turn 2: is not the one of conversation 1"),
    "another placement": (lambda v: v["conversations"][1].insert(0, v["conversations"][1].pop(1)), "conversation 2, message 1: system"),
    "prompt not in use": (put("system_prompt", to=None), "conversation 1, message 2: system message where none fits"),
    "projections": (put("projections", to=None), "projections: expected a list of lists, found null"),
    "a list missing": (drop("projections", 1), "3 conversations but 2 lists of projections"),
    "a list": (put("projections", 1, to=2.0), "projections of conversation 2: expected a list of numbers, found a number"),
    "a number missing": (drop("projections", 1, 0), "projections of conversation 2: 3 numbers for 4 replies"),
    "a number": (put("projections", 1, 2, to="1"), "projections of conversation 2, turn 3: is a string, not a number"),
    "a boolean": (put("projections", 1, 2, to=True), "projections of conversation 2, turn 3: is a boolean, not a number"),
    "not a number": (put("projections", 1, 2, to=float("nan")), "projections of conversation 2, turn 3: is nan, not a finite number"),
    "infinity": (put("projections", 1, 2, to=float("-inf")), "projections of conversation 2, turn 3: is -inf, not a finite number"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_does_not_fit_is_refused_by_file_conversation_and_message(
    store: Store, tmp_path: Path, edit: Any, expected: str
) -> None:
    (path,) = write(tmp_path / "seed", seed_value("003b_simple", PROMPT))
    change(path, edit)
    with pytest.raises(UsageError) as caught:
        import_seed([path], store)
    assert expected in caught.value.what
    assert "003b_simple.json" in caught.value.what
    assert not store.root.exists()


def test_a_suffix_missing_from_one_user_turn_is_refused(store: Store, tmp_path: Path) -> None:
    (path,) = write(tmp_path / "seed", seed_value("suffix", PROMPT, Placement.USER_SUFFIX))
    change(path, put("conversations", 2, 2, "content", to=USERS[1]))
    with pytest.raises(UsageError, match="conversation 3, message 3: user message where none fits, or 'system_prompt' is missing"):
        import_seed([path], store)


TOGETHER: dict[str, tuple[dict[str, Any], str]] = {
    "models": ({"model": "other"}, "model is 'other', but 'someone/model-7b' in"),
    "seeds": ({"seed": 1}, "seed is 1, but 42 in"),
    "sources": ({"transcript_source": "x"}, "transcript_source is 'x', but 'llama-70b/some talk' in"),
    "cells": ({}, "condition 'a' at T 0.5 is also in"),
    "prompts": (seed_value("a", PROMPT) | {"temperature": 1.0}, "condition 'a' has another prompt or placement"),
    "scripts": ({"condition": "b", "conversations": [[m | {"content": "x"} for m in row] for row in seed_value("b")["conversations"]]}, "other user turns"),
    "names": ({"condition": "A "}, "get the same name here"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "expected"), TOGETHER.values(), ids=TOGETHER)
def test_files_that_do_not_belong_to_one_run_are_refused(store: Store, tmp_path: Path, edit: dict[str, Any], expected: str) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text(json.dumps(seed_value("a")))
    second.write_text(json.dumps(seed_value("a") | edit))
    with pytest.raises(UsageError) as caught:
        import_seed([first, second], store)
    assert expected in caught.value.what
    assert not store.root.exists()


def test_no_file_is_a_usage_error(store: Store) -> None:
    with pytest.raises(UsageError, match="no file"):
        import_seed([], store)


@pytest.mark.parametrize(("labels", "name", "conditions"), [
    (["003b_a", "003b_b"], "003b", ["a", "b"]),
    (["003b_a", "004_b"], "imported", ["003b_a", "004_b"]),
    (["a", "b"], "imported", ["a", "b"]),
    (["12_x y"], "12", ["x_y"]),
])  # fmt: skip
def test_an_experiments_number_names_the_run(store: Store, tmp_path: Path, labels: list[str], name: str, conditions: list[str]) -> None:
    paths = write(tmp_path / "seed", *map(seed_value, labels))
    run = import_seed(paths, store)
    assert run.manifest.spec.name == name
    assert [plan.cell.condition for plan in run.manifest.cells] == conditions
    assert [json.loads(path.read_bytes())["condition"] for path in export_seed(run, None, tmp_path / "out")] == labels


def test_keys_that_are_not_part_of_the_format_are_recorded(store: Store, tmp_path: Path) -> None:
    (path,) = write(tmp_path / "seed", seed_value("a") | {"notes": 1})
    assert import_seed([path], store).manifest.settings["ignored_keys"].value == ["notes"]


def test_one_condition_at_two_temperatures_gives_two_files(store: Store, tmp_path: Path) -> None:
    hot = seed_value("a") | {"temperature": 1.0}
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text(json.dumps(seed_value("a")))
    second.write_text(json.dumps(hot))
    made = export_seed(import_seed([first, second], store), None, tmp_path / "out")
    assert len(set(made)) == 2
    assert [json.loads(path.read_bytes()) for path in made] == [seed_value("a"), hot]


# A run of our own: two stored layers, one axis projected while generating, one measured later, a rollout that met the context's end.

WIDTH = 3
DIRECTION = np.array([[0.0, 0.6, 0.8]], dtype=np.float32)


def own_turn(index: int, sample: int) -> Turn:
    residual = np.random.default_rng((sample, index)).normal(size=(2, WIDTH)).astype(np.float32)
    return Turn(
        index, f"reply {sample}.{index}", Finish.STOP, (5, 6, index), 10 * index, "ab" * 16, residual, {"made": float(residual[0, 0])}
    )


@pytest.fixture
def own(store: Store) -> Run:
    spec = RunSpec("own", "tiny", "r1", "float32", ChatFormat("template", "00"), Sampling(), 20, 7)
    cell = Cell("talk", "kind", 0.7)
    manifest = Manifest(
        spec=spec,
        layers=(1, 4),
        conditions={"kind": Condition("kind", PROMPT, Placement.EVERY_TURN)},
        transcripts={"talk": Transcript("talk", USERS)},
        cells=(CellPlan(cell, 2),),
        axes=(AxisEntry("made", 1, "d1"),),
        model=ModelFacts("Tiny", 4, WIDTH, 128, 1000, (0,), None),
        epochs=(Epoch({"drift": "0"}, "cpu", "reference", 1),),
    )
    run = Run.create(store, manifest)
    for sample, last in ((0, 4), (1, 2)):
        with run.writer(Rollout(cell, sample)) as log:
            for index in range(1, last + 1):
                log.append(own_turn(index, sample))
            log.end(End(Finish.COMPLETE, 4, None) if last == 4 else End(Finish.CONTEXT, 3, 99))
    axis = Axis("late", (4,), DIRECTION)
    axis.save(run.paths.axis("late"))
    run.update(replace(run.manifest, measured=(AxisEntry("late", 4, axis.digest, "later"),)))
    return Run.open(store, run.paths.run_id)


def late(index: int, sample: int) -> float:
    residual = own_turn(index, sample).residual
    assert residual is not None
    return float(residual[1].astype(np.float64) @ DIRECTION[0].astype(np.float64))


def test_csv_has_a_row_for_every_turn_and_reads_back_exactly(own: Run, tmp_path: Path) -> None:
    path = export_csv(own, tmp_path / "table.csv")
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [(row["sample"], row["turn"]) for row in table] == [
        ("0", "1"),
        ("0", "2"),
        ("0", "3"),
        ("0", "4"),
        ("1", "1"),
        ("1", "2"),
        ("1", "3"),
    ]
    assert [row["user"] for row in table[:4]] == list(USERS)
    assert {row["run"] for row in table} == {own.paths.run_id}
    assert {(row["transcript"], row["condition"], row["temperature"]) for row in table} == {("talk", "kind", "0.7")}
    assert [float(row["projection_made"]) for row in table[:4]] == [own_turn(index, 0).projections["made"] for index in range(1, 5)]
    assert [float(row["projection_late"]) for row in table[4:6]] == pytest.approx([late(1, 1), late(2, 1)], rel=1e-12)
    assert [row["prompt_length"] for row in table] == ["10", "20", "30", "40", "10", "20", "99"]
    assert [row["reply_tokens"] for row in table] == ["3"] * 6 + [""]
    last = table[-1]
    assert (last["finish"], last["reply"], last["projection_made"], last["projection_late"]) == ("context", "", "", "")
    assert not path.read_bytes().startswith(b"\xef\xbb\xbf")


def test_csv_of_an_imported_run_keeps_texts_with_quotes_and_newlines(store: Store, files: list[Path], tmp_path: Path) -> None:
    run = import_seed(files, store)
    with export_csv(run, tmp_path / "t.csv", axes=["seed"]).open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    value = json.loads(files[0].read_bytes())
    assert len(table) == 48
    assert [row["reply"] for row in table[:4]] == [message["content"] for message in value["conversations"][0][1::2]]
    assert [float(row["projection_seed"]) for row in table[:4]] == value["projections"][0]
    assert {row["prompt_length"] for row in table} == {""}


def test_parquet_has_types_and_the_runs_identity(own: Run, tmp_path: Path) -> None:
    table = pq.read_table(export_parquet(own, tmp_path / "table.parquet"))
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        **dict.fromkeys(("run", "transcript", "condition", "user", "reply", "finish"), "string"),
        **dict.fromkeys(("sample", "turn", "prompt_length", "reply_tokens"), "int32"),
        **dict.fromkeys(("temperature", "projection_made", "projection_late"), "double"),
    }
    rows = table.to_pylist()
    assert [row["projection_made"] for row in rows[:4]] == [own_turn(index, 0).projections["made"] for index in range(1, 5)]
    assert (rows[-1]["reply"], rows[-1]["projection_made"], rows[-1]["finish"]) == (None, None, "context")
    said = {key.decode(): json.loads(text) for key, text in table.schema.metadata.items()}
    assert said["drift.run"] == own.paths.run_id
    assert said["drift.version"] == drift_cli.__version__
    assert said["drift.model"] == {"name": "tiny", "revision": "r1", "dtype": "float32"}
    assert said["drift.axes"]["late"] == {"layer": 4, "digest": Axis("late", (4,), DIRECTION).digest, "note": "later"}
    assert said["drift.conditions"]["kind"] == {"system": PROMPT, "placement": "every-turn"}


def test_parquet_carries_residuals_on_request(own: Run, tmp_path: Path) -> None:
    table = pq.read_table(export_parquet(own, tmp_path / "table.parquet", residuals=True))
    assert str(table.schema.field("residual_4").type).startswith("list<")
    assert "float" in str(table.schema.field("residual_4").type)
    for row in table.to_pylist()[:6]:
        residual = own_turn(row["turn"], row["sample"]).residual
        assert residual is not None
        np.testing.assert_array_equal(np.array([row["residual_1"], row["residual_4"]], dtype=np.float32), residual)
    assert table.to_pylist()[-1]["residual_1"] is None


def test_residuals_of_a_run_without_any_are_refused(store: Store, files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no residuals"):
        export_parquet(import_seed(files, store), tmp_path / "t.parquet", residuals=True)
    assert not (tmp_path / "t.parquet").exists()


def test_an_unknown_axis_is_refused_with_the_names_there_are(own: Run, tmp_path: Path) -> None:
    for export in (lambda: export_csv(own, tmp_path / "t", axes=["x"]), lambda: export_seed(own, "x", tmp_path / "t")):
        with pytest.raises(DriftError, match="made, late"):
            export()
    with pytest.raises(DriftError, match="2 axes"):
        export_seed(own, None, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_our_own_runs_export_to_the_seeds_format_and_come_back(own: Run, tmp_path: Path) -> None:
    (path,) = export_seed(own, "late", tmp_path / "out")
    value = json.loads(path.read_bytes())
    assert path.name == "kind.json"
    assert (value["condition"], value["transcript_source"], value["n_samples"]) == ("kind", "talk", 2)
    assert [len(row) for row in value["projections"]] == [4, 2]
    assert [len(row) for row in value["conversations"]] == [12, 6]
    assert value["projections"][1] == pytest.approx([late(1, 1), late(2, 1)], rel=1e-12)
    again = import_seed([path], Store(tmp_path / "elsewhere"))
    assert [turn.text for turn in again.record(Rollout(Cell("talk", "kind", 0.7), 1)).turns] == ["reply 1.1", "reply 1.2"]


def test_an_unfinished_run_is_not_exported_to_the_seeds_format(own: Run, tmp_path: Path) -> None:
    own.update(replace(own.manifest, cells=(CellPlan(own.manifest.cells[0].cell, 3),)))
    with pytest.raises(StoreError, match=r"talk/kind/T0\.7/0002 has 0 of 4 turns") as caught:
        export_seed(own, "made", tmp_path / "out")
    assert f"drift resume {own.paths.run_id}" in str(caught.value)
    assert len(export_csv(own, tmp_path / "t.csv").read_text().split("reply 0.")) == 5


def test_assistant_axis_files_hold_the_conversation_as_it_was_placed(own: Run, tmp_path: Path) -> None:
    made = export_assistant_axis(own, tmp_path / "out")
    assert [str(path.relative_to(tmp_path / "out")) for path in made] == ["talk/kind/T0.7/0000.json", "talk/kind/T0.7/0001.json"]
    value = json.loads(made[1].read_bytes())
    assert (value["model"], value["turns"]) == ("tiny", 2)
    assert [message["role"] for message in value["conversation"]] == ["user", "system", "assistant"] * 2
    loaded = transcripts.read(made[0])
    assert loaded.transcript.users == USERS
    assert loaded.transcript.replies == tuple(f"reply 0.{index}" for index in range(1, 5))


def test_interchange_imports_no_torch() -> None:
    script = "import sys, drift_cli.interchange; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split() == [
        "False",
        "False",
    ]


@pytest.mark.skipif("DRIFT_SEED_DATA" not in os.environ, reason="DRIFT_SEED_DATA names no folder")
def test_the_real_files_come_back_byte_for_byte(store: Store, tmp_path: Path) -> None:
    folder = Path(os.environ["DRIFT_SEED_DATA"])
    files = [folder / f"003b_{label}.json" for label in ("baseline", "simple_sysprompt", "complex_sysprompt")]
    run = import_seed(files, store, layer=21)
    assert run.manifest.spec.name == "003b"
    names = [plan.cell.condition for plan in run.manifest.cells]
    assert names == ["baseline", "simple_sysprompt", "complex_sysprompt"]
    assert [run.manifest.conditions[name].placement for name in names] == [Placement.START, Placement.EVERY_TURN, Placement.EVERY_TURN]
    assert all(state.complete for state in run.states())
    made = export_seed(run, "seed", tmp_path / "out")
    assert [json.loads(path.read_bytes()) for path in made] == [json.loads(path.read_bytes()) for path in files]
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in files]

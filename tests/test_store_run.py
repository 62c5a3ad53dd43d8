"""A run: how it may grow, what its status is, what happened to it, and that verify finds whatever is wrong with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_fixtures import (
    AXIS,
    CELL,
    DIRECTION,
    DONE,
    FIRST,
    LAYERS,
    OTHER,
    TURNS,
    WIDTH,
    data_of,
    finish,
    fork,
    make_run,
    manifest,
    open_log,
    turn,
)

from drift_cli.axis import Axis
from drift_cli.errors import DriftError, StoreError, UsageError
from drift_cli.files import atomic_write
from drift_cli.spec import Cell, Condition, Finish, Placement, Rollout, Transcript
from drift_cli.store.epoch import Epoch
from drift_cli.store.line import EndLine, TurnLine, encode, first_link, link
from drift_cli.store.log import Damaged, End, InUse
from drift_cli.store.manifest import AxisEntry, CellPlan, Imported, Manifest, ModelFacts, Setting
from drift_cli.store.merge import merge
from drift_cli.store.paths import RunPaths, Store
from drift_cli.store.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


@pytest.fixture
def store(run: Run) -> Store:
    return Store(run.paths.root.parent)


# --- names


def test_names_are_where_the_design_says(run: Run) -> None:
    paths, root = run.paths, run.paths.root
    rollout = Rollout(Cell("t", "c", 0.7), 12)
    assert root.name == run.manifest.spec.id == paths.run_id
    assert paths.rollout(rollout) == root / "rollouts/t/c/T0.7/0012.jsonl"
    assert paths.residuals(rollout) == root / "rollouts/t/c/T0.7/0012.f32"
    assert paths.axis("a") == root / "axes/a.safetensors"
    assert paths.reference("t", "a") == root / "reference/t.a.json"


@pytest.mark.parametrize("temperature", [0.0, -0.0, 1, 1.0, 0.1, 1e-7, 0.1234567, 0.12345678, 99.999999999, 100.0])
@pytest.mark.parametrize("sample", [0, 9999, 12345])
def test_a_path_leads_back_to_its_rollout(run: Run, temperature: float, sample: int) -> None:
    rollout = Rollout(Cell("t", "c.d-e_f", temperature), sample)
    for path in (run.paths.rollout(rollout), run.paths.residuals(rollout), run.paths.owner(rollout)):
        assert run.paths.rollout_of(path) == rollout


def test_no_two_temperatures_share_a_folder(run: Run) -> None:
    assert len({run.paths.cell(Cell("t", "c", t)) for t in (0.1234567, 0.12345671, 0.123457)}) == 3


@pytest.mark.parametrize(
    "name",
    ["T0.50/0000.jsonl", "T0.5/00000.jsonl", "T0.5/000.jsonl", "T0.5/0000.txt", "Tx/0000.jsonl", "T0.5/٠٠٠٠.jsonl", "Tnan/0000.jsonl"],
)
def test_other_spellings_are_no_rollouts(run: Run, name: str) -> None:
    path = run.paths.root / "rollouts/talk/plain" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert run.paths.rollout_of(path) is None
    assert list(run.paths.rollouts()) == []
    assert [finding.file for finding in run.verify()] == [path]


def test_rollouts_on_disk_are_listed_in_order(run: Run) -> None:
    wanted = [Rollout(cell, sample) for cell in (CELL, OTHER) for sample in (1, 0)]
    for rollout in wanted:
        open_log(run, rollout).close()
    assert list(run.paths.rollouts()) == sorted(wanted)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "a\0b", "-x", ".hidden", "x" * 200, "ä", "a\nb"])
def test_no_name_leaves_the_store(store: Store, run: Run, name: str) -> None:
    for attempt in (lambda: store.run(name), lambda: run.paths.axis(name), lambda: run.paths.reference("t", name)):
        with pytest.raises(UsageError):
            attempt()


def test_a_name_of_full_length_is_fine(tmp_path: Path) -> None:
    run = make_run(tmp_path, spec=replace(manifest().spec, name="x" * 80))
    assert Run.newest(Store(tmp_path / "checkpoints")).paths == run.paths


# --- opening


def test_runs_are_found_by_id_by_its_beginning_and_newest_first(store: Store, run: Run) -> None:
    other = Run.create(store, manifest(spec=replace(manifest().spec, name="demo2")))
    for age, path in ((100, run.paths.manifest), (50, other.paths.manifest)):
        os.utime(path, (time.time() - age,) * 2)
    assert store.run_ids() == [other.paths.run_id, run.paths.run_id]
    assert Run.newest(store).paths == other.paths
    assert Run.open(store, run.paths.run_id).manifest == run.manifest
    assert Run.open(store, "demo-").paths == run.paths
    with pytest.raises(UsageError, match="beginning of 2 runs"):
        Run.open(store, "demo")
    for missing in ("none", "../demo", "/", "[d]emo*"):
        with pytest.raises(UsageError, match="no run"):
            Run.open(store, missing)


def test_an_empty_store_has_no_run(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        assert Store(root).run_ids() == []
        with pytest.raises(StoreError, match="no run in") as caught:
            Run.newest(Store(root))
        assert "drift generate" in str(caught.value.mend)


def test_folders_without_a_manifest_are_no_runs(store: Store, run: Run) -> None:
    (store.root / "half").mkdir()
    (store.root / "linked").mkdir()
    (store.root / "linked" / "run.json").symlink_to(run.paths.manifest)
    (store.root / "README.md").write_text("x")
    assert store.run_ids() == [run.paths.run_id]


def test_a_folder_that_was_renamed_is_refused(store: Store, run: Run) -> None:
    run.paths.root.rename(store.root / "renamed")
    with pytest.raises(StoreError, match=f"manifest of run {run.paths.run_id}"):
        Run.open(store, "renamed")


# --- the manifest


def full() -> Manifest:
    return manifest(
        transcripts={"talk": Transcript("talk", ("a", "b \u2028 ö"), ("r", "s"))},
        measured=(AxisEntry("late", 2, "d2", "note"),),
        template_adds={"plain": "You are …"},
        settings={"samples": Setting(16, "flag"), "options": Setting({"a": [1, None, 0.5, True]}, "drift.toml")},
        imported=Imported("seed-json", {"plain": "003b_plain"}, "t.json"),
    )


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    for made in (manifest(), full(), manifest(model=None, layers=(), axes=())):
        data = made.to_json()
        assert data.endswith(b"}\n")
        assert Manifest.from_json(data, tmp_path) == made
        assert Manifest.from_json(data, tmp_path).to_json() == data


def paths_into(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in inner for path in paths_into(item, (*at, key)))]


def unsealed(made: Manifest) -> Any:
    """A manifest's JSON value without its digest, as somebody might edit it on purpose."""
    value = json.loads(made.to_json())
    assert re.fullmatch("[0-9a-f]{64}", value.pop("digest"))
    return value


def test_every_bit_of_a_manifest_is_guarded(tmp_path: Path) -> None:
    data = full().to_json()
    for place in range(len(data) * 8):
        harmed = bytearray(data)
        harmed[place // 8] ^= 1 << place % 8
        with pytest.raises(StoreError, match=r"run\.json"):
            Manifest.from_json(bytes(harmed), tmp_path / "run.json")


def test_a_manifest_that_was_edited_on_purpose_is_read_without_its_digest(tmp_path: Path) -> None:
    assert Manifest.from_json(orjson.dumps(unsealed(full())), tmp_path) == full()


def test_every_field_of_another_type_is_refused_naming_file_and_field(tmp_path: Path) -> None:
    where = tmp_path / "run.json"
    refused = 0
    for path in paths_into(unsealed(full()))[1:]:
        if path[0] == "settings" and "value" in path:
            continue  # any JSON value
        value = unsealed(full())
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = {"odd": []} if not isinstance(holder[path[-1]], dict) else "odd"
        with pytest.raises(StoreError) as caught:
            Manifest.from_json(orjson.dumps(value), where)
        named = [str(key) for key in path if isinstance(key, str)]
        assert str(where) in caught.value.what
        assert named[-1] in caught.value.what
        refused += 1
    assert refused > 80


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda v: v.pop("spec"), "'spec' is missing"),
        (lambda v: v["spec"].pop("seed"), "spec: field 'seed' is missing"),
        (lambda v: v.update(more=1), "unknown field 'more'"),
        (lambda v: v["cells"][0].update(samples=0), r"cells\[0\]\.samples"),
        (lambda v: v["cells"][1]["cell"].update(condition="none"), r"cells\[1\]: condition 'none'"),
        (lambda v: v["cells"][1]["cell"].update(condition="../up"), r"cells\[1\]\.cell: condition name"),
        (lambda v: v["cells"].append(v["cells"][0]), "cells"),
        (lambda v: v["cells"][0]["cell"].update(temperature=-1), "temperature"),
        (lambda v: v["conditions"]["kind"].update(name="else"), r"conditions\.kind: holds 'else'"),
        (lambda v: v["conditions"].update(Kind={"name": "Kind", "system": None, "placement": "start"}), "upper and lower case"),
        (lambda v: v["conditions"]["kind"].update(placement="middle"), r"conditions\.kind\.placement: 'middle' is none of"),
        (lambda v: v["axes"][0].update(layer=3), r"axes\[0\]\.layer: layer 3"),
        (lambda v: v["spec"].update(seed=2**70), "seed"),
        (lambda v: v["spec"]["sampling"].update(top_p=2), "top_p"),
        (lambda v: v.update(format=2), "format 2; this drift reads format 1"),
        (lambda v: v["transcripts"]["talk"].update(replies=["one"]), "replies"),
    ],
)
def test_a_manifest_that_does_not_hang_together_is_refused(tmp_path: Path, edit: Callable[[Any], Any], expected: str) -> None:
    value = unsealed(full())
    edit(value)
    with pytest.raises(StoreError, match=expected):
        Manifest.from_json(json.dumps(value).encode(), tmp_path / "run.json")


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format":1,"format":1}', b'{"a":"\\ud800"}', b'{"format":NaN}', b"1" * 5000],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(StoreError, match=r"run\.json"):
        Manifest.from_json(data, tmp_path / "run.json")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    data = orjson.dumps(unsealed(full())).replace(b'"seed":7', b'"seed":8,"seed":7')
    with pytest.raises(StoreError, match="twice"):
        Manifest.from_json(data, tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_a_manifest_holds_it_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(orjson.dumps(unsealed(full())) if data.draw(st.booleans()) else full().to_json())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with suppress(DriftError):
        assert isinstance(Manifest.from_json(bytes(content), tmp_path), Manifest)


def test_a_manifest_that_could_not_be_read_again_never_replaces_one_that_can(store: Store, run: Run) -> None:
    before = run.paths.manifest.read_bytes()
    for bad in (
        manifest(conditions={"plain": Condition("plain"), "kind": Condition("kind", "Be kind."), "other": Condition("other", "\ud800")}),
        manifest(cells=(CellPlan(Cell("talk", "unknown", 0.5), 1),)),
    ):
        with pytest.raises(StoreError):
            Run.create(store, bad)
    assert run.paths.manifest.read_bytes() == before


def test_the_same_command_again_writes_nothing(store: Store, run: Run) -> None:
    finish(run)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.paths.root.rglob("*") if path.is_file()}
    again = Run.create(store, manifest())
    assert again.manifest == run.manifest
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.paths.root.rglob("*") if path.is_file()} == before


# --- growing


def test_a_run_gains_cells_samples_and_axes_and_keeps_every_byte(store: Store, run: Run) -> None:
    finish(run)
    before = data_of(run)
    asked = manifest(
        conditions={"plain": Condition("plain"), "new": Condition("new", "x", Placement.EVERY_TURN)},
        transcripts={"talk": run.manifest.transcripts["talk"], "more": Transcript("more", ("a",))},
        cells=(CellPlan(CELL, 5), CellPlan(Cell("more", "new", 1.0), 1)),
        measured=(AxisEntry("late", 2, "d2"),),
        template_adds={"new": "added"},
        settings={"samples": Setting(5, "flag"), "extra": Setting(1, "default")},
    )
    grown = Run.create(store, asked).manifest
    assert set(grown.conditions) == {"plain", "kind", "new"}
    assert set(grown.transcripts) == {"talk", "more"}
    assert [(str(plan.cell), plan.samples) for plan in grown.cells] == [("talk/plain/T0.5", 5), ("talk/kind/T0.5", 2), ("more/new/T1", 1)]
    assert [entry.name for entry in grown.measured] == ["late"]
    assert grown.template_adds == {"new": "added"}
    assert grown.settings == {"samples": Setting(2, "flag --samples"), "extra": Setting(1, "default")}
    assert data_of(run) == before
    assert merge(grown, manifest()) == grown  # asking for less takes nothing away
    assert [state.done for state in Run.open(store, run.paths.run_id).states()] == [TURNS, *[0] * 7]


def test_an_axis_of_the_run_that_is_measured_again_is_there_once() -> None:
    assert merge(manifest(), manifest(measured=manifest().axes)) == manifest()


def epochs(*names: str) -> tuple[Epoch, ...]:
    return tuple(Epoch({"drift": name}, "cpu", "reference", 4) for name in names)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "a", "a"),
        ("a", "a", "a"),
        ("a", "b", "ab"),
        ("ab", "a", "ab"),
        ("ab", "ab", "ab"),
        ("ab", "abc", "abc"),
        ("ab", "", "ab"),
        ("ab", "b", "ab"),
    ],
)
def test_an_epoch_is_added_where_it_is_not_known(old: str, new: str, expected: str) -> None:
    assert merge(manifest(epochs=epochs(*old)), manifest(epochs=epochs(*new))).epochs == epochs(*expected)


def test_an_update_adds_no_epoch_that_another_process_left_behind(store: Store, run: Run) -> None:
    stale = Run.open(store, run.paths.run_id)
    Run.create(store, manifest(epochs=epochs("b")))
    stale.update(replace(stale.manifest, measured=(AxisEntry("late", 2, "d2"),)))
    assert stale.manifest.epochs == (*manifest().epochs, *epochs("b"))
    assert stale.manifest.measured == (AxisEntry("late", 2, "d2"),)
    assert Run.open(store, run.paths.run_id).manifest == stale.manifest
    assert stale.epoch() == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"conditions": {"kind": Condition("kind", "Be cruel.")}}, ["condition kind: system: stored 'Be kind.', asked 'Be cruel.'"]),
        ({"conditions": {"plain": Condition("plain", "x")}}, ["condition plain: system: stored none, asked 'x'"]),
        (
            {"conditions": {"kind": Condition("kind", "Be kind.", Placement.EVERY_TURN)}},
            ["condition kind: placement: stored", "every-turn"],
        ),
        ({"transcripts": {"talk": Transcript("talk", ("other",))}}, ["transcripts.talk: stored 'question 1"]),
        ({"layers": (2, 4)}, ["layers: stored (2, 5), asked (2, 4)"]),
        ({"axes": ()}, ["axes: stored 'made at layer 5 (e69863ddfb6b)', asked ''"]),
        ({"axes": (AxisEntry("made", 5, "d9"),)}, ["made at layer 5 (d9)"]),
        ({"axes": (AxisEntry("made", 2, "d1"),)}, ["made at layer 2 (d1)"]),
        ({"measured": (AxisEntry("late", 2, "d9"),)}, ["axes.late: stored 'late at layer 5 (d2)', asked 'late at layer 2 (d9)'"]),
        ({"model": None}, ["model: stored", "asked none"]),
        ({"model": ModelFacts("Tiny", 7, WIDTH, 100, 1000, (0,), None)}, ["model.layers: stored 6, asked 7"]),
        (
            {"model": ModelFacts("Tiny", 6, WIDTH, 200, 1000, (0, 1), None)},
            ["model.context: stored 100, asked 200", "model.end_ids: stored (0,), asked (0, 1)"],
        ),
        ({"template_adds": {"kind": "more"}}, ["condition kind: the template's own prompt: stored none, asked 'more'"]),
        ({"spec": replace(manifest().spec, revision="r2", seed=8)}, ["revision: stored 'r1', asked 'r2'", "seed: stored 7, asked 8"]),
        (
            {"spec": replace(manifest().spec, sampling=replace(manifest().spec.sampling, top_p=0.5))},
            ["sampling.top_p: stored 1.0, asked 0.5"],
        ),
        ({"imported": Imported("seed-json", {}, "x")}, ["imported: stored none"]),
    ],
)
def test_what_would_make_results_incomparable_is_refused_with_the_difference(changes: dict[str, Any], expected: list[str]) -> None:
    stored = manifest(measured=(AxisEntry("late", 5, "d2"),))
    with pytest.raises(StoreError) as caught:
        merge(stored, manifest(**changes))
    for part in expected:
        assert part in caught.value.what
    assert "--name" in str(caught.value.mend)


def test_notes_and_replies_and_settings_are_no_differences() -> None:
    model = manifest().model
    assert model is not None
    users = manifest().transcripts["talk"].users
    asked = manifest(
        model=replace(model, note="now with a note"),
        axes=(AxisEntry("made", 5, AXIS, "a note"),),
        transcripts={"talk": Transcript("talk", users, users)},
        settings={"samples": Setting(3, "drift.toml")},
    )
    assert merge(manifest(), asked) == manifest()


def test_long_texts_are_shown_around_the_first_difference() -> None:
    texts = ["a" * 500 + word + "b" * 500 for word in ("kind", "cruel")]
    old, new = (manifest(conditions={"plain": Condition("plain"), "kind": Condition("kind", text)}) for text in texts)
    with pytest.raises(StoreError) as caught:
        merge(old, new)
    assert "kindb" in caught.value.what
    assert "cruelb" in caught.value.what
    assert len(caught.value.what) < 400


def test_terminal_escapes_in_a_prompt_are_shown_inert() -> None:
    with pytest.raises(StoreError) as caught:
        merge(manifest(), manifest(conditions={"plain": Condition("plain"), "kind": Condition("kind", "\x1b[31m\u202e")}))
    assert not {"\x1b", "\u202e"} & set(caught.value.what)


def test_a_refused_change_leaves_the_manifest(store: Store, run: Run) -> None:
    before = run.paths.manifest.read_bytes()
    with pytest.raises(StoreError):
        Run.create(store, manifest(layers=(1, 5)))
    with pytest.raises(StoreError):
        run.update(replace(run.manifest, layers=(1, 5)))
    assert run.paths.manifest.read_bytes() == before
    assert run.manifest == manifest()


def test_processes_that_change_a_run_at_once_lose_nothing(store: Store, run: Run) -> None:
    def add(name: str) -> Callable[[Any, Any], None]:
        def work(say: Any, listen: Any) -> None:
            say(b"x")
            listen()
            Run.create(store, manifest(conditions={name: Condition(name)}, cells=(CellPlan(Cell("talk", name, 0.5), 1),)))

        return work

    children = [fork(add(f"c{number}")) for number in range(8)]
    for child in children:
        child.said()
    for child in children:
        child.tell()
    assert [child.wait() for child in children] == [0] * 8
    assert {f"c{number}" for number in range(8)} < set(Run.open(store, run.paths.run_id).manifest.conditions)


def test_a_file_locked_for_too_long_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from drift_cli.store import lock

    clock = iter(range(1000))
    monkeypatch.setattr(lock.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: None)
    with lock.hold(run.paths.root, run.paths.manifest_lock), pytest.raises(InUse, match=r"run\.lock is locked"):
        run.update(run.manifest)
    with lock.hold(run.paths.root, run.paths.events), pytest.raises(InUse, match=r"events\.jsonl is locked"):
        run.event("start")
    run.update(run.manifest)
    run.event("start")


# --- status


def test_states_are_derived_from_the_files(run: Run) -> None:
    finish(run)
    with run.writer(Rollout(CELL, 1)) as log:
        log.append(turn(1))
        log.end(End(Finish.CONTEXT, 2, 90))
    with run.writer(Rollout(OTHER, 0)) as log:
        log.append(turn(1))
    states = run.states()
    assert [str(state.rollout) for state in states] == [f"talk/{name}/T0.5/000{sample}" for name in ("plain", "kind") for sample in (0, 1)]
    assert [(state.done, state.total, state.complete, state.ended) for state in states] == [
        (TURNS, TURNS, True, True),
        (1, TURNS, False, True),
        (1, TURNS, False, False),
        (0, TURNS, False, False),
    ]
    assert states[0].end == DONE


def test_states_of_a_run_that_is_not_on_disk_are_those_of_its_plan(tmp_path: Path) -> None:
    run = Run(RunPaths(tmp_path / "none" / manifest().spec.id), manifest())
    assert [state.done for state in run.states()] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def test_a_rollout_outside_the_plan_has_no_writer(run: Run) -> None:
    for rollout in (Rollout(CELL, 2), Rollout(Cell("talk", "plain", 0.7), 0)):
        with pytest.raises(StoreError, match="not planned"):
            run.writer(rollout)
    assert not run.paths.rollouts_root.exists()


def test_ten_thousand_rollouts_are_listed_within_a_second(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(10)]
    run = make_run(
        tmp_path,
        conditions={name: Condition(name) for name in names},
        cells=tuple(CellPlan(Cell("talk", name, 0.5), 1000) for name in names),
    )
    content = TurnLine(replace(turn(1), text="x" * 3000, ids=tuple(range(500)), residual=None), None, 0)
    (tmp_path / "line").write_bytes(encode(content, "0" * 32) + b"\n")
    for name in names:
        cell = Cell("talk", name, 0.5)
        run.paths.cell(cell).mkdir(parents=True)
        for sample in range(1000):
            os.link(tmp_path / "line", run.paths.rollout(Rollout(cell, sample)))
    fastest = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        states = run.states()
        fastest = min(fastest, time.perf_counter() - started)
    assert len(states) == 10_000
    assert all(state.done == 1 for state in states)
    assert fastest < 1.0


def test_a_damaged_rollout_stops_the_listing_and_is_named(run: Run) -> None:
    finish(run)
    path = run.paths.rollout(FIRST)
    path.write_bytes(path.read_bytes().replace(b"complete", b"context\x20"))
    with pytest.raises(Damaged, match=str(path)):
        run.states()


# --- events


def test_events_are_whole_lines_with_time_host_and_process(run: Run) -> None:
    assert run.events() == []
    run.event("start", turns_left=5)
    run.event("done", pid="not mine", text="line\nbreak \u2028")
    first, second = run.events()
    assert (first["kind"], first["turns_left"], first["pid"]) == ("start", 5, os.getpid())
    assert first["time"].endswith("+00:00")
    assert (second["pid"], second["text"]) == (os.getpid(), "line\nbreak \u2028")
    assert run.paths.events.read_bytes().count(b"\n") == 2


def test_an_event_that_cannot_be_written_as_json_is_refused(run: Run) -> None:
    with pytest.raises(StoreError, match="event 'note'"):
        run.event("note", text="\ud800")
    assert not run.paths.events.exists()


def test_an_event_is_on_disk_when_it_is_recorded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd)))
    run.event("first")
    run.event("second")
    inode = run.paths.events.stat().st_ino
    assert synced == [inode, run.paths.root.stat().st_ino, inode]


def test_an_event_that_was_cut_off_costs_only_itself(run: Run) -> None:
    run.event("one")
    data = run.paths.events.read_bytes()
    for length in range(1, len(data)):
        run.paths.events.write_bytes(data[:length])
        run.event("two")
        kinds = [event["kind"] for event in run.events()]
        assert kinds == (["one", "two"] if length == len(data) - 1 else ["two"])
        assert [(finding.file, finding.fatal) for finding in run.verify()] == [(run.paths.events, False)] * (2 - len(kinds))


def test_events_of_many_processes_do_not_mix(run: Run) -> None:
    children = [fork(lambda say, listen: [run.event("e", text="x" * 5000) for _ in range(10)]) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    assert len(run.events()) == 40
    assert run.verify() == []


# --- verify


@pytest.fixture
def whole(run: Run) -> Run:
    """A run with something of everything."""
    finish(run)
    with run.writer(Rollout(CELL, 1)) as log:
        log.append(turn(1, Rollout(CELL, 1)))
        log.end(End(Finish.CONTEXT, 2, 90))
    with run.writer(Rollout(OTHER, 0)) as log:
        log.append(turn(1))
    late = Axis("late", (2,), DIRECTION)
    late.save(run.paths.axis("late"))
    run.update(replace(run.manifest, measured=(AxisEntry("late", 2, late.digest),)))
    run.paths.reference("talk", "made").parent.mkdir()
    atomic_write(run.paths.reference("talk", "made"), b"{}\n")
    run.event("start")
    return run


def test_a_whole_run_verifies(whole: Run) -> None:
    assert whole.verify() == []


def test_verifying_changes_nothing(whole: Run) -> None:
    path = whole.paths.rollout(FIRST)
    path.write_bytes(path.read_bytes()[:-5])
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.paths.root.rglob("*") if path.is_file()}
    assert whole.verify()
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.paths.root.rglob("*") if path.is_file()} == before


def replaced(old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new))


def turned(place: int) -> Callable[[Path], object]:
    """The lowest bit of one byte turned over."""

    def harm(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return harm


def cut(number: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:-number])


def longer(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes() + data)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


ROLLOUT, MEANS = "rollouts/talk/plain/T0.5/0000.jsonl", "rollouts/talk/plain/T0.5/0000.f32"


@pytest.mark.parametrize(
    ("file", "harm", "fatal", "expected"),
    [
        (ROLLOUT, replaced(b"reply 3", b"reply 9"), True, "line 3 at byte"),
        (ROLLOUT, cut(3), False, "unfinished line"),
        (ROLLOUT, longer(b"{}\n"), True, "line 6"),
        (ROLLOUT, lambda path: path.unlink(), True, "missing, though there are residual means"),
        (ROLLOUT, linked, True, "symbolic link"),
        (MEANS, cut(1), True, "turn 4"),
        (MEANS, replaced(turn(3).residual.tobytes(), bytes(24)), True, "turn 3"),  # type: ignore[union-attr]
        (MEANS, longer(b"\0" * 24), False, "belong to no committed turn"),
        (MEANS, lambda path: path.unlink(), True, "missing, though turns are committed"),
        (MEANS, linked, True, "symbolic link"),
        ("run.json", replaced(b'"seed": 7', b'"seed": 8'), True, "a byte changed"),
        ("run.json", cut(20), True, "a byte changed"),
        ("run.json", lambda path: path.unlink(), True, "missing"),
        ("run.json", linked, True, "symbolic link"),
        ("axes/made.safetensors", lambda path: path.unlink(), True, "axis made is missing"),
        ("axes/made.safetensors", cut(3), True, "cannot be read"),
        ("axes/late.safetensors", turned(-1), True, "not of unit norm"),
        ("axes/late.safetensors", turned(-4), True, "its digest does not match"),
        ("axes/late.safetensors", replaced(b"[2]", b"[3]"), True, "its digest does not match"),
        (
            "axes/late.safetensors",
            lambda path: Axis("late", (2,), -DIRECTION).save(path),
            True,
            "not the axis that the run was measured on",
        ),
        ("events.jsonl", longer(b"half an ev"), False, "line 2 is not an event"),
        ("notes.txt", lambda path: path.write_bytes(b"x"), False, "not part of the run"),
        (".run.json.0123.tmp", lambda path: path.write_bytes(b"x"), False, "interrupted"),
        ("rollouts/talk/plain/T0.5/0007.jsonl", lambda path: path.write_bytes(b""), False, "not in the run's plan"),
        ("rollouts/talk/plain/T0.5/0000.bak", lambda path: path.write_bytes(b""), False, "not part of the run"),
        ("axes/link", lambda path: path.symlink_to("/"), True, "symbolic link"),
    ],
)
def test_verify_finds_what_was_planted_and_goes_on(
    whole: Run, file: str, harm: Callable[[Path], object], fatal: bool, expected: str
) -> None:
    path = whole.paths.root / file
    harm(path)
    other = whole.paths.rollout(Rollout(OTHER, 0))
    other.write_bytes(b"{}\n")
    found = whole.verify()
    assert any(finding.file == path and finding.fatal == fatal and expected in finding.problem for finding in found), found
    assert any(finding.file == other and finding.fatal for finding in found)
    assert {finding.file for finding in found if finding.fatal} <= {path, other, path.with_name("elsewhere")}


def test_verify_finds_a_projection_that_does_not_follow_from_its_residuals(run: Run) -> None:
    with run.writer(FIRST) as log:
        log.append(replace(turn(1), projections={"made": turn(1).projections["made"] + 0.01}))
        log.append(replace(turn(2), residual=turn(1).residual, projections={}))
    problems = [(finding.file, finding.problem) for finding in run.verify() if finding.fatal]
    assert [file for file, _ in problems] == [run.paths.rollout(FIRST)] * 2
    assert "turn 1: projection on axis made" in problems[0][1]
    assert "turn 2 has no projection on axis made" in problems[1][1]


def test_verify_finds_rollouts_that_contradict_the_plan(run: Run) -> None:
    def write(sample: int, contents: list[TurnLine | EndLine]) -> None:
        path = run.paths.rollout(Rollout(CELL, sample))
        path.parent.mkdir(parents=True, exist_ok=True)
        prev, lines = first_link(run.paths.run_id, Rollout(CELL, sample)), b""
        for content in contents:
            line = encode(content, prev)
            prev, lines = link(line), lines + line + b"\n"
        path.write_bytes(lines)

    bare = [TurnLine(replace(turn(2), index=index), None, 0) for index in range(1, TURNS + 2)]
    write(0, [*bare])
    write(1, [replace(bare[0], epoch=3), EndLine(End(Finish.COMPLETE, 1, None), 0)])
    problems = [(finding.file.name, finding.problem) for finding in run.verify() if finding.fatal]
    assert problems == [
        ("0000.jsonl", "has 5 turns, but its transcript has 4"),
        ("0001.jsonl", "ends as complete after 1 of 4 turns"),
        ("0001.jsonl", "turn 1 was made in epoch 3, but the manifest has 1"),
    ]


def test_verify_finds_a_rollout_of_another_cell(whole: Run) -> None:
    shutil.copy(whole.paths.rollout(FIRST), whole.paths.rollout(Rollout(OTHER, 1)))
    shutil.copy(whole.paths.residuals(FIRST), whole.paths.residuals(Rollout(OTHER, 1)))
    (finding,) = whole.verify()
    assert finding.fatal
    assert "belongs to another run, cell or sample" in finding.problem


def test_an_imported_run_needs_neither_residuals_nor_axes(tmp_path: Path) -> None:
    run = Run.create(Store(tmp_path / "checkpoints"), manifest(layers=(), model=None, imported=Imported("seed-json", {}, "x")))
    with run.writer(FIRST) as log:
        log.append(replace(turn(2), index=1, ids=None, prompt_length=None, prompt_hash=None, projections={"made": 0.5}))
    assert run.verify() == []
    assert run.record(FIRST, residuals=True).turns[0].projections == {"made": 0.5}


def test_a_run_whose_width_is_not_known_still_has_checked_residuals(tmp_path: Path) -> None:
    run = make_run(tmp_path, model=None)
    finish(run)
    assert run.record(FIRST, residuals=True).turns[0].residual is not None
    assert run.verify() == []
    assert len(LAYERS) == 2

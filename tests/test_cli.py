"""The command line: an experiment from end to end, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from cli import drift

from drift_cli.spec import Cell, Rollout
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

SHORT = ("--samples", "2", "--max-new-tokens", "6", "--transcript", "short.json", "--batch", "4")


@pytest.fixture(autouse=True)
def short_transcript(own_folder: None) -> None:
    Path("short.json").write_text(json.dumps({"name": "short", "users": ["hello there", "who are you", "and the light"]}))


def _bytes(root: str = "checkpoints") -> dict[str, bytes]:
    return {
        str(p): p.read_bytes()
        for p in sorted(Path(root).rglob("*"))
        if p.suffix in {".jsonl", ".f32"} and p.name not in {"events.jsonl", "looks.jsonl"}
    }


def _run() -> Run:
    return Run.newest(Store(Path("checkpoints")))


def test_help_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; sys.argv = ['drift', '--help']; import drift_cli.__main__ as m\n"
        "try: m.main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch','numpy','transformers','matplotlib','scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_every_command_has_help_that_says_what_it_does() -> None:
    for command in (
        "generate",
        "resume",
        "measure",
        "stats",
        "plot",
        "report",
        "runs",
        "axis",
        "import",
        "export",
        "init",
        "doctor",
        "demo",
    ):
        assert len(drift(command, "--help").out.splitlines()) > 5


def test_an_experiment_from_end_to_end() -> None:
    made = drift("generate", *SHORT, "--json")
    assert made.json["turns"] == 4 * 2 * 3
    assert made.err.splitlines()[0] == "model: demo (built-in, as no --model, DRIFT_MODEL or drift.toml names another)"
    stats = drift("stats", "--json").json
    assert {c["condition"] for c in stats["summary"]["cells"]} == {"baseline", "simple", "complex", "placebo"}
    assert len(stats["comparisons"]) == 6
    table = drift("stats", "--full").out
    assert "simple − baseline" in table
    assert "NaN" not in table.replace("nan", "NaN")
    files = drift("plot", "--json").json["files"]
    assert [Path(f).suffix for f in files] == [".png", ".svg"]
    assert all(Path(f).stat().st_size > 5000 for f in files)
    assert drift("runs", "verify", "--json").json["ok"] is True
    listed = drift("runs", "ls", "--json").json
    assert listed[0]["status"] == "complete"


def test_the_same_line_again_does_nothing_and_a_longer_one_adds() -> None:
    drift("generate", *SHORT)
    before = _bytes()
    assert "nothing to do" in drift("generate", *SHORT).err
    assert _bytes() == before
    drift("generate", *SHORT, "--samples", "3")
    drift("generate", *SHORT, "--condition", "odd", "--system", "be odd", "--placement", "user-suffix")
    drift("generate", *SHORT, "--temperature", "0")
    after = _bytes()
    assert {name: after[name] for name in before} == before
    run = _run()
    assert len(run.manifest.conditions) == 5
    assert {plan.cell.temperature for plan in run.manifest.cells} == {0.0, 1.0}
    assert all(state.complete for state in run.states())


def test_projections_are_the_dot_products_of_the_stored_residuals() -> None:
    drift("generate", *SHORT, "--condition", "baseline")
    run = _run()
    from drift_cli.models.axes import demo_axis

    record = run.record(Rollout(Cell("short", "baseline", 1.0), 1), residuals=True)
    layer = run.manifest.axes[0].layer
    row = run.manifest.layers.index(layer)
    assert len(record.turns) == 3
    for turn in record.turns:
        assert turn.residual is not None
        assert turn.projections["demo"] == pytest.approx(float(turn.residual[row] @ demo_axis().at(layer)), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("--layers", "1,3"), "layers"),
        (("--system", "another prompt"), "system"),
    ],
)
def test_what_would_change_a_run_is_refused_with_the_difference(change: tuple[str, ...], field: str) -> None:
    drift("generate", *SHORT, "--condition", "mine", "--system", "one prompt")
    before = _bytes()
    given = [*SHORT, "--condition", "mine", "--system", "one prompt", *change]
    refused = drift("generate", *given, code=1)
    assert field in refused.err
    assert "--name" in refused.err
    assert _bytes() == before


def test_another_transcript_of_the_same_name_is_refused() -> None:
    drift("generate", *SHORT, "--condition", "baseline")
    Path("short.json").write_text(json.dumps({"name": "short", "users": ["hello there", "who are you", "and the dark"]}))
    assert "short" in drift("generate", *SHORT, "--condition", "baseline", code=1).err


def test_other_settings_are_another_run() -> None:
    drift("generate", *SHORT, "--condition", "baseline")
    drift("generate", *SHORT, "--condition", "baseline", "--seed", "2")
    assert len(Store(Path("checkpoints")).run_ids()) == 2


def test_resume_needs_nothing_but_the_run() -> None:
    drift("generate", *SHORT, "--condition", "baseline")
    expected = _bytes()
    for path in Path("checkpoints").rglob("0001.*"):
        path.unlink()
    Path("short.json").unlink()
    assert drift("resume", "--json").json["turns"] == 3
    assert _bytes() == expected


def test_killed_between_the_last_turn_and_the_end_line_a_rollout_only_gets_its_end_line() -> None:
    drift("generate", *SHORT, "--condition", "baseline")
    expected = _bytes()
    for path in Path("checkpoints").rglob("000?.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        assert lines[-1].startswith(b'{"end":')
        path.write_bytes(b"".join(lines[:-1]))
    drift("resume")
    assert _bytes() == expected
    assert drift("runs", "verify", "--json").json["ok"] is True


def test_a_damaged_run_is_listed_as_such_and_hides_no_other() -> None:
    drift("generate", *SHORT, "--condition", "baseline")
    drift("generate", *SHORT, "--condition", "baseline", "--seed", "9")
    path = next(Path("checkpoints").rglob("0000.jsonl"))
    data = bytearray(path.read_bytes())
    data[40] ^= 4
    data[-40] ^= 4
    path.write_bytes(data)
    listed = {row["run"]: row["status"] for row in drift("runs", "ls", "--json").json}
    assert sorted(listed.values()) == ["complete", "damaged"]
    damaged = next(run for run, status in listed.items() if status == "damaged")
    assert drift("runs", "verify", damaged, "--json", code=1).json["ok"] is False
    assert "0000.jsonl" in drift("stats", damaged, code=1).err


def test_an_empty_reply_is_flagged_and_leaves_a_gap_not_a_wrong_number(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "silent")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": list(range(200))}))
    torch.save({"assistant": torch.ones(32), "bard": -torch.arange(32.0)}, "x_layer2.pt")
    drift("axis", "import", "x_layer2.pt", "--name", "x")
    drift("generate", *SHORT, "--model", str(folder), "--condition", "baseline", "--axis", "x", "--temperature", "1.5")
    run = _run()
    empty = [turn for state in run.states() for turn in run.record(state.rollout).turns if not turn.text]
    assert empty
    assert all(not turn.projections for turn in empty)
    summary = drift("stats", "--json").json["summary"]["cells"][0]
    assert summary["flagged"]["empty"] == len(empty)
    drift("plot", "-o", "x.png")
    assert drift("runs", "verify", "--json").json["ok"] is True


def test_a_model_that_changed_under_its_name_is_not_gone_on_with(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "changing")
    drift("generate", *SHORT, "--model", str(folder), "--condition", "baseline")
    for path in Path("checkpoints").rglob("0001.*"):
        path.unlink()
    before = _bytes()
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))
    refused = drift("resume", code=1)
    assert "revision: stored" in refused.err
    assert _bytes() == before
    assert len(Store(Path("checkpoints")).run_ids()) == 1


def test_a_dry_run_writes_nothing_and_says_what_is_left() -> None:
    plan = drift("generate", *SHORT, "--dry-run", "--json").json
    assert (plan["turns_left"], plan["turns"]) == (24, 24)
    assert plan["seconds_estimated"] > 0
    assert not Path("checkpoints").exists()
    drift("generate", *SHORT)
    assert drift("generate", *SHORT, "--samples", "3", "--dry-run", "--json").json["turns_left"] == 12


def test_a_conversation_that_cannot_fit_is_foreseen_and_ends_marked(tmp_path: Path) -> None:
    folder = tiny.save("olmo3", tmp_path / "short-context", context=150)
    line = ("generate", *SHORT, "--model", str(folder), "--condition", "baseline", "--max-new-tokens", "30")
    plan = drift(*line, "--dry-run", "--json").json
    certain, possible = plan["cells"][0]["ends_before_turn"], plan["cells"][0]["may_end_before_turn"]
    assert possible is not None
    said = drift(*line).err
    assert "end before turn" in said
    ends = [state.end for state in _run().states()]
    assert all(end is not None and end.finish == "context" and end.turn >= possible for end in ends)
    assert certain is None or all(end is not None and end.turn <= certain for end in ends)
    shown = drift("runs", "show").out
    assert "context" in shown
    assert "nothing to do" in drift(*line).err
    assert drift("runs", "verify", "--json").json["ok"] is True


@pytest.mark.parametrize("name", list(tiny.ARCHITECTURES))
def test_four_architectures_from_generate_to_plot(name: str, tiny_models: dict[str, Path]) -> None:
    placement = tiny.ARCHITECTURES[name].placements[-1]
    for condition in (("baseline",), ("kind", "--system", "be kind", "--placement", placement)):
        drift("generate", *SHORT, "--model", str(tiny_models[name]), "--condition", *condition, "--layers", "all")
    assert "drift measure" in drift("stats", code=1).err
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    torch.save({"assistant": vectors[0], "bard": vectors[1]}, "x_layer2.pt")
    drift("axis", "import", "x_layer2.pt", "--name", "x", "--model", f"tiny-{name}")
    measured = drift("measure", _run().paths.run_id, "--axis", "x", "--json").json
    assert measured["layer"] == 2
    assert drift("stats", "--json").json["comparisons"][0]["difference"] is not None
    drift("plot", "-o", "x.png")
    assert Path("x.png").stat().st_size > 5000
    assert drift("runs", "verify", "--json").json["ok"] is True


def test_a_placement_the_model_refuses_names_those_that_work(tiny_models: dict[str, Path]) -> None:
    given = ("--model", str(tiny_models["gemma"]), "--condition", "a", "--system", "x", "--placement", "every-turn")
    refused = drift("generate", *SHORT, *given, code=2)
    assert "Placements that work with it: first-user, user-suffix." in refused.err
    assert not Path("checkpoints").exists()


def test_what_the_template_adds_is_shown(tiny_models: dict[str, Path]) -> None:
    made = drift("generate", *SHORT, "--model", str(tiny_models["olmo3"]), "--condition", "baseline")
    assert "the chat template adds a prompt of its own in baseline: 'system You are Olmo, a helpful model.'" in made.err
    assert "You are Olmo" in drift("runs", "show").out


def test_show_tells_where_every_setting_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFT_SEED", "5")
    drift("generate", *SHORT, "--condition", "baseline")
    settings = drift("runs", "show", "--json").json["settings"]
    assert settings["seed"] == {"value": 5, "source": "environment DRIFT_SEED"}
    assert settings["samples"] == {"value": 2, "source": "flag --samples"}
    assert settings["temperatures"]["source"] == "preset demo"
    assert settings["top_p"]["source"] == "default"


def test_the_reference_line_of_a_finished_conversation() -> None:
    Path("done.json").write_text(
        json.dumps(
            {
                "conversation": [
                    m
                    for u in ("hello there", "who are you", "and the light")
                    for m in ({"role": "user", "content": u}, {"role": "assistant", "content": "I am " + u})
                ]
            }
        )
    )
    Path("done.json").rename("short.json.json")
    drift("generate", *SHORT, "--transcript", "short.json.json", "--condition", "baseline")  # the same user turns twice are one transcript
    line = drift("measure", _run().paths.run_id, "--transcript", "short.json.json", "--json").json
    assert len(line["projections"]) == 3
    assert all(isinstance(v, float) for v in line["projections"])
    with_line = drift("plot", "-o", "with.svg")
    assert "with.svg" in with_line.out
    assert "reference" in Path("with.svg").read_text()
    alone = drift("measure", "--transcript", "short.json.json", "--axis", "demo", "--layer", "5", "--json").json
    assert alone["projections"] == pytest.approx(line["projections"], rel=1e-5)
    assert Path(alone["file"]).exists()


def test_a_reference_reply_is_measured_where_it_stands_in_its_conversation() -> None:
    from drift_cli import models
    from drift_cli.chat import chat_for, messages
    from drift_cli.measuring.reference_line import measure_replies
    from drift_cli.models.axes import demo_axis
    from drift_cli.spec import Condition, Transcript

    card = models.describe("demo")
    model = models.load(card, dtype="float32", device="cpu")
    chat = chat_for(card.tokenizer, "template")
    script = Transcript("t", ("hello there", "who are you"), ("I am here", "a friend"))
    line = measure_replies(script, chat, model, demo_axis(), 2)
    whole = chat.prompt(script.users, script.replies or (), Condition("x"))
    reply = card.tokenizer.encode("a friend", add_special_tokens=False)
    start = len(chat.prompt(script.users, (script.replies or ())[:1], Condition("x")))
    assert whole[start : start + len(reply)] == reply
    assert messages(script.users, script.replies or (), Condition("x"))[-1]["content"] == "a friend"
    with torch.inference_mode():
        states = model.network(input_ids=torch.tensor([whole]), output_hidden_states=True).hidden_states[2][0]
    direct = states[start : start + len(reply)].mean(0).numpy() @ demo_axis().at(2)
    assert line.projections[1] == pytest.approx(float(direct), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("generate", "--transcript", "absent.json"), 2, "absent.json"),
        (("generate", "--model", "./absent"), 1, "model folder ./absent does not exist"),
        (("generate", "--transcript", "short.json", "--condition", "nobody"), 2, "condition 'nobody' is not defined"),
        (("generate", "--transcript", "short.json", "--samples", "0"), 2, "at least 1"),
        (("generate", "--transcript", "short.json", "--temperature", "-1"), 2, "temperature is -1.0"),
        (("generate", "--transcript", "short.json", "--layers", "99"), 2, "layer 99 does not exist in demo"),
        (("generate", "--transcript", "short.json", "--layer", "99"), 2, "layer 99"),
        (("generate", "--transcript", "short.json", "--axis", "absent"), 1, "drift axis import"),
        (("generate", "--transcript", "short.json", "--name", "../up"), 2, "'../up' cannot be used"),
        (("generate", "--transcript", "short.json", "--system", "x"), 2, "Name one with --condition"),
        (("generate", "--transcript", "short.json", "--placement", "start"), 2, "--placement was given without --system"),
        (("generate", "--transcript", "short.json", "--dtype", "int3"), 2, "is not one of 'auto', 'bfloat16'"),
        (("generate", "--transcript", "short.json", "--top-p", "1.5"), 2, "top_p is 1.5"),
        (("generate", "--transcript", "short.json", "--batch", "0"), 2, "batch is 0"),
        (("generate", "--transcript", "short.json", "--chat-date", "tomorrow"), 2, "chat_date"),
        (
            (
                "generate",
                "--bogus",
            ),
            2,
            "No such option",
        ),
        (("resume",), 1, "no run in checkpoints"),
        (("resume", "nothing"), 2, "there is no run 'nothing' in checkpoints"),
        (("stats",), 1, "drift generate"),
        (("plot", "--format", "gif"), 2, "png, svg, pdf"),
        (("runs", "show", "../../etc"), 2, "there is no run '../../etc' in checkpoints"),
        (("axis", "show", "absent"), 1, "does not exist"),
        (("import", "short.json"), 2, "short.json: has no 'model'"),
        (("init", "--preset", "none"), 2, "demo, olmo3-003b"),
    ],
)
def test_wrong_input_gets_one_clear_error(arguments: tuple[str, ...], code: int, message: str) -> None:
    refused = drift(*arguments, code=None)
    assert message in refused.err
    assert "Traceback" not in refused.err
    assert refused.out == ""
    assert refused.code == code
    assert not list(Path("checkpoints").rglob("*.jsonl"))


def test_init_writes_a_file_to_edit_and_does_not_replace_one() -> None:
    drift("init", "--preset", "olmo3-003b")
    assert "allenai/Olmo-3-7B-Instruct" in Path("drift.toml").read_text()
    assert "--force" in drift("init", code=1).err
    drift("init", "--preset", "demo", "--force")
    assert drift("generate", *SHORT, "--condition", "complex", "--dry-run", "--json").json["turns"] == 6


def test_export_and_import_give_the_same_numbers() -> None:
    drift("generate", *SHORT)
    first = drift("stats", "--json").json["comparisons"]
    files = drift("export", "--json").json["files"]
    assert len(files) == 4
    imported = drift("import", *files, "--name", "again", "--axis-name", "demo", "--json").json
    second = drift("stats", imported["run"], "--json").json["comparisons"]
    assert [c["difference"] for c in first] == pytest.approx([c["difference"] for c in second], rel=1e-12)
    for kind in ("csv", "parquet", "assistant-axis"):
        run_id = next(r["run"] for r in drift("runs", "ls", "--json").json if r["status"] == "complete")
        assert all(Path(f).exists() for f in drift("export", run_id, "--format", kind, "--json").json["files"])


def test_a_run_on_a_cpu_goes_on_with_the_threads_that_it_was_begun_with() -> None:
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    line = [sys.executable, "-m", "drift_cli", "generate", *SHORT, "--display", "plain"]
    subprocess.run(line, check=True, capture_output=True, env={**env, "OMP_NUM_THREADS": "1"})
    more = subprocess.run([*line, "--samples", "3"], check=True, capture_output=True, text=True, env=env)
    assert [epoch.device for epoch in _run().manifest.epochs] == ["cpu (1 threads)"]
    if os.cpu_count() != 1:
        assert "on 1 thread, as this run was begun" in more.stdout + more.stderr


def test_doctor_looks_at_this_machine() -> None:
    found = drift("doctor", "--json").json
    assert found["ok"] is True
    assert {"torch", "CPU", "estimate", "disk", "locks", "fsync"} <= {check["what"] for check in found["checks"]}


def test_a_pipe_sees_whole_lines_and_no_escape_codes() -> None:
    line = [sys.executable, "-m", "drift_cli", "generate", *SHORT]
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, env=env)
    assert "\x1b" not in done.stdout
    assert "24/24 turns" in done.stdout
    assert done.stdout.endswith("\n")


def test_residual_rows_are_stored_for_every_layer_asked_for() -> None:
    drift("generate", *SHORT, "--condition", "baseline", "--layers", "all")
    run = _run()
    turn = run.record(Rollout(Cell("short", "baseline", 1.0), 0), residuals=True).turns[0]
    assert turn.residual is not None
    assert turn.residual.shape == (7, 192)
    assert np.isfinite(turn.residual).all()


def test_the_real_transcript_runs_from_generate_to_plot(seed_data: Path, tiny_models: dict[str, Path]) -> None:
    transcript = str(seed_data / "llama-70b_selfharm_unsteered.json")
    for model in ("demo", *(str(path) for path in tiny_models.values())):
        given = ("--transcript", transcript, "--samples", "1", "--max-new-tokens", "8", "--condition", "baseline", "--layers", "2")
        made = (
            drift("generate", "--model", model, *given, "--axis", "demo", "--layer", "2", "--json")
            if model == "demo"
            else drift("generate", "--model", model, *given, "--json")
        )
        assert made.json["turns"] == 18 or made.json["cells"][0]["ended_for_context"] == 1
    drift("stats", Run.open(Store(Path("checkpoints")), "demo").paths.run_id)
    drift("plot", Run.open(Store(Path("checkpoints")), "demo").paths.run_id, "-o", "real.png")
    assert Path("real.png").stat().st_size > 5000


def _commands() -> list[tuple[str, ...]]:
    from typer.main import get_command

    from drift_cli.__main__ import app

    root = get_command(app)
    found: list[tuple[str, ...]] = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        found += [(name,)] if below is None else [(name, inner) for inner in below]
    return found


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_every_commands_help_has_an_example_that_its_parser_takes(command: tuple[str, ...]) -> None:
    import shlex

    from typer.main import get_command

    from drift_cli.__main__ import app

    said = " ".join(drift(*command, "--help").out.split())
    example = said.partition("Example: ")[2]
    line = example.partition(" Options: ")[0].partition(" Arguments: ")[0]
    assert " ".join(("drift", *command)) in line
    if "$(" in line or " > " in line:  # of a shell
        return
    group = get_command(app)
    words = shlex.split(line)[1:]
    while (inner := getattr(group, "commands", {}).get(words[0] if words else "")) is not None:
        group, words = inner, words[1:]
    group.make_context("drift", words).close()  # raises where it does not parse


@pytest.mark.parametrize("engine", ["local", "slurm", "ray"])
def test_a_launcher_in_the_place_of_the_engine_is_refused_with_the_option_that_is_meant(engine: str) -> None:
    assert f"What starts the workers is --launcher {engine}." in drift("launch", "--engine", engine, code=2).err


@pytest.mark.parametrize("command", [("generate",), ("resume",), ("work",), ("launch",), ("axis", "build")], ids=" ".join)
def test_the_engine_is_one_option_with_the_same_choices_everywhere(command: tuple[str, ...]) -> None:
    said = " ".join(drift(*command, "--help").out.split())
    assert "--engine <auto|slots|reference> What makes the rollouts" in said


def test_choices_complete_in_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    def completed(line: str) -> set[str]:
        words = line.split(" ")
        env = {**os.environ, "_DRIFT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        code = "from drift_cli.__main__ import app; app(prog_name='drift')"
        return set(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.split())

    assert completed("drift generate --engine ") == {"auto", "slots", "reference"}
    assert completed("drift generate --preset ") == {"demo", "olmo3-003b", "smollm2"}
    assert completed("drift launch --launcher ") == {"local", "slurm", "ray"}
    assert completed("drift measure --segment a") == {"answer", "all"}

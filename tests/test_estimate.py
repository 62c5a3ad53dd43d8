"""What is foreseen of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drift_cli.engine.attention import layout_of
from drift_cli.engine.layout import Layout, layout_from
from drift_cli.models import LoadedModel
from drift_cli.running.estimate import Fit, Work, example, seconds
from drift_cli.running.speeds import Speeds
from drift_cli.spec import Cell, Finish, Rollout
from drift_cli.store.log import End
from drift_cli.store.manifest import ModelFacts
from drift_cli.store.run import RolloutState

CELL = Cell("t", "baseline", 0.5)
FITS = [Fit(CELL, (100, 200, 300), None, None)]
SPEEDS = Speeds(bandwidth=1e12, flops=1e14, attention=1e13, step=1e-4, slot_step=2e-4, slot_read=1e11, chunk=1e-4, draw=1e-4)


LAYOUT = Layout((0,) * 10, (10,) * 10, ((100, 100),) * 10)


def _work(rows: int = 4, *, graphs: bool = False) -> Work:
    facts = ModelFacts("x", layers=10, width=1000, context=8192, parameters=10**9, end_ids=(0,), note=None)
    return Work(facts, 50, rows, 2, LAYOUT, SPEEDS, graphs)


def _states(*done: int, ended: bool = False) -> list[RolloutState]:
    end = End(Finish.COMPLETE, 3, None) if ended else None
    return [RolloutState(Rollout(CELL, sample), turns, 3, end) for sample, turns in enumerate(done)]


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_nothing_left_takes_no_time_and_more_left_takes_more(engine: str) -> None:
    assert seconds(engine, _states(3, 3, ended=True), FITS, _work()) == 0
    times = [seconds(engine, _states(*done), FITS, _work()) for done in ((2, 2), (1, 2), (0, 0), (0, 0, 0, 0, 0))]
    assert times == sorted(times)
    assert times[0] > 0


def test_rollouts_at_very_different_turns_are_estimated() -> None:
    assert seconds("reference", [*_states(2), *_states(0)], FITS, _work()) > 0


def test_a_decode_step_costs_reading_and_starting() -> None:
    starting = 10 * SPEEDS.slot_step + SPEEDS.draw
    assert _work().step(0) == pytest.approx(2e9 / 1e12 + starting)
    assert _work().step(4e10) == pytest.approx(2e9 / 1e12 + 4e10 / 1e11 + starting)
    slow = replace(_work(), speeds=replace(SPEEDS, flops=1e12))
    assert slow.step(0) == pytest.approx(2e9 * 4 / 1e12 + starting)
    assert _work().padded_step(4e10) == pytest.approx(4e10 / 1e12 + SPEEDS.draw)


def test_an_example_tells_time_and_memory_of_a_device() -> None:
    took, size = example(_work(48, graphs=True))
    assert took > example(_work(24, graphs=True))[0] / 2
    assert size - example(_work(24, graphs=True))[1] == 24 * LAYOUT.held(18 * 304, 224) * 2


def test_a_window_bounds_what_is_read() -> None:
    narrow = replace(_work(), layout=replace(LAYOUT, windows=(64,) * 9 + (0,)))
    assert _work().kept(1000) == 1000 * 10 * 10 * 200 * 2
    assert narrow.kept(1000) == (9 * 64 + 1000) * 10 * 200 * 2


def test_known_replies_take_the_place_of_the_longest() -> None:
    whole = seconds("auto", _states(0, 0), FITS, _work(graphs=True))
    short = seconds("auto", _states(0, 0), FITS, _work(graphs=True), lambda rollout: (10, 10, 10))
    assert short < whole / 2
    assert seconds("auto", _states(0, 0), FITS, _work(graphs=True), lambda rollout: (50, 50, 50)) == whole


def test_rollouts_beyond_the_rows_take_as_many_steps_more() -> None:
    few, many = (seconds("auto", _states(*[0] * n), FITS, _work(4)) for n in (4, 16))
    assert many == pytest.approx(4 * few, rel=0.05)


def test_a_configuration_tells_what_its_network_keeps(loaded: dict[str, LoadedModel]) -> None:
    for model in loaded.values():
        assert layout_from(model.card.config) == layout_of(model)

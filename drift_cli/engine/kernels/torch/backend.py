"""Slots in plain torch, on any device: each layer's pages are one tensor, and work is done at once.

A row's attention runs over its own pages alone, so its bits do not depend on the other rows. A chunk's attention is its row's own (`chunk`). On a CPU in
float32 all rows of a step attend in one go: over their pages (`step`), or over a copy of the window where it is narrow (`ring`). Elsewhere each attends by
itself, since products in one go may round differently with the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.attention import installed, refuse_unknown
from drift_cli.engine.kernels import Batch, Uniforms, Work, repeatable
from drift_cli.engine.kernels.torch.chunk import Reading, attend_row
from drift_cli.engine.kernels.torch.pools import Pool
from drift_cli.engine.kernels.torch.ring import NARROW, Ring, RingStep
from drift_cli.engine.kernels.torch.step import Owners, StepPlan, attend_step
from drift_cli.engine.layout import Layout
from drift_cli.engine.pages import Pages
from drift_cli.models import LoadedModel

ATTENTION = "drift_slots"


class TorchKernels:
    """See the module's docstring and `kernels.Kernels`."""

    ahead = 0
    static = False
    grain = 1

    def __init__(self, model: LoadedModel, layout: Layout, rows: int) -> None:
        self.model = model
        self.rows = rows
        self.groups = {window: group for group, window in enumerate(dict.fromkeys(layout.windows))}
        """By window, 0 for none."""
        self.pages = Pages(tuple(self.groups), rows)
        self.pools: list[dict[int, Pool]] = [{} for _ in self.groups]
        """Of each group, by layer."""
        self.rings: dict[int, Ring] = {}
        """By group: what steps look at where the window is narrow."""
        self.ends = [-1] * rows
        """Tokens of a row that rings have gone along with; -1 where a chunk came since, or nothing."""
        self.owners: dict[int, Owners] = {}
        """By group, until the table changes."""
        self.places: NDArray[np.int64] | None = None
        """(rows,) positions of a step's tokens, -1 where a row stands still; None in a chunk."""
        self.chunk = (0, 0, 0)
        """Row, position of the first token and of the one behind the last."""
        self._readings: dict[tuple[int, int], Reading] = {}
        self._plans: dict[int, StepPlan] = {}
        self._ring_steps: dict[int, RingStep] = {}

    def attending(self) -> AbstractContextManager[None]:
        """See `kernels.Kernels.attending`."""
        return installed(self.model, ATTENTION, self.attend)

    @contextmanager
    def batch(self, batch: Batch) -> Iterator[None]:
        """See `kernels.Kernels.batch`."""
        for known in (self._readings, self._plans, self._ring_steps):
            known.clear()
        if batch.bounds is None:
            self.places = np.array(batch.places.tolist())
            self._follow(self.places.tolist())
        else:
            start, end = batch.bounds.tolist()
            self.places, self.chunk = None, (int(batch.rows[0]), start, end)
            self.ends[self.chunk[0]] = -1
        yield

    def _follow(self, places: list[int]) -> None:
        """Have rings hold what a step's tokens at these positions see."""
        for row, place in enumerate(places):
            if place >= 0 and self.ends[row] != place:
                for group, ring in self.rings.items():
                    ring.follow(row, self.pages, group, self.pools[group], place)
            self.ends[row] = place + 1 if place >= 0 else -1

    def flush(self) -> None:
        """See `kernels.Kernels.flush`. Where pages are free, at most a few of them are left: they would be worked on in every step."""
        if not self.pages.changed:
            return
        for group, stock in enumerate(self.pages.stocks):
            if len(stock.unused) > max(4, stock.count // 32):
                pages, into = (torch.tensor(kind, dtype=torch.long, device=self.model.device) for kind in self.pages.close_up(group))
                for pool in self.pools[group].values():
                    pool.move(pages, into)
            for pool in self.pools[group].values():
                pool.hold(stock.count)
        self.owners.clear()
        self.pages.changed.clear()

    def compiled(self, *, dynamic: bool) -> AbstractContextManager[None]:
        """Nothing is compiled."""
        return nullcontext()

    def capture(self, work: Callable[[], None], warm: int = 1) -> Work:
        """Work that is done at once, and is not run before."""

        def run() -> None:
            with repeatable():
                work()

        return Work(run)

    def fused(self, work: Uniforms) -> Uniforms:
        """`work` as it is."""
        return work

    def settle(self) -> None:
        """Nothing was run."""

    def close(self) -> None:
        """See `kernels.Kernels.close`."""
        self.pools.clear()
        self.rings.clear()

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention of (rows, heads, tokens, head width) queries over their own slots → (rows, tokens, heads, head width)."""
        refuse_unknown(attention_mask, kwargs)
        layer, group = int(module.layer_idx), self.groups[sliding_window or 0]  # type: ignore[arg-type]
        pool = self._pool(group, layer, key, value)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.places is None:
            return self._row(group, pool, query, key, value, self.chunk, scale), None
        if _in_one_go(query):
            return self._all(group, layer, query, key, value, self.places, scale), None
        out = query.new_zeros((len(query), 1, query.shape[1], value.shape[-1]))
        for row, place in enumerate(self.places.tolist()):
            if place >= 0:
                part = slice(row, row + 1)
                out[part] = self._row(group, pool, query[part], key[part], value[part], (row, place, place + 1), scale)
        return out, None

    def _pool(self, group: int, layer: int, key: Tensor, value: Tensor) -> Pool:
        """A layer's; what its group needs is made with its first."""
        pools = self.pools[group]
        if layer not in pools:
            pools[layer] = Pool(key, value)
            pools[layer].hold(self.pages.stocks[group].count)
            if 0 < self.pages.windows[group] <= NARROW and _in_one_go(key) and group not in self.rings:
                self.rings[group] = Ring(self.rows, self.pages.windows[group])
        return pools[layer]

    def _all(self, group: int, layer: int, query: Tensor, key: Tensor, value: Tensor, places: NDArray[np.int64], scale: float) -> Tensor:
        """All rows' (rows, heads, 1, width) queries → (rows, 1, heads, width)."""
        if group in self.rings:
            if group not in self._ring_steps:
                self._ring_steps[group] = self.rings[group].step(places)
            return self.rings[group].attend(layer, query, key, value, self._ring_steps[group], scale)
        if group not in self._plans:
            if group not in self.owners:
                self.owners[group] = Owners.of(self.pages, group)
            self._plans[group] = StepPlan.of(self.pages, group, places, self.owners[group])
        pool, plan = self.pools[group][layer], self._plans[group]
        pool.write(*plan.into, key[:, :, 0], value[:, :, 0])
        return attend_step(query, pool, plan, scale)

    def _row(self, group: int, pool: Pool, query: Tensor, key: Tensor, value: Tensor, chunk: tuple[int, int, int], scale: float) -> Tensor:
        """One row's (1, heads, new, width) queries → (1, new, heads, width)."""
        row, start, end = chunk
        if (group, row) not in self._readings:
            self._readings[group, row] = Reading.of(self.pages, group, row, start, end, key)
        reading = self._readings[group, row]
        pool.write(*reading.into, key[0].transpose(0, 1), value[0].transpose(0, 1))
        keys, values = (kind[None] for kind in pool.read(reading.pages))
        return attend_row(query, keys, values, reading.bands, scale).transpose(1, 2)


def _in_one_go(query: Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype == torch.float32

"""A plan becomes part of a run before the run has data."""

from __future__ import annotations

from dataclasses import replace

from drift_cli.errors import UsageError
from drift_cli.store.manifest import Manifest
from drift_cli.store.paths import Store
from drift_cli.store.plan import Plan, SealedPlan


def planned(manifest: Manifest, plan: Plan, store: Store) -> Manifest:
    """The manifest with the plan.

    Raises:
        UsageError: the run has turns already and no such plan, or the plan names a condition, axis, layer or test that the run does not have.
    """
    from drift_cli.store.run import Run

    run_id = manifest.spec.id
    if plan.test == "auto":
        plan = replace(plan, test="welch" if manifest.spec.sampling.independent_noise else "paired")
    if run_id in store.run_ids():
        run = Run.open(store, run_id)
        known = run.manifest.plan
        if known is None and any(state.done for state in run.states()):
            raise UsageError(
                f"run {run_id} has replies already: a plan is written before there is data",
                mend="Give the planned run another --name, or leave --plan out: looks at this run are always-valid.",
            )
        if known is not None and known.digest != plan.digest:
            raise UsageError(
                f"run {run_id} has another plan ({known.digest[:12]}, not {plan.digest[:12]}): a plan does not change",
                mend="Leave --plan out to go on with the plan that the run has, or give the new one another --name.",
            )
    _check(manifest, plan)
    return replace(manifest, plan=SealedPlan.of(plan))


def _check(manifest: Manifest, plan: Plan) -> None:
    run_id = manifest.spec.id
    if plan.against not in manifest.conditions:
        raise UsageError(
            f"the plan compares with {plan.against!r}, which run {run_id} does not have", mend=f"It has: {', '.join(manifest.conditions)}."
        )
    if plan.test == "paired" and manifest.spec.sampling.independent_noise:
        raise UsageError("the plan's test is paired, but each condition draws noise of its own", mend="Leave --independent-noise out.")
    entries = manifest.axes
    if plan.axis is not None and plan.axis not in {entry.axis for entry in entries}:
        raise UsageError(f"the plan names axis {plan.axis}, which run {run_id} is not projected on", mend=f"Give it: --axis {plan.axis}")
    if plan.layer is not None and plan.layer not in {entry.layer for entry in entries}:
        raise UsageError(
            f"the plan names layer {plan.layer}, which run {run_id} is not projected at", mend=f"Give it: --layer {plan.layer}"
        )
    wrong = [str(cell.samples) for cell in manifest.cells if cell.samples > plan.looks[-1]]
    if wrong:
        raise UsageError(f"{wrong[0]} rollouts are more than the plan's last look has ({plan.looks[-1]})", mend="Use fewer --samples.")

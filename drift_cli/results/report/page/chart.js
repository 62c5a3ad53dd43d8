// The trajectory: means with bands, single rollouts thin, the reference dashed. Hover or slide to read a turn; click a line to pick its rollout.

const BOX = { width: 1000, height: 430, left: 72, right: 14, top: 12, bottom: 42 };
let scaleX, scaleY;
let reading = 1; // the turn that is read out

function scales() {
  const turns = group().users.length;
  const values = [group().reference ?? [], ...shownCells().flatMap((cell) => [cell.low, cell.high, ...cell.rollouts.map((r) => r.turns.map((t) => t.p))])];
  const numbers = values.flat().filter((value) => value !== null && value !== undefined);
  let low = 0;
  let high = 1;
  if (numbers.length) {
    low = numbers.reduce((a, b) => Math.min(a, b));
    high = numbers.reduce((a, b) => Math.max(a, b));
  }
  const margin = (high - low || Math.abs(high) || 1) * 0.05;
  [low, high] = [low - margin, high + margin];
  const inner = BOX.width - BOX.left - BOX.right;
  scaleX = (turn) => BOX.left + (turns === 1 ? inner / 2 : ((turn - 0.5) / turns) * inner);
  scaleY = (value) => BOX.top + ((high - value) / (high - low)) * (BOX.height - BOX.top - BOX.bottom);
  return { turns, low, high };
}

// A path through (turn, value); missing values are gaps, and a value without neighbours is a short stroke.
function path(values, offset = 0) {
  let made = "";
  values.forEach((value, index) => {
    if (value === null || value === undefined) return;
    const before = values[index - 1] ?? null;
    const after = values[index + 1] ?? null;
    const at = `${scaleX(index + 1) + offset} ${scaleY(value)}`;
    made += before === null ? `M${at}` : `L${at}`;
    if (before === null && after === null) made += "h5";
  });
  return made;
}

function bandPath(low, high) {
  let made = "";
  for (let start = 0; start < low.length; start++) {
    if (low[start] === null) continue;
    let stop = start;
    while (stop + 1 < low.length && low[stop + 1] !== null) stop++;
    const wide = start === stop ? 4 : 0;
    const points = [];
    for (let i = start; i <= stop; i++) points.push([scaleX(i + 1) - wide, scaleY(high[i])]);
    if (wide) points.push([scaleX(start + 1) + wide, scaleY(high[start])], [scaleX(start + 1) + wide, scaleY(low[start])]);
    for (let i = stop; i >= start; i--) points.push([scaleX(i + 1) - wide, scaleY(low[i])]);
    made += `M${points.map((point) => point.join(" ")).join("L")}Z`;
    start = stop;
  }
  return made;
}

function ticks(low, high) {
  const rough = (high - low) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  const made = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) made.push([value, value.toFixed(digits).replace("-", "−")]);
  return made;
}

function drawChart() {
  const { turns, low, high } = scales();
  const bottom = BOX.height - BOX.bottom;
  const parts = [];
  for (const [value, label] of ticks(low, high)) {
    parts.push(drawn("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: scaleY(value), y2: scaleY(value) }));
    parts.push(drawn("text", { x: BOX.left - 8, y: scaleY(value) + 4, "text-anchor": "end" }, label));
  }
  parts.push(drawn("line", { class: "axis", x1: BOX.left, x2: BOX.width - BOX.right, y1: bottom, y2: bottom }));
  const every = turns <= 25 ? 1 : turns <= 60 ? 5 : 10;
  for (let turn = 1; turn <= turns; turn++) {
    if (turn === 1 || turn % every === 0) parts.push(drawn("text", { x: scaleX(turn), y: bottom + 18, "text-anchor": "middle" }, String(turn)));
  }
  parts.push(drawn("text", { x: (BOX.left + BOX.width) / 2, y: BOX.height - 4, "text-anchor": "middle" }, "turn"));
  const middle = (BOX.top + bottom) / 2;
  parts.push(drawn("text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, D.quantity));
  for (const cell of shownCells()) parts.push(...drawCell(cell));
  if (group().reference) parts.push(drawn("path", { class: "reference", d: path(group().reference) }));
  parts.push(drawn("line", { class: "guide", id: "guide", y1: BOX.top, y2: bottom }));
  const label = `Mean ${D.quantity} by turn, for ${shownCells().map((cell) => cell.condition).join(", ") || "no condition"}. The slider below reads each turn.`;
  const picture = drawn("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": label }, parts);
  picture.addEventListener("pointermove", (event) => readTurn(turnAt(picture, event)));
  picture.addEventListener("click", (event) => pickAt(picture, event));
  byId("chart").replaceChildren(picture);
  byId("chart-turn").max = String(turns);
  readTurn(Math.min(reading, turns));
}

function drawCell(cell) {
  const colour = colourOf(cell.condition);
  const parts = [];
  if (state.rollouts) {
    const opacity = Math.min(0.45, Math.max(0.12, 5 / cell.rollouts.length));
    for (const rollout of cell.rollouts) {
      parts.push(drawn("path", { class: "rollout", d: path(rollout.turns.map((turn) => turn.p)), style: { stroke: colour, opacity } }));
      rollout.turns.forEach((turn, index) => {
        if (!turn.flags.some((flag) => D.suspect.includes(flag)) || turn.p === null) return;
        const [x, y] = [scaleX(index + 1), scaleY(turn.p)];
        parts.push(drawn("path", { class: "flag", d: `M${x - 4} ${y - 4}l8 8m0 -8l-8 8`, style: { stroke: colour } }));
      });
    }
  }
  if (state.bands) parts.push(drawn("path", { class: "band", d: bandPath(cell.low, cell.high), style: { fill: colour } }));
  parts.push(drawn("path", { class: "mean", d: path(cell.mean), "data-condition": cell.condition, style: { stroke: colour } }));
  if (state.picked?.condition === cell.condition) {
    const found = rolloutOf(cell.condition, state.picked.sample);
    if (found) parts.push(drawn("path", { class: "picked", d: path(found.turns.map((turn) => turn.p)), style: { stroke: colour } }));
  }
  return parts;
}

function inPicture(picture, event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
  return [point.x, point.y];
}

function turnAt(picture, event) {
  const turns = group().users.length;
  const share = (inPicture(picture, event)[0] - BOX.left) / (BOX.width - BOX.left - BOX.right);
  return Math.min(Math.max(Math.ceil(share * turns), 1), turns);
}

function pickAt(picture, event) {
  const turn = turnAt(picture, event);
  const y = inPicture(picture, event)[1];
  let best = null;
  for (const cell of shownCells()) {
    for (const rollout of cell.rollouts) {
      const value = rollout.turns[turn - 1]?.p ?? null;
      const distance = value === null ? Infinity : Math.abs(scaleY(value) - y);
      if (distance < (best?.distance ?? 24)) best = { condition: cell.condition, sample: rollout.sample, distance };
    }
  }
  pick(best && { condition: best.condition, sample: best.sample });
}

function pick(picked) {
  state.picked = picked;
  byId("pick").value = picked ? `${picked.condition}/${picked.sample}` : "";
  drawChart();
}

function readTurn(turn) {
  reading = turn;
  byId("chart-turn").value = String(turn);
  const x = scaleX(turn);
  byId("guide").setAttribute("x1", x);
  byId("guide").setAttribute("x2", x);
  const lines = shownCells().map((cell) => {
    const at = turn - 1;
    const band = cell.low[at] === null ? "" : ` [${signed(cell.low[at])}, ${signed(cell.high[at])}]`;
    return element("li", {}, swatch(cell.condition), `${cell.condition}: ${signed(cell.mean[at])}${band}, n = ${cell.n[at]}`);
  });
  const reference = group().reference?.[turn - 1];
  if (reference !== undefined && reference !== null) lines.push(element("li", {}, `reference: ${signed(reference)}`));
  if (state.picked) {
    const found = rolloutOf(state.picked.condition, state.picked.sample)?.turns[turn - 1];
    const link = linkTo(state.group, state.picked.condition, state.picked.sample, turn);
    lines.push(
      element("li", {}, `${state.picked.condition}, rollout ${state.picked.sample}: ${found ? signed(found.p) : "no reply"} `, element("a", { href: link }, "read it")),
    );
  }
  byId("readout").replaceChildren(element("strong", {}, `Turn ${turn}`), element("ul", {}, lines));
}

function chartBar() {
  const several = D.groups.length > 1;
  const groups = several && element(
    "label", {}, "Script",
    element("select", { id: "group", onchange: (event) => show({ group: Number(event.target.value) }) }, D.groups.map((of_, index) => option(index, `${of_.transcript}, T ${of_.temperature}`, index === state.group))),
  );
  const toggles = group().cells.map((cell) =>
    element("button", { type: "button", "data-toggle": cell.condition, "aria-pressed": String(!state.hidden.has(cell.condition)), onclick: () => toggle(cell.condition) }, swatch(cell.condition), cell.condition),
  );
  const picks = group().cells.map((cell) => element("optgroup", { label: cell.condition }, cell.rollouts.map((r) => option(`${cell.condition}/${r.sample}`, `${cell.condition} ${r.sample}`))));
  const choose = element("select", { id: "pick", onchange: (event) => pick(event.target.value ? { condition: event.target.value.split("/")[0], sample: Number(event.target.value.split("/")[1]) } : null) }, option("", "none"), picks);
  const check = (name, label) => element("label", {}, element("input", { type: "checkbox", checked: state[name], onchange: (event) => { state[name] = event.target.checked; drawChart(); } }), label);
  byId("chart-bar").replaceChildren(...[groups || null, ...toggles, check("rollouts", "single rollouts"), check("bands", "bands"), element("label", {}, "Rollout", choose)].filter(Boolean));
  byId("chart-caption").textContent = D.caption;
}

function toggle(condition) {
  if (state.hidden.has(condition)) state.hidden.delete(condition);
  else state.hidden.add(condition);
  byId("chart-bar").querySelector(`[data-toggle="${CSS.escape(condition)}"]`).setAttribute("aria-pressed", String(!state.hidden.has(condition)));
  drawChart();
  drawReader();
}

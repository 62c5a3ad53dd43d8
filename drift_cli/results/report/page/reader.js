// The conversations, side by side at the same turn: one sample under every condition, or samples of one condition.

const ABREAST = 3;

// What stands in each column: a condition and a sample.
function columns() {
  if (state.mode === "conditions") return shownCells().map((cell) => ({ condition: cell.condition, sample: state.sample }));
  const samples = cellOf(state.condition).rollouts.map((rollout) => rollout.sample);
  const first = Math.max(0, Math.min(samples.indexOf(state.sample), samples.length - ABREAST));
  return samples.slice(first, first + ABREAST).map((sample) => ({ condition: state.condition, sample }));
}

function drawReader() {
  const shown = columns();
  const head = shown.map((column) => {
    const rollout = rolloutOf(column.condition, column.sample);
    const facts = rollout ? `rollout ${column.sample}, ${rollout.end}` : `no rollout ${column.sample}`;
    return element("div", { class: "head" }, swatch(column.condition), element("strong", {}, column.condition), " ", element("span", { class: "of" }, facts));
  });
  const turns = group().users.map((user, index) => drawTurn(user, index + 1, shown));
  const grid = element("div", { class: "columns", style: { "--columns": Math.max(shown.length, 1) } }, head, turns);
  byId("reader").replaceChildren(shown.length ? grid : element("p", {}, "Every condition is hidden."));
  readerBar();
  markTurn();
}

function drawTurn(user, turn, shown) {
  const said = element("div", { class: "user", id: `turn-${turn}` }, element("h3", {}, `Turn ${turn}, user`), element("div", { class: "text", dir: "auto", tabindex: "0" }, visible(user)));
  return element("div", { class: "turn", "data-turn": turn }, said, shown.map((column) => drawReply(column, turn)));
}

function drawReply(column, turn) {
  const rollout = rolloutOf(column.condition, column.sample);
  const reply = rollout?.turns[turn - 1];
  if (!reply) {
    const why = rollout?.end_turn === turn ? rollout.end : "no reply";
    return element("div", { class: "reply missing" }, why);
  }
  const link = linkTo(state.group, column.condition, column.sample, turn);
  const head = element(
    "header", {},
    element("a", { class: "value", href: link, title: `${D.quantity}; a link to this reply` }, signed(reply.p)),
    element("span", {}, D.finish[reply.finish] ?? reply.finish),
    reply.flags.length ? element("span", { class: "flags" }, reply.flags.map((flag) => D.flags[flag] ?? flag).join(", ")) : null,
  );
  const text = element("div", { class: "text", dir: "auto", tabindex: "0", role: "region", "aria-label": `Reply of ${column.condition}, rollout ${column.sample}, turn ${turn}` });
  text.append(...pieces(reply));
  const asked = reply.user === undefined ? null : element("div", { class: "user" }, element("div", { class: "text", dir: "auto" }, visible(reply.user ?? "")));
  const answer = reply.flags.includes("no_answer") ? element("p", { class: "missing" }, "no answer: the reply is reasoning only") : text;
  const made = element("article", { class: "reply", "aria-label": `${column.condition}, rollout ${column.sample}, turn ${turn}` }, head, asked, drawReasoning(reply, column, turn), answer);
  if (reply.p !== null) made.dataset.shade = String((reply.p - D.scale.middle) / D.scale.half_reply);
  paint(made);
  return made;
}

// What the model thought before it answered: folded, unless it is what is measured.
function drawReasoning(reply, column, turn) {
  if (!reply.reasoning) return null;
  const label = `Reasoning of ${column.condition}, rollout ${column.sample}, turn ${turn}`;
  const text = element("div", { class: "text", dir: "auto", tabindex: "0", role: "region", "aria-label": label });
  text.append(...pieces(reply.reasoning));
  return element("details", { class: "reasoning", open: D.segment !== "answer" }, element("summary", {}, "Reasoning"), text);
}

// A text: a span for every token that was traced, one text node where none was.
function pieces(reply) {
  if (!reply.n) return [visible(reply.text)];
  let at = 0;
  return reply.n.map((length, index) => {
    const span = element("span", { title: signed(D.scale.middle + (reply.v[index] / 100) * D.scale.half, 2) }, visible(reply.text.slice(at, at + length)));
    span.dataset.shade = String(reply.v[index] / 100);
    at += length;
    return span;
  });
}

function paint(article) {
  const spans = article.querySelectorAll("span[data-shade]");
  for (const span of spans) span.style.background = state.colours ? shade(Number(span.dataset.shade)) : "";
  const own = article.dataset.shade;
  if (own === undefined) return;
  article.style.borderLeftColor = shade(Number(own) * 1.8);
  article.style.background = state.colours && !spans.length ? shade(Number(own) * 0.6) : "";
}

function recolour() {
  for (const article of document.querySelectorAll(".reply[aria-label]")) paint(article);
}

function drawScale() {
  const steps = [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1];
  const half = D.traced ? D.scale.half : D.scale.half_reply;
  const ramp = element("span", { class: "ramp", "aria-hidden": "true" }, steps.map((step) => element("span", { style: { background: shade(step) } })));
  const what = D.traced ? "Projection of each token" : "Projection of each reply";
  byId("scale").replaceChildren(
    element("span", {}, `${what}: ${signed(D.scale.middle - half, 2)}`), ramp, element("span", {}, signed(D.scale.middle + half, 2)),
    element("label", {}, element("input", { type: "checkbox", checked: state.colours, onchange: (event) => { state.colours = event.target.checked; recolour(); } }), " colours"),
  );
}

function readerBar() {
  const cells = group().cells;
  const samples = [...new Set(cells.flatMap((cell) => cell.rollouts.map((rollout) => rollout.sample)))].sort((a, b) => a - b);
  const mode = element("button", { type: "button", id: "mode", onclick: () => changeMode() }, state.mode === "conditions" ? "Side by side: conditions" : "Side by side: samples");
  const condition = element("label", {}, "Condition", element("select", { id: "condition", onchange: (event) => show({ condition: event.target.value }) }, cells.map((cell) => option(cell.condition, cell.condition, cell.condition === state.condition))));
  const sample = element("label", {}, "Sample", element("select", { id: "sample", onchange: (event) => show({ sample: Number(event.target.value) }) }, samples.map((n) => option(n, String(n), n === state.sample))));
  const step = (id, label, action) => element("button", { type: "button", id, onclick: action }, label);
  byId("reader-bar").replaceChildren(
    ...[mode, state.mode === "samples" ? condition : null, step("previous-sample", "Previous sample", () => nextSample(-1)), sample, step("next-sample", "Next sample", () => nextSample(1)),
      step("previous-turn", "Previous turn", () => nextTurn(-1)), step("next-turn", "Next turn", () => nextTurn(1))].filter(Boolean),
  );
}

function changeMode() {
  state.mode = state.mode === "conditions" ? "samples" : "conditions";
  drawReader();
  goTo();
}

function nextSample(by) {
  const samples = [...new Set(group().cells.flatMap((cell) => cell.rollouts.map((rollout) => rollout.sample)))].sort((a, b) => a - b);
  const next = samples[samples.indexOf(state.sample) + by];
  if (next !== undefined) show({ sample: next });
}

function nextTurn(by) {
  show({ turn: Math.min(Math.max(state.turn + by, 1), group().users.length) });
}

function markTurn() {
  for (const turn of document.querySelectorAll(".turn")) turn.classList.toggle("current", Number(turn.dataset.turn) === state.turn);
}

function goTo() {
  document.getElementById(`turn-${state.turn}`)?.scrollIntoView({ block: "start" });
}

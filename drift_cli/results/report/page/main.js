// One place changes what is shown, and keeps the address in step, so that every view has a link.

function show(change, scroll = true) {
  const moved = "group" in change && change.group !== state.group;
  const columnsBefore = JSON.stringify([state.group, state.mode, state.condition, state.sample]);
  Object.assign(state, change);
  if (moved) settle();
  if (moved) {
    chartBar();
    drawChart();
  }
  if (moved || columnsBefore !== JSON.stringify([state.group, state.mode, state.condition, state.sample])) drawReader();
  markTurn();
  if (scroll) {
    history.replaceState(null, "", linkTo(state.group, state.condition, state.sample, state.turn));
    goTo();
  }
}

// Another script may lack the condition, sample or turn that was shown.
function settle() {
  const cells = group().cells;
  if (!cellOf(state.condition)) state.condition = cells[0].condition;
  if (!rolloutOf(state.condition, state.sample)) state.sample = cellOf(state.condition).rollouts[0]?.sample ?? 0;
  state.turn = Math.min(state.turn, group().users.length);
  if (state.picked && !rolloutOf(state.picked.condition, state.picked.sample)) state.picked = null;
}

function followLink() {
  const link = readLink(location.hash);
  if (!link) return;
  state.hidden.delete(link.condition);
  show(link);
  chartBar();
  drawChart();
  drawReader();
  goTo();
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (event.key === "Escape" && event.target.id === "search") {
    event.target.value = "";
    search("");
    event.target.blur();
    return;
  }
  if (typing || byId("help").open) return;
  const actions = {
    j: () => nextTurn(1),
    k: () => nextTurn(-1),
    l: () => nextSample(1),
    h: () => nextSample(-1),
    c: changeMode,
    d: () => setTheme(dark() ? "light" : "dark"),
    "/": () => byId("search").focus(),
    "?": () => byId("help").showModal(),
  };
  const place = Number(event.key);
  const cell = Number.isInteger(place) && place > 0 ? group().cells[place - 1] : undefined;
  const action = actions[event.key] ?? (cell && (() => toggle(cell.condition)));
  if (!action) return;
  event.preventDefault();
  action();
}

async function open() {
  if (typeof DecompressionStream === "undefined") {
    byId("opening").textContent = "This browser is too old to open the report: it cannot unpack deflated data (browsers since 2023 can).";
    return;
  }
  await unpack();
  state.condition = group().cells[0].condition;
  state.sample = group().cells[0].rollouts[0]?.sample ?? 0;
  followSystem();
  drawSummary();
  chartBar();
  drawChart();
  drawTables();
  drawReader();
  drawScale();
  drawProvenance();
  for (const section of document.querySelectorAll("main > section")) section.hidden = false;
  byId("opening").remove();
  byId("chart-turn").addEventListener("input", (event) => readTurn(Number(event.target.value)));
  byId("search").addEventListener("input", (event) => search(event.target.value));
  byId("search-bar").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("results").querySelector("a")?.click();
  });
  byId("keys").addEventListener("click", () => byId("help").showModal());
  document.addEventListener("keydown", press);
  addEventListener("hashchange", followLink);
  if (readLink(location.hash)) followLink();
  else if (location.hash) document.querySelector(`main > section${CSS.escape(location.hash).replace("\\#", "#")}`)?.scrollIntoView();
  document.documentElement.dataset.ready = String(Math.round(performance.now())); // milliseconds since the page was asked for
}

open();

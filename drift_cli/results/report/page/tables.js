// The summary, the statistics and where the run comes from.

function drawSummary() {
  byId("subtitle").textContent = D.subtitle;
  byId("verdict").replaceChildren(...D.verdict.map((sentence) => element("p", { class: sentence.caution ? "caution" : null }, visible(sentence.text))));
  byId("facts").replaceChildren(...D.facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, visible(value))]));
  byId("conditions").replaceChildren(
    ...D.conditions.map((condition) => {
      const prompt = condition.system === null ? " no system prompt" : ` system prompt, ${condition.placement}`;
      const parts = [element("div", {}, swatch(condition.name), element("strong", {}, condition.name), prompt)];
      if (condition.system !== null) parts.push(element("pre", { dir: "auto" }, visible(condition.system)));
      if (condition.adds) parts.push(element("div", {}, "The chat template adds of its own:"), element("pre", { dir: "auto" }, visible(condition.adds)));
      return element("div", { class: "condition" }, parts);
    }),
  );
}

function drawTables() {
  const more = D.folded.length ? [folded("Turn by turn, and without flagged replies", ...D.folded.flatMap(drawTable))] : [];
  byId("tables").replaceChildren(...D.tables.flatMap(drawTable), ...more);
}

// A head that ends in ">" is a column of numbers.
function drawTable(table) {
  const numeric = table.heads.map((head) => head.endsWith(">"));
  const heads = table.heads.map((head, place) => element("th", { scope: "col", class: numeric[place] ? "n" : null }, head.replace(/>$/, "")));
  const rows = table.rows.map((row) => element("tr", {}, row.map((cell, place) => element("td", { class: numeric[place] ? "n" : null }, visible(cell)))));
  const made = element("table", {}, element("caption", {}, visible(table.title)), element("thead", {}, element("tr", {}, heads)), element("tbody", {}, rows));
  const notes = table.notes.map((note) => element("li", {}, visible(note)));
  return [element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": visible(table.title) }, made), notes.length ? element("ul", { class: "notes" }, notes) : null].filter(Boolean);
}

const folded = (title, ...inside) => element("details", {}, element("summary", {}, title), inside);

function drawProvenance() {
  byId("manifest").replaceChildren(
    folded("Manifest (run.json)", element("pre", { tabindex: "0" }, visible(JSON.stringify(D.manifest, null, 2)))),
    folded(`Events (${D.events.length})`, ...drawTable({ title: "What happened", heads: ["time", "what", "details"], rows: D.events, notes: [] })),
  );
}

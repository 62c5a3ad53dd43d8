// Search in every user turn and every reply, as plain text, without regard to case.

const MOST = 200;
const AROUND = 60;
let index = null;

// One entry per text: the lower-case text is made once, when somebody first searches.
function buildIndex() {
  index = [];
  D.groups.forEach((of_, groupIndex) => {
    of_.users.forEach((text, at) => index.push({ groupIndex, turn: at + 1, text, low: text.toLowerCase() }));
    for (const cell of of_.cells) {
      for (const rollout of cell.rollouts) {
        rollout.turns.forEach((turn, at) => {
          const place = { groupIndex, condition: cell.condition, sample: rollout.sample, turn: at + 1 };
          if (turn.user) index.push({ ...place, text: turn.user, low: turn.user.toLowerCase() });
          index.push({ ...place, text: turn.text, low: turn.text.toLowerCase() });
          if (turn.reasoning) index.push({ ...place, reasoning: true, text: turn.reasoning.text, low: turn.reasoning.text.toLowerCase() });
        });
      }
    }
  });
}

function search(query) {
  const wanted = query.trim().toLowerCase();
  byId("results").hidden = !wanted;
  byId("results").replaceChildren();
  byId("search-count").textContent = "";
  if (!wanted) return;
  if (!index) buildIndex();
  let found = 0;
  const items = [];
  for (const entry of index) {
    const at = entry.low.indexOf(wanted);
    if (at < 0) continue;
    found++;
    if (items.length < MOST) items.push(result(entry, at, wanted.length));
  }
  byId("results").append(...items);
  byId("results").hidden = !found;
  byId("search-count").textContent = found > MOST ? `${found} texts, the first ${MOST} are listed` : `${found} text${found === 1 ? "" : "s"}`;
}

function result(entry, at, length) {
  const of_ = D.groups[entry.groupIndex];
  const reply = entry.condition !== undefined;
  const condition = reply ? entry.condition : of_.cells[0].condition;
  const sample = reply ? entry.sample : of_.cells[0].rollouts[0]?.sample ?? 0;
  const where = D.groups.length > 1 ? `${of_.transcript}, T ${of_.temperature}, ` : "";
  const label = reply ? `${where}${condition}, rollout ${sample}, turn ${entry.turn}${entry.reasoning ? ", reasoning" : ""}` : `${where}user, turn ${entry.turn}`;
  // Lower case may be longer than the text (İ): the place is then only about right, which a snippet can bear.
  const before = entry.text.slice(Math.max(0, at - AROUND), at);
  const hit = entry.text.slice(at, at + length);
  const after = entry.text.slice(at + length, at + length + AROUND);
  const snippet = element("span", { class: "snippet", dir: "auto" }, visible(before), element("mark", {}, visible(hit)), visible(after));
  return element("li", {}, element("a", { href: linkTo(entry.groupIndex, condition, sample, entry.turn) }, label), snippet);
}

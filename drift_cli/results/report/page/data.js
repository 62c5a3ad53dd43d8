// The report's data: JSON, deflated, in base64, so that no text in it can end the script element that carries it.

let D = null;

async function unpack() {
  const bytes = Uint8Array.from(atob(byId("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  D = JSON.parse(await new Response(stream).text());
  byId("data").remove();
}

// What is shown now. `turn` counts from 1; `sample` is the rollout's index in its cell.
const state = { group: 0, hidden: new Set(), picked: null, turn: 1, mode: "conditions", condition: null, sample: 0, rollouts: true, bands: true, colours: true };

const group = () => D.groups[state.group];
const cellOf = (condition) => group().cells.find((cell) => cell.condition === condition);
const rolloutOf = (condition, sample) => cellOf(condition)?.rollouts.find((rollout) => rollout.sample === sample);
const placeOf = (condition) => D.conditions.findIndex((other) => other.name === condition);
const shownCells = () => group().cells.filter((cell) => !state.hidden.has(cell.condition));

// `#simple/7/turn-12`; with several transcripts or temperatures `#lonely/simple/T0.7/7/turn-12`.
function linkTo(groupIndex, condition, sample, turn) {
  const of_ = D.groups[groupIndex];
  const short = `${condition}/${sample}/turn-${turn}`;
  return D.groups.length === 1 ? `#${short}` : `#${of_.transcript}/${condition}/T${of_.temperature}/${sample}/turn-${turn}`;
}

function readLink(hash) {
  const match = /^#(?:([^/]+)\/)?([^/]+)(?:\/T([^/]+))?\/(\d+)(?:\/turn-(\d+))?$/.exec(decodeURI(hash));
  if (!match) return null;
  const [, transcript, condition, temperature, sample, turn] = match;
  const index = D.groups.findIndex(
    (of_) =>
      (transcript === undefined || of_.transcript === transcript) &&
      (temperature === undefined || String(of_.temperature) === temperature) &&
      of_.cells.some((cell) => cell.condition === condition && cell.rollouts.some((rollout) => rollout.sample === Number(sample))),
  );
  if (index < 0) return null;
  const last = D.groups[index].users.length;
  return { group: index, condition, sample: Number(sample), turn: Math.min(Math.max(Number(turn ?? 1), 1), last) };
}

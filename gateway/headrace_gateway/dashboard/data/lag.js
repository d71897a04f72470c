// How many versions the weights of each worker are behind the learner's, over time. Pure.

const SILENT = 15; // seconds without a word: a worker that may be gone has no lag

// { from, to, rows: [{ worker, lags: Int16Array of `bins`, -1 where nothing is known }] }
export function lags(measured, bins) {
  const learner = measured.steps.map((s) => [s.time, s.step]);
  const rows = [...versions(measured)].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  if (!rows.length) return { from: 0, to: 1, rows: [] };
  const times = rows.flatMap(([, told]) => [told[0][0], told.at(-1)[0]]);
  const from = Math.min(...times), to = Math.max(...times, from + 1);
  const gap = Math.max(SILENT, (2 * (to - from)) / bins, 4 * typicalGap(rows));
  return { from, to, rows: rows.map(([worker, told]) => ({ worker, lags: row(told, learner, from, to, bins, gap) })) };
}

// worker → [[time, version]…] in order, by what it applied and by its heartbeats
function versions(measured) {
  const found = new Map();
  const note = (m) => {
    if (!found.has(m.worker)) found.set(m.worker, []);
    found.get(m.worker).push([m.time, m.version]);
  };
  for (const [, beats] of measured.workers) if (beats[0].role === "rollout") beats.forEach(note);
  measured.updates.forEach(note);
  for (const told of found.values()) told.sort((a, b) => a[0] - b[0]);
  return found;
}

function typicalGap(rows) {
  const gaps = rows.filter(([, told]) => told.length > 1).map(([, told]) => (told.at(-1)[0] - told[0][0]) / (told.length - 1));
  return gaps.length ? Math.max(...gaps) : 0;
}

function row(told, learner, from, to, bins, gap) {
  const found = new Int16Array(bins).fill(-1);
  for (let i = 0; i < bins; i++) {
    const time = from + ((i + 1) * (to - from)) / bins;
    const at = newest(told, time);
    if (at < 0 || time - told[at][0] > gap) continue;
    found[i] = Math.max(0, versionAt(learner, time) - told[at][1]);
  }
  return found;
}

// The learner's version: between two steps of a thinned history, by the clock.
function versionAt(learner, time) {
  const at = newest(learner, time);
  if (at < 0) return 0;
  const [before, version] = learner[at], next = learner[at + 1];
  if (!next) return version;
  return Math.floor(version + ((next[1] - version) * (time - before)) / (next[0] - before || 1));
}

// Index of the last entry not after `time`; -1 before the first.
function newest(entries, time) {
  let low = 0, high = entries.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (entries[middle][0] <= time) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// How many versions the weights of each worker are behind the learner's, over time. Pure.

const SILENT = 15; // seconds without a heartbeat, after which a worker's lag is unknown

// { from, to, rows: [{ worker, lags: Int16Array of `bins`, -1 if unknown }] }
export function lags(measured, bins) {
  const learner = measured.steps.map((s) => [s.time, s.step]);
  const rows = [...versions(measured)].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  if (!rows.length) return { from: 0, to: 1, rows: [] };
  const times = rows.flatMap(([, reports]) => [reports[0][0], reports.at(-1)[0]]);
  const from = Math.min(...times), to = Math.max(...times, from + 1);
  const gap = Math.max(SILENT, (2 * (to - from)) / bins, 4 * typicalGap(rows));
  return { from, to, rows: rows.map(([worker, reports]) => ({ worker, lags: row(reports, learner, from, to, bins, gap) })) };
}

// worker → [[time, version]…] in order, from its weight updates and heartbeats
function versions(measured) {
  const found = new Map();
  const note = (m) => {
    if (!found.has(m.worker)) found.set(m.worker, []);
    found.get(m.worker).push([m.time, m.version]);
  };
  for (const [, heartbeats] of measured.workers) if (heartbeats[0].role === "rollout") heartbeats.forEach(note);
  measured.updates.forEach(note);
  for (const reports of found.values()) reports.sort((a, b) => a[0] - b[0]);
  return found;
}

function typicalGap(rows) {
  const gaps = rows.filter(([, reports]) => reports.length > 1).map(([, reports]) => (reports.at(-1)[0] - reports[0][0]) / (reports.length - 1));
  return gaps.length ? Math.max(...gaps) : 0;
}

function row(reports, learner, from, to, bins, gap) {
  const found = new Int16Array(bins).fill(-1);
  for (let i = 0; i < bins; i++) {
    const time = from + ((i + 1) * (to - from)) / bins;
    const at = newest(reports, time);
    if (at < 0 || time - reports[at][0] > gap) continue;
    found[i] = Math.max(0, versionAt(learner, time) - reports[at][1]);
  }
  return found;
}

// The learner's version, interpolated between two steps of a downsampled history.
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

// How workers spent their time, their throughput, and what updates of their weights cost. Pure.

const MAX_BUCKETS = 250; // fewer than the entries of a downsampled history, so that none is empty
const MIN_BUCKET = 4; // seconds: workers report every two
const NOW_SECONDS = 30;
const ROLES = ["rollout", "learner"];

// { busy, rate }: [seconds since the start, value of rollout, value of learner]; shares of time, and tokens per second
export function work(measured, start) {
  const all = [...measured.workers.values()].flat();
  if (!all.length) return { busy: [[], [], []], rate: [[], [], []] };
  const end = Math.max(...all.map((s) => s.time));
  const width = Math.max(MIN_BUCKET, (end - start) / MAX_BUCKETS);
  const size = Math.floor((end - start) / width) + 1;
  const roles = ROLES.map((role) => buckets(measured, role, start, width, size));
  const x = Array.from({ length: size }, (_, i) => (i + 0.5) * width);
  return { busy: [x, ...roles.map((r) => r.busy)], rate: [x, ...roles.map((r) => r.rate)] };
}

function buckets(measured, role, start, width, size) {
  const busy = new Float64Array(size), time = new Float64Array(size), rate = new Float64Array(size), any = new Uint8Array(size);
  for (const samples of measured.workers.values()) {
    if (samples[0].role !== role) continue;
    const tokens = new Float64Array(size), seconds = new Float64Array(size);
    for (const [before, after] of pairs(samples)) {
      const at = Math.min(size - 1, Math.max(0, Math.floor((after.time - start) / width)));
      busy[at] += after.busy - before.busy;
      time[at] += after.time - before.time;
      tokens[at] += after.tokens - before.tokens;
      seconds[at] += after.time - before.time;
      any[at] = 1;
    }
    for (let i = 0; i < size; i++) if (seconds[i]) rate[i] += tokens[i] / seconds[i];
  }
  const where = (f) => Array.from({ length: size }, (_, i) => (any[i] ? f(i) : null));
  return { busy: where((i) => clamp(busy[i] / time[i])), rate: where((i) => rate[i]) };
}

// By worker: shares of its time, busy first, then each reason to wait; of its last seconds, or since its start (`life`).
export function shares(measured, { life }) {
  return [...measured.workers.values()].map((samples) => {
    const last = samples.at(-1), base = life ? null : recent(samples, last);
    const seconds = base ? last.time - base.time : last.uptime || 1;
    const parts = [["busy", clamp((last.busy - (base?.busy ?? 0)) / seconds)]];
    for (const [reason, total] of Object.entries(last.waiting)) parts.push([reason, clamp((total - (base?.waiting[reason] ?? 0)) / seconds)]);
    const rest = 1 - parts.reduce((sum, [, share]) => sum + share, 0);
    if (rest > 0.005) parts.push(["other", rest]);
    return { worker: last.worker, role: last.role, parts: parts.filter(([, share]) => share > 0.001) };
  });
}

// The heartbeat NOW_SECONDS before the last one, since the worker's start; else its first; null if there is none.
function recent(samples, last) {
  const mine = samples.filter((s) => s.time < last.time && s.uptime < last.uptime);
  return mine.findLast((s) => s.time <= last.time - NOW_SECONDS) ?? mine[0] ?? null;
}

// [versions, milliseconds of the longest pause, milliseconds of its staging]
export function updates(measured) {
  const byVersion = new Map();
  for (const u of measured.updates) {
    const worst = byVersion.get(u.version);
    if (!worst || u.paused_seconds > worst.paused_seconds) byVersion.set(u.version, u);
  }
  const list = [...byVersion.values()].sort((a, b) => a.version - b.version);
  return [list.map((u) => u.version), list.map((u) => 1000 * u.paused_seconds), list.map((u) => 1000 * u.staged_seconds)];
}

// Neighbouring samples between two starts of a worker: a restart resets its counters.
function* pairs(samples) {
  for (let i = 1; i < samples.length; i++) {
    if (samples[i].uptime > samples[i - 1].uptime && samples[i].time > samples[i - 1].time) yield [samples[i - 1], samples[i]];
  }
}

const clamp = (share) => Math.min(1, Math.max(0, share));

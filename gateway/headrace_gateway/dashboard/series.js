// What a job has measured, and the series that charts draw of it. Pure: no page, no clock.

const MOST_BUCKETS = 300;
const SHORTEST_BUCKET = 4; // seconds: workers report every two
const NOW_SECONDS = 30;

export class Measurements {
  constructor() {
    this.steps = new Map(); // by step: a replaced learner repeats steps, and the last record holds
    this.evaluations = new Map();
    this.updates = [];
    this.workers = new Map(); // by name: samples in order
    this.events = [];
    this.seen = new Set();
  }

  add(kind, data) {
    if (kind === "step") this.steps.set(data.step, data);
    else if (kind === "evaluation") this.evaluations.set(data.step, data);
    else if (kind === "update") this.updates.push(data);
    else if (kind === "worker") this.#worker(data);
    else if (kind === "event" && !this.seen.has(data.id)) {
      this.seen.add(data.id);
      this.events.push(data);
    }
  }

  #worker(data) {
    if (!this.workers.has(data.worker)) this.workers.set(data.worker, []);
    this.workers.get(data.worker).push(data);
  }

  get stepList() {
    return [...this.steps.values()].sort((a, b) => a.step - b.step);
  }

  get evaluationList() {
    return [...this.evaluations.values()].sort((a, b) => a.step - b.step);
  }

  // [steps, reward, smoothed reward, validation reward]
  reward() {
    const x = [...new Set([...this.steps.keys(), ...this.evaluations.keys()])].sort((a, b) => a - b);
    let smooth = null;
    const smoothed = x.map((step) => {
      const s = this.steps.get(step);
      if (!s || s.reward_mean === null) return null;
      smooth = smooth === null ? s.reward_mean : 0.8 * smooth + 0.2 * s.reward_mean;
      return smooth;
    });
    return [
      x,
      x.map((step) => this.steps.get(step)?.reward_mean ?? null),
      smoothed,
      x.map((step) => this.evaluations.get(step)?.reward_mean ?? null),
    ];
  }

  // [steps, mean age of contributing tokens, oldest contributing age] and the cells of the heat map
  ages() {
    const steps = this.stepList;
    const cells = [];
    const mean = [], oldest = [];
    steps.forEach((step, i) => {
      const ages = Object.entries(step.ages).map(([age, of]) => ({ age: +age, ...of }));
      const total = ages.reduce((sum, a) => sum + a.tokens, 0) || 1;
      const used = ages.filter((a) => a.tokens > a.masked);
      const kept = used.reduce((sum, a) => sum + a.tokens - a.masked, 0) || 1;
      mean.push(used.reduce((sum, a) => sum + a.age * (a.tokens - a.masked), 0) / kept);
      oldest.push(used.length ? Math.max(...used.map((a) => a.age)) : null);
      for (const a of ages) cells.push({ i, step: step.step, age: a.age, share: a.tokens / total, masked: a.masked / (a.tokens || 1) });
    });
    return { data: [steps.map((s) => s.step), mean, oldest], cells };
  }

  // [seconds since the start, busy share by role…] and tokens a second by role
  work(start) {
    const all = [...this.workers.values()].flat();
    if (!all.length) return { busy: [[], [], []], rate: [[], [], []] };
    const end = Math.max(...all.map((s) => s.time));
    const width = Math.max(SHORTEST_BUCKET, (end - start) / MOST_BUCKETS);
    const size = Math.floor((end - start) / width) + 1;
    const roles = ["rollout", "learner"].map((role) => this.#buckets(role, start, width, size));
    const x = Array.from({ length: size }, (_, i) => (i + 0.5) * width);
    return { busy: [x, ...roles.map((r) => r.busy)], rate: [x, ...roles.map((r) => r.rate)] };
  }

  #buckets(role, start, width, size) {
    const busy = new Float64Array(size), time = new Float64Array(size), rate = new Float64Array(size), any = new Uint8Array(size);
    for (const samples of this.workers.values()) {
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

  // By worker: shares of the last seconds, busy first, then each thing it waited for
  now() {
    return [...this.workers.values()].map((samples) => {
      const last = samples.at(-1);
      const first = samples.findLast((s) => s.time <= last.time - NOW_SECONDS || s.uptime > last.uptime) ?? samples[0];
      const seconds = last.time - first.time || last.uptime || 1;
      const base = last === first || first.uptime > last.uptime ? { busy: 0, waiting: {} } : first;
      const parts = [["busy", clamp((last.busy - base.busy) / seconds)]];
      for (const [reason, total] of Object.entries(last.waiting)) {
        parts.push([reason, clamp((total - (base.waiting[reason] ?? 0)) / seconds)]);
      }
      const rest = 1 - parts.reduce((sum, [, share]) => sum + share, 0);
      if (rest > 0.005) parts.push(["other", rest]);
      return { worker: last.worker, role: last.role, version: last.version, parts: parts.filter(([, share]) => share > 0.001) };
    });
  }

  // [versions, milliseconds of pause, milliseconds of staging]
  updates_ms() {
    const byVersion = new Map();
    for (const u of this.updates) {
      const worst = byVersion.get(u.version);
      if (!worst || u.paused_seconds > worst.paused_seconds) byVersion.set(u.version, u);
    }
    const list = [...byVersion.values()].sort((a, b) => a.version - b.version);
    return [list.map((u) => u.version), list.map((u) => 1000 * u.paused_seconds), list.map((u) => 1000 * u.staged_seconds)];
  }
}

// Neighbouring samples of one life of a worker: its counters begin anew when it is restarted.
function* pairs(samples) {
  for (let i = 1; i < samples.length; i++) {
    if (samples[i].uptime > samples[i - 1].uptime && samples[i].time > samples[i - 1].time) yield [samples[i - 1], samples[i]];
  }
}

const clamp = (share) => Math.min(1, Math.max(0, share));

export function median(numbers) {
  if (!numbers.length) return null;
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

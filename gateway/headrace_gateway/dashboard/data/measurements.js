// A job's measurements, as the stream sent them. Pure: no page, no clock.

const MAX_STATES = 2000;

export class Measurements {
  #steps = new Map(); // by step: a replaced learner repeats steps, and the last record counts
  #evaluations = new Map();
  #sorted = null;
  #eventIds = new Set();

  constructor() {
    this.updates = [];
    this.workers = new Map(); // by name: the worker's heartbeats in order
    this.events = [];
    this.depths = []; // counts of the ledger's live states, about once a second
  }

  add(kind, data) {
    if (kind === "step") this.#step(data);
    else if (kind === "evaluation") this.#evaluations.set(data.step, data);
    else if (kind === "update") this.updates.push(data);
    else if (kind === "worker") this.#worker(data);
    else if (kind === "event" && !this.#eventIds.has(data.id)) {
      this.#eventIds.add(data.id);
      this.events.push(data);
    }
  }

  #step(data) {
    this.#steps.set(data.step, data);
    this.#sorted = null;
  }

  #worker(data) {
    if (!this.workers.has(data.worker)) this.workers.set(data.worker, []);
    this.workers.get(data.worker).push(data);
  }

  addDepths(time, states) {
    this.depths.push({ time, leased: states.leased, queued: states.queued, claimed: states.claimed });
    if (this.depths.length > MAX_STATES) this.depths = this.depths.filter((_, i) => i % 2);
  }

  get steps() {
    this.#sorted ??= [...this.#steps.values()].sort((a, b) => a.step - b.step);
    return this.#sorted;
  }

  get evaluations() {
    return [...this.#evaluations.values()].sort((a, b) => a.step - b.step);
  }

  step(number) {
    return this.#steps.get(number);
  }

  evaluation(number) {
    return this.#evaluations.get(number);
  }
}

export function median(numbers) {
  if (!numbers.length) return null;
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

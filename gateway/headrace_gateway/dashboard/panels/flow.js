// The pipeline: who waits for whom, throughput, the queue between rollout and learner, and where every group ended.

import { LedgerFlow } from "../charts/flow.js";
import { byTime, byVersion, fromZero, Lines, share } from "../charts/line.js";
import { Shares } from "../charts/shares.js";
import { shares, updates, work } from "../data/work.js";
import { card } from "../dom.js";
import { count, ended, percent } from "../format.js";
import { Queues } from "./queues.js";
import { Still } from "./still.js";

const milliseconds = (v) => (v < 10 ? v.toFixed(1) : `${Math.round(v)}`);

export class Flow {
  constructor(grid, id) {
    const waits = card(grid, "Who waits for whom", "Healthy: one side is busy nearly all the time, and the other waits for it. If both wait, time is lost.");
    this.shares = new Shares(waits, "Once workers run: how each spends its time.");
    this.still = new Still(waits);
    this.busy = new Lines(card(grid, "Busy over time", "Healthy: one of the two lines stays near 100 %; that side limits the speed."), {
      series: [{ label: "rollout", color: "water" }, { label: "learner", color: "clay", dash: true }],
      x: byTime, format: percent, range: share, incrs: [0.25, 0.5], nothing: "Once workers run: their busy share.",
    });
    this.rate = new Lines(card(grid, "Throughput, tokens a second", "Healthy: both lines are level and close together: what is sampled is trained."), {
      series: [{ label: "sampled", color: "water" }, { label: "trained", color: "clay", dash: true }],
      x: byTime, format: (v) => count(Math.round(v)), range: fromZero, nothing: "Once workers run: tokens sampled and trained.",
    });
    this.pause = new Lines(card(grid, "Weight updates, milliseconds", "Healthy: generation pauses for a few milliseconds only; it continues during staging."), {
      series: [{ label: "generation paused", color: "clay", fill: true }, { label: "staged during generation", color: "slate", width: 1.5, dash: true }],
      x: byVersion, format: milliseconds, range: fromZero, nothing: "After the first step: what its weights cost to apply.",
    });
    this.queues = new Queues(card(grid, "Queue", "Healthy: some groups are ready at any time, well below the window, and none waits for long.", { wide: true }), id);
    this.ledger = new LedgerFlow(card(grid, "Ledger: where every group went", "Healthy: nearly all of the stream ends as trained, and both sides balance at any moment.", { wide: true }));
  }

  // Work over time, which other panels show too.
  set({ job, ledger }, measured, settings) {
    const done = work(measured, job.created_at);
    this.shares.set(shares(measured, { life: ended(job) }));
    this.still.set(measured.events);
    this.busy.set(done.busy);
    this.rate.set(done.rate);
    this.pause.set(updates(measured));
    this.queues.set(job, measured, settings);
    this.ledger.set(ledger);
    return done;
  }
}

// The queue between rollout and learner: number of groups over time, and the age of the oldest in each stage.

import { byTime, fromZero, Lines } from "../charts/line.js";
import { h } from "../dom.js";
import { bytes, count, duration, ended } from "../format.js";
import { Polled } from "../polled.js";
import { table } from "../table.js";

export class Queues {
  constructor(place, id) {
    this.depths = new Lines(place, {
      series: [{ label: "ready for the learner", color: "water", stepped: true }, { label: "being generated", color: "sky", dash: true, stepped: true }, { label: "in a step", color: "clay", stepped: true }, { label: "window", color: "bad", dash: true, width: 1.5 }],
      x: byTime, format: (v) => count(Math.round(v)), range: fromZero, nothing: "Recorded from now on, while this page is open.", label: "Groups by stage over time",
    });
    this.stages = h("div");
    place.append(this.stages);
    this.polled = new Polled(id, "queues", (found) => this.#found(found), (message) => this.stages.replaceChildren(h("p", { class: "later" }, message)));
  }

  set(job, measured, settings) {
    const window = (settings.max_staleness + 1) * settings.batch_size, last = measured.depths.at(-1);
    const depths = ended(job) ? measured.depths : [...measured.depths, { ...last, time: Math.max(last.time, Date.now() / 1000) }]; // the stream sends counts only when they change
    if (ended(job)) this.polled.end();
    this.depths.set([depths.map((d) => d.time - job.created_at), depths.map((d) => d.queued), depths.map((d) => d.leased), depths.map((d) => d.claimed), depths.map(() => window)]);
  }

  #found({ stages, bytes: held }) {
    const rows = stages.map((s) => [s.stage, count(s.depth), s.oldest_seconds === null ? "–" : duration(s.oldest_seconds), s.oldest_versions === null ? "–" : `${s.oldest_versions} versions`]);
    this.stages.replaceChildren(table(["stage", "groups", "oldest", "age of oldest"], rows), h("p", { class: "later" }, `${bytes(held)} of trajectories held in Redis`));
  }
}

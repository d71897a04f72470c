// Age of the trained tokens, what their age costs, and how far each worker's weights are behind.

import { AgeBars } from "../charts/bars.js";
import { AgeHeat } from "../charts/heat.js";
import { LagTimeline } from "../charts/lag.js";
import { byAge, Lines, share } from "../charts/line.js";
import { figuresByAge, lately, together } from "../data/ages.js";
import { card } from "../dom.js";
import { percent } from "../format.js";

export class Staleness {
  constructor(grid) {
    this.heat = new AgeHeat(card(grid, "Token age over the steps", "Healthy: dark at the bottom, and nothing trained above the dashed line. A band that climbs means that the learner falls behind.", { wide: true }));
    this.bars = new AgeBars(card(grid, "Age distribution", "Healthy: most tokens are young, and the tallest bars are left of the bound, so that the bound slows nothing down."));
    this.byAge = new Lines(card(grid, "What age costs", "Healthy: the effective sample size stays high up to the bound, and old tokens are clipped little more than young ones."), {
      series: [{ label: "effective sample size, last 20 steps", color: "water", points: true }, { label: "clip share", color: "clay", points: true, dash: true }, { label: "effective sample size, whole job", color: "slate", width: 1.5, dash: true }],
      x: byAge, format: percent, range: share, incrs: [0.25, 0.5], nothing: "After the first step: the weight of tokens of each age.",
    });
    this.lag = new LagTimeline(card(grid, "Weights of each worker", "Healthy: pale nearly everywhere, because new weights are applied at once. Dark bars: the worker has old weights and samples old tokens.", { wide: true }));
  }

  // `bounds`: [[first step, bound]…], the newest last
  set(job, measured, bounds) {
    const { steps } = measured, [, bound] = bounds.at(-1);
    this.heat.set(steps, bounds);
    this.bars.set(together(lately(steps)), together(steps), bound);
    this.byAge.set(figuresByAge(steps));
    this.lag.set(measured, bound, job.created_at);
  }
}

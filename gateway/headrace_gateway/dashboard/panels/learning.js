// Whether the job learns: rewards, their components, lengths, and how far the samples are off policy.

import { byStep, fromZero, Lines, share } from "../charts/line.js";
import { components, lengths, offPolicy, rewards } from "../data/learning.js";
import { card } from "../dom.js";
import { percent, two, whole } from "../format.js";
import { series } from "../theme.js";

export class Learning {
  constructor(grid) {
    this.reward = new Lines(card(grid, "Reward", "Healthy: it rises, and validation rises with it. If training rises alone, the policy exploits the reward."), {
      series: [{ label: "each step", color: "water", weak: true, width: 1 }, { label: "train", color: "water", width: 2.5 }, { label: "validation", color: "clay", points: true }],
      x: byStep, format: two, nothing: "After the first step: its mean reward.",
    });
    this.components = new Lines(card(grid, "Reward by component", "Healthy: the components that matter rise. If an easy one rises alone, the policy has found a shortcut."), {
      series: [], x: byStep, format: two, nothing: "A reward that returns several components is split here.",
    });
    this.length = new Lines(card(grid, "Completions", "Healthy: the length suits the task, and max_tokens cuts off few."), {
      series: [{ label: "tokens, mean", color: "water" }, { label: "cut off, %", color: "clay", width: 1.5, dash: true }],
      x: byStep, format: whole, range: fromZero, nothing: "After the first step: how long its completions were.",
    });
    this.offPolicy = new Lines(card(grid, "How far off policy", "Healthy: the effective sample size stays near 100 %, and the clip is rarely active."), {
      series: [{ label: "effective sample size", color: "water" }, { label: "clip share", color: "clay", dash: true }],
      x: byStep, format: percent, range: share, incrs: [0.25, 0.5], nothing: "After the first step: the weight of its tokens.",
    });
  }

  set(measured) {
    this.reward.set(rewards(measured));
    const { names, data } = components(measured);
    this.components.set(names.length ? data : [[]], names.map((label, i) => ({ label, color: series(i) })));
    this.length.set(lengths(measured));
    this.offPolicy.set(offPolicy(measured));
  }
}

// The six most important figures of a job.

import { h } from "../dom.js";
import { count, two } from "../format.js";
import { median } from "../data/measurements.js";

const LATELY = 8; // buckets of time

export class Tiles {
  constructor(place) {
    this.box = h("div", { class: "tiles" });
    place.append(this.box);
  }

  // `rate`: sampled tokens per second, over time
  set({ ledger }, measured, bound, rate) {
    const { steps, evaluations } = measured, last = steps.at(-1);
    this.box.replaceChildren(...[
      validation(evaluations),
      ["Train reward", two(last?.reward_mean), "", last && last.reward_mean !== null ? `std ${two(last.reward_std)} in step ${last.step}` : "mean of a step"],
      ["Oldest trained token", steps.length ? `${ledger.largest_age}` : "–", ` of ${ledger.largest_age_bound ?? bound}`, lowered(ledger, bound) ?? (ledger.masked_tokens ? `${count(ledger.masked_tokens)} older tokens masked` : "none had to be masked")],
      ["Effective sample size", last ? `${Math.round(100 * last.effective_sample_size)}` : "–", " %", last ? `of step ${last.step}'s tokens` : "of a step's tokens"],
      generation(ledger, rate),
      pause(measured.updates),
    ].map(([label, value, unit, note]) =>
      h("div", { class: "card tile" }, h("div", { class: "label" }, label), h("div", { class: "value" }, value, h("small", {}, unit)), h("div", { class: "note" }, note))));
  }
}

// The bound may have changed since: an age is compared with the bound of its own step.
function lowered({ largest_age_bound: then }, bound) {
  return (then ?? bound) === bound ? null : `the bound of its step; ${bound} now`;
}

function validation(evaluations) {
  const first = evaluations[0], last = evaluations.at(-1);
  const failed = last?.reward_failed ? `${last.reward_failed} of ${last.samples} rewards failed` : null;
  return ["Validation reward", two(last?.reward_mean), "", failed ?? (evaluations.length > 1 ? `from ${two(first.reward_mean)} at step ${first.step}` : "held-out prompts, greedy")];
}

function generation(ledger, rate) {
  const lately = rate.filter((v) => v !== null).slice(-LATELY);
  const mean = lately.length ? count(Math.round(lately.reduce((a, b) => a + b, 0) / lately.length)) : "–";
  return ["Generation", mean, " tokens/s", `${count(ledger.sampled_tokens)} tokens in all`];
}

function pause(updates) {
  const ms = median(updates.map((u) => 1000 * u.paused_seconds));
  return ["Pause for new weights", ms === null ? "–" : ms < 10 ? ms.toFixed(1) : `${Math.round(ms)}`, " ms", `median of ${count(updates.length)} updates`];
}

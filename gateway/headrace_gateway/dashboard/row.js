// One job in the list.

import { spark } from "./charts/spark.js";
import { h } from "./dom.js";
import { clock, day, duration, ended, inWords, named, two } from "./format.js";

export class Row {
  #shown = "";

  constructor(job, chose) {
    this.box = h("input", { type: "checkbox", "aria-label": `Compare ${named(job)}, ${job.id}`, onchange: chose });
    this.pill = h("span");
    this.cells = h("div", { class: "cells" });
    this.error = h("div", { class: "error", hidden: true });
    this.element = h("li", { class: "card job" }, h("label", { class: "choose" }, this.box),
      h("div", { class: "who" }, h("div", { class: "name" }, h("a", { href: `/jobs/${encodeURIComponent(job.id)}` }, named(job)), this.pill), h("div", { class: "meta" }, job.id)),
      this.cells, this.error);
    this.set(job);
  }

  get chosen() {
    return this.box.checked;
  }

  unchoose() {
    this.box.checked = false;
  }

  set(job) {
    this.job = job;
    this.says = `${named(job)} ${job.id}`.toLowerCase();
    const now = JSON.stringify(job);
    if (now === this.#shown) return;
    this.#shown = now;
    this.pill.className = `pill ${job.status}`;
    this.pill.textContent = inWords(job.status);
    this.cells.replaceChildren(progress(job), reward(job), age(job), times(job));
    this.error.hidden = !job.error;
    this.error.textContent = job.error?.message ?? "";
  }
}

function progress({ step, total_steps: total, status }) {
  const fill = h("i"), done = total ? Math.min(100, (100 * step) / total) : 0;
  fill.style.width = `${done}%`;
  return h("div", { class: "cell" }, h("div", { class: "cap" }, `step ${step?.toLocaleString("en") ?? "?"} of ${total.toLocaleString("en")}`),
    h("div", { class: `bar ${status}`, role: "progressbar", "aria-valuenow": Math.round(done), "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "Steps trained" }, fill));
}

function reward({ reward_mean: train, evaluation_reward_mean: validation, spark: line }) {
  const says = validation === null ? two(train) : `${two(train)} · validation ${two(validation)}`;
  return h("div", { class: "cell" }, h("div", { class: "cap" }, "reward ", h("b", {}, says)), spark(line.reward, { kind: "reward", label: `Reward over the steps, now ${says}` }));
}

function age({ step, largest_age: largest, largest_age_bound: then, max_staleness: newest, spark: line }) {
  const bound = then ?? newest; // the bound of the step that trained the token, which may have changed since
  return h("div", { class: "cell" }, h("div", { class: "cap" }, "oldest token ", h("b", {}, step ? `${largest ?? "?"} of ${bound}` : "–")),
    spark(line.age, { kind: "age", bound: bound === newest ? bound : null, label: `Age of tokens over the steps, at most ${largest}, bound ${bound}` }));
}

function times(job) {
  const now = Date.now() / 1000;
  const says = ended(job) ? `took ${duration(job.finished_at - job.created_at)}` : job.estimated_finish > now ? `${duration(job.estimated_finish - now)} to go` : "no estimate yet";
  return h("div", { class: "cell when" }, h("div", {}, says), h("div", { class: "cap" }, `${day(job.created_at)}, ${clock(job.created_at)}`));
}

// Compares two jobs or more: reward, age of tokens, speed, and the settings in which they differ. Each job's history is read
// once, downsampled; for jobs that have not ended, new steps are polled.

import { get, jobPath } from "./api.js";
import { byStep, byTime, fromZero, Lines, share } from "./charts/line.js";
import { beside, differing } from "./data/compared.js";
import { card, connection, h } from "./dom.js";
import { count, ended, inWords, named, percent, two, whole } from "./format.js";
import { history } from "./history.js";
import { table } from "./table.js";
import { color, onTheme, series } from "./theme.js";

const EVERY_MS = 5000;
const MAX_JOBS = 8;
const CHARTS = [
  ["reward", "Reward in training", "Better: higher, sooner. By time it shows the gain of a faster pipeline; by step, the gain of younger data.", { format: two }],
  ["evaluation", "Reward on validation", "Better: higher. Greedy completions of held-out prompts: the figure to rely on.", { format: two, points: true }],
  ["age", "Largest age in a step", "Better: no higher than the speed requires.", { format: whole, range: fromZero }],
  ["ess", "Effective sample size", "Better: near 100 %, which means that old tokens still count in full.", { format: percent, range: share, incrs: [0.25, 0.5] }],
  ["rate", "Tokens trained a second", "Better: higher, at the same reward by step.", { format: (v) => count(Math.round(v)), range: fromZero }],
];

export async function showCompare(page) {
  const ids = [...new Set((new URLSearchParams(location.search).get("jobs") ?? "").split(",").filter(Boolean))];
  document.title = "Compare · Headrace";
  if (ids.length < 2) return say(page, "Choose two jobs or more in the list of jobs, then compare them.");
  if (ids.length > MAX_JOBS) return say(page, `At most ${MAX_JOBS} jobs can be compared; this link names ${ids.length}.`);
  say(page, `Reading ${ids.length} jobs …`);
  try {
    new Comparison(page, await Promise.all(ids.map(history))).follow();
  } catch (error) {
    connection("lost", "");
    say(page, error.message);
  }
}

const say = (page, text) => page.replaceChildren(h("div", { class: "card empty" }, h("p", {}, text), h("a", { class: "link", href: "/" }, "All jobs")));

class Comparison {
  #byTime = false;

  constructor(page, jobs) {
    this.jobs = jobs;
    const choose = (label, byTime) => h("label", {}, h("input", { type: "radio", name: "x", checked: byTime === this.#byTime, onchange: () => this.#against(byTime) }), label);
    this.legend = h("ul", { class: "legend" });
    this.grid = h("div", { class: "grid" });
    page.replaceChildren(h("h1", { class: "plain" }, `${jobs.length} jobs compared`), this.legend,
      h("fieldset", { class: "against" }, h("legend", { class: "sr" }, "Against"), choose("by step", false), choose("by time", true)), this.grid);
    this.charts = CHARTS.map(([what, title, goodIs, options]) => [what, options, new Lines(card(this.grid, title, goodIs), { series: [], x: byStep, nothing: "Appears when one of the jobs has this figure.", ...options })]);
    this.settings = card(this.grid, "Settings that differ", "Best: a single setting, which then explains the differences above.");
    onTheme(() => this.#head());
    this.#draw();
    this.#differing();
    performance.mark("drawn");
  }

  async follow() {
    const live = this.jobs.filter(({ job }) => !ended(job));
    connection(live.length ? "live" : "", live.length ? "live" : "ended");
    if (!live.length) return;
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    try {
      if (!document.hidden) await Promise.all(live.map(goOn));
      this.#draw();
    } catch (error) {
      connection("lost", `${error.message}; trying again …`);
    }
    this.follow();
  }

  #against(byTime) {
    this.#byTime = byTime;
    this.#draw();
  }

  #draw() {
    this.#head();
    for (const [what, options, chart] of this.charts) {
      const lines = this.jobs.map(({ job }, i) => ({ label: short(job), color: series(i), points: options.points, dash: i % 2 === 1 }));
      chart.set(beside(this.jobs, what, this.#byTime), lines, this.#byTime ? byTime : byStep);
    }
  }

  #head() {
    this.legend.replaceChildren(...this.jobs.map(({ job, measured }, i) => {
      const mark = h("i");
      mark.style.background = color(series(i));
      return h("li", { class: "card" }, mark, h("div", {}, h("a", { class: "link", href: `/jobs/${encodeURIComponent(job.id)}` }, named(job)), h("div", { class: "meta" }, `${inWords(job.status)} · ${measured.steps.at(-1)?.step ?? 0} of ${job.total_steps} steps · ${job.id}`)));
    }));
  }

  #differing() {
    const rows = differing(this.jobs);
    this.settings.append(rows.length ? table(["setting", ...this.jobs.map(({ job }) => short(job))], rows) : h("p", { class: "later" }, "None: all these jobs have the same settings."));
  }
}

async function goOn(one) {
  const path = jobPath(one.job.id), from = (one.measured.steps.at(-1)?.step ?? 0) + 1;
  const [job, steps, evaluations] = await Promise.all([get(path), get(`${path}/metrics?kind=step&from_step=${from}`), get(`${path}/metrics?kind=evaluation`)]);
  one.job = job;
  for (const { kind, data } of [...steps.data, ...evaluations.data]) one.measured.add(kind, data);
}

const short = (job) => job.suffix ?? job.id.slice(-6);

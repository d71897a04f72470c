// One job, live: everything comes over one event stream, from the job's beginning and on as it happens.

import { AgeMap, byStep, byTime, Chart, Shares } from "./charts.js";
import { clock, connection, count, duration, ended, h, setText } from "./dom.js";
import { RewardFigures } from "./reward.js";
import { Measurements, median } from "./series.js";

const REDRAW_MS = 500;
const MOST_EVENTS = 400;

export function showJob(page, id) {
  const measured = new Measurements();
  const view = new JobView(page, id, measured);
  const source = new EventSource(`/v1/fine_tuning/jobs/${encodeURIComponent(id)}/stream`);
  let changed = false;
  for (const kind of ["event", "step", "evaluation", "update", "worker"]) {
    source.addEventListener(kind, (message) => {
      measured.add(kind, JSON.parse(message.data));
      changed = true;
    });
  }
  source.addEventListener("state", (message) => {
    view.state = JSON.parse(message.data);
    changed = true;
  });
  source.addEventListener("open", () => connection("live", "live"));
  source.addEventListener("done", () => {
    source.close();
    connection("", "ended");
  });
  source.addEventListener("error", async () => {
    connection("lost", "reconnecting …");
    if (source.readyState === EventSource.CLOSED) view.fail(await reason(id));
  });
  setInterval(() => {
    if (changed) view.draw();
    changed = false;
  }, REDRAW_MS);
}

async function reason(id) {
  try {
    const response = await fetch(`/v1/fine_tuning/jobs/${encodeURIComponent(id)}`);
    return response.ok ? "The stream was closed; reload the page." : (await response.json()).error.message;
  } catch (error) {
    return `No connection: ${error.message}`;
  }
}

const card = (place, title, goodIs, wide = false) => {
  const box = h("section", { class: `card${wide ? " wide" : ""}` }, h("h2", {}, title), h("p", { class: "good-is" }, goodIs));
  place.append(box);
  return box;
};

class JobView {
  constructor(page, id, measured) {
    this.page = page;
    this.id = id;
    this.measured = measured;
    this.state = null;
    this.built = false;
  }

  fail(message) {
    connection("lost", "");
    if (!this.built) this.page.replaceChildren(h("div", { class: "card empty" }, h("p", {}, message)));
  }

  draw() {
    if (!this.state) return;
    if (!this.built) this.#build();
    const { job, ledger } = this.state;
    this.#head(job, ledger);
    this.#tiles(job, ledger);
    this.#charts(job);
    this.figures.set(this.state.reward, this.measured.stepList);
    this.#ledger(ledger);
    this.#events();
  }

  #build() {
    this.built = true;
    const settings = this.state.job.method.reinforcement.hyperparameters;
    document.title = `${this.state.job.model} · Headrace`;
    this.head = h("div", { class: "head" });
    this.tiles = h("div", { class: "tiles" });
    const grid = h("div", { class: "grid" });
    this.page.replaceChildren(this.head, this.tiles, grid);
    this.#buildHead(settings);
    this.#buildCharts(grid, settings);
    this.figures = new RewardFigures(card(grid, "Can the reward be relied on", "Good: completions scored again get the same reward, few rewards are flipped, the reward does not drift, and none fails.", true));
    this.flow = card(grid, "Ledger: where every group is", "Good: every group ends as trained, and the books balance at any moment.", true);
    this.flowBox = h("div");
    this.flow.append(this.flowBox);
    const events = card(grid, "Events", "Good: nothing in yellow or red.", true);
    this.log = h("ol", { class: "log" });
    this.logged = 0;
    events.append(this.log);
  }

  #buildHead(settings) {
    const { job } = this.state;
    this.pill = h("span", { class: "pill" });
    this.cancel = h("button", { type: "button", onclick: () => this.#cancel() }, "Cancel job");
    this.meta = h("div", { class: "meta" });
    this.fill = h("i");
    this.bar = h("div", { class: "bar" }, this.fill);
    this.error = h("div", { class: "error", hidden: "" });
    this.head.append(
      h("div", { class: "title" }, h("h1", {}, job.suffix ? `${job.model} · ${job.suffix}` : job.model), this.pill, h("span", { class: "spacer" }), this.cancel),
      h("div", { class: "meta" }, `${job.id} · ${settings.algorithm} · ${settings.batch_size} groups of ${settings.group_size} a step · max staleness ${settings.max_staleness} (${settings.late}) · ${settings.engine}`),
      this.bar, this.meta, this.error);
  }

  #buildCharts(grid, settings) {
    const three = (v) => v.toFixed(Math.abs(v) < 10 ? 2 : 0);
    this.reward = new Chart(card(grid, "Reward", "Good: it rises, and validation rises with it. Training alone rising is reward hacking."), {
      series: [
        { label: "each step", color: "water", weak: true, width: 1 },
        { label: "train", color: "water", width: 2.5 },
        { label: "validation", color: "clay", points: true, width: 2 },
      ],
      x: byStep, format: three, nothing: "no step yet",
    });
    this.ages = new AgeMap(card(grid, "Token age", "Good: most tokens are young (dark at the bottom), and nothing is trained above the bound."), settings.max_staleness);
    const percent = (v) => `${Math.round(100 * v)} %`;
    const work = card(grid, "Who waits for whom", "Good: one of the two is busy nearly all the time; the other one waits for it.");
    this.busy = new Chart(work, {
      series: [{ label: "rollout busy", color: "water" }, { label: "learner busy", color: "clay" }],
      x: byTime, format: percent, range: () => [0, 1.02], incrs: [0.25, 0.5], nothing: "no worker yet",
    });
    this.shares = new Shares(work);
    this.rate = new Chart(card(grid, "Throughput, tokens a second", "Good: both lines level and close together: what is sampled is trained."), {
      series: [{ label: "sampled", color: "water" }, { label: "trained", color: "clay" }],
      x: byTime, format: (v) => count(Math.round(v)), range: (_, low, high) => [0, Math.max(1, (high ?? 0) * 1.1)], nothing: "no worker yet",
    });
    this.pause = new Chart(card(grid, "Weight updates, milliseconds", "Good: generation stops for a few milliseconds only; staging happens while it goes on."), {
      series: [{ label: "generation paused", color: "clay", fill: true }, { label: "staged beside it", color: "faint", width: 1.5, dash: [4, 3] }],
      x: { ...byStep, label: "version" }, format: (v) => `${v < 10 ? v.toFixed(1) : Math.round(v)}`, range: (_, low, high) => [0, Math.max(1, (high ?? 0) * 1.1)], nothing: "no update yet",
    });
    this.length = new Chart(card(grid, "Completions", "Good: the length follows the task, and few are cut off by max_tokens."), {
      series: [{ label: "tokens, mean", color: "water" }, { label: "cut off, %", color: "bad", width: 1.5, dash: [4, 3] }],
      x: byStep, format: (v) => (Number.isInteger(v) ? `${v}` : v.toFixed(1)), range: (_, low, high) => [0, Math.max(1, (high ?? 0) * 1.1)], nothing: "no step yet",
    });
  }

  #head(job, ledger) {
    this.pill.className = `pill ${job.status}`;
    setText(this.pill, job.status.replace("_", " "));
    this.cancel.hidden = ended(job);
    this.bar.className = `bar ${job.status}`;
    this.fill.style.width = `${(100 * ledger.version) / (job.total_steps || 1)}%`;
    const now = ended(job) ? job.finished_at : Date.now() / 1000;
    const parts = [`step ${ledger.version} of ${job.total_steps}`, `${duration(now - job.created_at)} ${ended(job) ? "in all" : "since submission"}`];
    if (job.estimated_finish > now) parts.push(`about ${duration(job.estimated_finish - now)} to go`);
    if (job.fine_tuned_model) parts.push(job.fine_tuned_model);
    setText(this.meta, parts.join(" · "));
    this.error.hidden = !job.error;
    if (job.error) setText(this.error, job.error.message);
  }

  #tiles(job, ledger) {
    const steps = this.measured.stepList, evaluations = this.measured.evaluationList;
    const last = steps.at(-1), number = (v) => (v === undefined || v === null ? "–" : v.toFixed(2));
    const bound = job.method.reinforcement.hyperparameters.max_staleness;
    const rates = this.#work?.rate[1].filter((v) => v !== null).slice(-8) ?? [];
    const pause = median(this.measured.updates.map((u) => 1000 * u.paused_seconds));
    const evaluation = evaluations.at(-1), before = evaluations[0]?.reward_mean;
    const failed = evaluation?.reward_failed ? `${evaluation.reward_failed} of ${evaluation.samples} rewards failed` : null;
    const tiles = [
      ["Validation reward", number(evaluation?.reward_mean), "", failed ?? (evaluations.length > 1 ? `from ${number(before)} at step ${evaluations[0].step}` : "held-out prompts, greedy")],
      ["Train reward", number(last?.reward_mean), "", last && last.reward_mean !== null ? `± ${number(last.reward_std)} in step ${last.step}` : "mean of a step"],
      ["Oldest trained token", steps.length ? `${ledger.largest_age}` : "–", ` of ${bound}`, ledger.masked_tokens ? `${count(ledger.masked_tokens)} older tokens masked` : "none had to be masked"],
      ["Generation", rates.length ? count(Math.round(rates.reduce((a, b) => a + b, 0) / rates.length)) : "–", " tokens/s", `${count(ledger.sampled_tokens)} in all`],
      ["Pause for new weights", pause === null ? "–" : pause < 10 ? pause.toFixed(1) : `${Math.round(pause)}`, " ms", `median of ${this.measured.updates.length} updates`],
    ];
    this.tiles.replaceChildren(...tiles.map(([label, value, unit, note]) =>
      h("div", { class: "card tile" }, h("div", { class: "label" }, label), h("div", { class: "value" }, value, h("small", {}, unit)), h("div", { class: "note" }, note))));
  }

  #work = null;

  #charts(job) {
    const measured = this.measured;
    this.#work = measured.work(job.created_at);
    this.reward.set(measured.reward());
    this.ages.set(measured.ages());
    this.busy.set(this.#work.busy);
    this.rate.set(this.#work.rate);
    this.shares.set(ended(job) ? [] : measured.now());
    this.pause.set(measured.updates_ms());
    const steps = measured.stepList;
    this.length.set([steps.map((s) => s.step), steps.map((s) => s.completion_length), steps.map((s) => 100 * s.truncated_share)]);
  }

  #ledger(ledger) {
    const s = ledger.states;
    const stage = (label, what, n, end = false) =>
      h("div", { class: `stage${end ? " end" : ""}` }, h("div", { class: "count" }, count(n)), h("div", { class: "label" }, label), h("div", { class: "what" }, what));
    const arrow = () => h("div", { class: "arrow", "aria-hidden": "true" }, "→");
    const exit = (label, n) => h("span", { class: n ? "some" : "" }, h("b", {}, count(n)), ` ${label}`);
    this.flowBox.replaceChildren(
      h("div", { class: "flow" },
        stage("admitted", "since the start", ledger.admitted), arrow(),
        stage("leased", "being generated", s.leased), arrow(),
        stage("queued", "waiting for the learner", s.queued), arrow(),
        stage("claimed", "in a step now", s.claimed), arrow(),
        stage("trained", "in the model", s.trained, true)),
      h("div", { class: "exits" },
        exit("dropped as stale", s.dropped_stale), exit("filtered", s.filtered), exit("reward failed", s.reward_failed),
        exit("generation failed", s.generation_failed), exit("cancelled", s.cancelled),
        h("span", { class: `balance${ledger.balanced ? "" : " broken"}` }, ledger.balanced ? "✓ the books balance" : "✗ the books do not balance")));
  }

  #events() {
    const all = this.measured.events;
    for (const event of all.slice(Math.max(this.logged, all.length - MOST_EVENTS))) {
      const kind = { warn: "warn", error: "error-line" }[event.level] ?? "";
      this.log.prepend(h("li", { class: kind }, h("time", {}, clock(event.created_at)), h("span", {}, event.message)));
    }
    this.logged = all.length;
    while (this.log.children.length > MOST_EVENTS) this.log.lastChild.remove();
  }

  async #cancel() {
    if (!confirm("Cancel this job? Its checkpoints stay.")) return;
    const response = await fetch(`/v1/fine_tuning/jobs/${encodeURIComponent(this.id)}/cancel`, { method: "POST" });
    if (!response.ok) alert((await response.json()).error.message);
  }
}

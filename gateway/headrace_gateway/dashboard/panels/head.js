// The top of a job's page: name, status, progress and actions.

import { jobPath, post } from "../api.js";
import { confirmed, tell } from "../dialog.js";
import { h, setText } from "../dom.js";
import { clock, duration, ended, inWords, named } from "../format.js";

const ACTIONS = [
  ["pause", "Pause", ["queued", "running"], "Pause this job? It stops after a checkpoint of its last step, and can be resumed.", "Pause it"],
  ["resume", "Resume", ["paused"], "Resume this job from where it stopped?", "Resume it"],
  ["cancel", "Cancel", ["validating_files", "queued", "running", "paused"], "Cancel this job for good? Its checkpoints stay.", "Cancel it"],
];

export class Head {
  constructor(place, job) {
    this.id = job.id;
    const settings = job.method.reinforcement.hyperparameters;
    this.pill = h("span", { class: "pill" });
    this.meta = h("div", { class: "meta" });
    this.fill = h("i");
    this.bar = h("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "Steps trained" }, this.fill);
    this.error = h("div", { class: "error", role: "alert", hidden: true });
    this.why = h("div", { class: "why", role: "alert", hidden: true });
    this.buttons = ACTIONS.map(([action, label, when, question, yes]) =>
      [when, h("button", { type: "button", id: action, class: action === "cancel" ? "danger" : "", onclick: () => this.#do(action, question, yes) }, label)]);
    place.append(h("div", { class: "head" },
      h("div", { class: "title" }, h("h1", {}, named(job)), this.pill, h("span", { class: "spacer" }),
        h("a", { class: "button", href: `/jobs/${encodeURIComponent(job.id)}/completions` }, "Completions"), ...this.buttons.map(([, button]) => button)),
      h("div", { class: "meta" }, `${job.id} · ${settings.algorithm} · ${settings.batch_size} groups of ${settings.group_size} a step · max staleness ${settings.max_staleness} (${settings.late}) · ${settings.engine}`),
      forked(job), rewardCode(job), this.bar, this.meta, this.why, this.error));
  }

  set(state) {
    const { job, ledger } = this.shown = state;
    this.pill.className = `pill ${job.status}`;
    setText(this.pill, inWords(job.status));
    for (const [when, button] of this.buttons) button.hidden = !when.includes(job.status);
    this.bar.className = `bar ${job.status}`;
    const done = Math.min(100, (100 * ledger.version) / (job.total_steps || 1));
    this.bar.setAttribute("aria-valuenow", Math.round(done));
    this.fill.style.width = `${done}%`;
    setText(this.meta, this.#progress(job, ledger));
    this.why.hidden = !job.paused_by;
    if (job.paused_by) setText(this.why, byItself(job.paused_by));
    this.error.hidden = !job.error;
    if (job.error) setText(this.error, job.error.message);
  }

  #progress(job, ledger) {
    const now = ended(job) ? job.finished_at : Date.now() / 1000;
    const parts = [`step ${ledger.version.toLocaleString("en")} of ${job.total_steps.toLocaleString("en")}`, `${duration(now - job.created_at)} ${ended(job) ? "in all" : "since submission"}`];
    if (job.estimated_finish > now) parts.push(`about ${duration(job.estimated_finish - now)} to go`);
    if (job.fine_tuned_model) parts.push(job.fine_tuned_model);
    return parts.join(" · ");
  }

  async #do(action, question, yes) {
    if (!await confirmed(question, yes)) return;
    try {
      this.set({ ...this.shown, job: await post(`${jobPath(this.id)}/${action}`) });
    } catch (error) {
      tell(error.message);
    }
  }
}

const byItself = ({ code, message, time }) => `Paused by itself at ${clock(time)} (${inWords(code)}): ${message}\nRemove the cause; Resume then continues from there.`;

function forked(job) {
  if (!job.forked_from) return null;
  const { fine_tuning_job_id: id, step_number: step } = job.forked_from;
  return h("div", { class: "meta" }, "forked from ", h("a", { class: "link", href: `/jobs/${encodeURIComponent(id)}` }, id), ` at step ${step}`);
}

function rewardCode(job) {
  const found = functionsOf(job.method.reinforcement.grader);
  if (!found.length) return null;
  return h("div", { class: "meta" }, `reward code ${found.map((of) => `${of.function} (sha256 ${of.sha256.slice(0, 12)}…)`).join(", ")}, as it was when the job was submitted`);
}

function functionsOf(grader) {
  if (grader === null || typeof grader !== "object") return [];
  const own = grader.type === "function" && grader.sha256 ? [grader] : [];
  return [...own, ...Object.values(grader).flatMap(functionsOf)];
}

// The current settings, every change with its author and version, and a form for those that may change while the job runs.

import { jobPath, patch } from "../api.js";
import { asked, tell } from "../dialog.js";
import { h } from "../dom.js";
import { clock, ended } from "../format.js";
import { Polled } from "../polled.js";
import { table } from "../table.js";

export class Settings {
  #shown = "";
  #found = null;

  constructor(place, job) {
    this.path = `${jobPath(job.id)}/settings`;
    this.first = job.method.reinforcement.hyperparameters;
    this.box = h("div", {}, all(this.first));
    place.append(this.box);
    this.polled = new Polled(job.id, "settings", (found) => this.#take(found), (message) => this.box.replaceChildren(h("p", { class: "later" }, message), all(this.inForce)));
  }

  get inForce() {
    return this.#found?.settings ?? this.first;
  }

  // [first step, bound]… : the bound that each step had
  get bounds() {
    const changes = (this.#found?.changes ?? []).filter((c) => c.name === "max_staleness");
    return [[0, changes.length ? changes[0].before : this.inForce.max_staleness], ...changes.map((c) => [c.from_version + 1, c.after])];
  }

  set(job) {
    this.live = !ended(job);
    if (!this.live) this.polled.end();
  }

  #take(found) {
    const now = JSON.stringify([found.settings, found.changes, this.live]);
    if (now === this.#shown) return;
    this.#shown = now;
    this.#found = found;
    const { settings, changeable, changes } = found;
    this.box.replaceChildren(
      this.live ? h("div", { class: "changeable" }, changeable.map((name) => h("button", { type: "button", onclick: () => this.#change(name) }, `${name} `, h("b", {}, shown(settings[name]))))) : "",
      changes.length ? table(["when", "who", "setting", "before", "after", "from version"], changes.map((c) => [clock(c.time), c.by, c.name, shown(c.before), shown(c.after), `${c.from_version}`])) : h("p", { class: "later" }, "No setting was changed while the job ran."),
      all(settings));
  }

  async #change(name) {
    const text = await asked(`New value of ${name}, from the next version on`, shown(this.inForce[name]));
    if (text === null) return;
    try {
      this.#take(await patch(this.path, { [name]: Number(text) }));
    } catch (error) {
      tell(error.message);
    }
  }
}

const all = (settings) => h("details", {}, h("summary", {}, "All settings"), h("dl", { class: "settings" }, Object.entries(settings).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, shown(value))))));

const shown = (value) => (value === null ? "none" : typeof value === "object" ? JSON.stringify(value) : `${value}`);

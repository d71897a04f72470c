// The job's workers, with buttons to drain and undrain them.

import { jobPath, post } from "../api.js";
import { confirmed, tell } from "../dialog.js";
import { h } from "../dom.js";
import { count, duration, ended, percent } from "../format.js";
import { Polled } from "../polled.js";
import { table } from "../table.js";

const HEADS = ["worker", "status", "version", "behind", "busy", "in flight", "tokens", "errors", "seen", ""];

export class Workers {
  #shown = "";

  constructor(place, id) {
    this.path = `${jobPath(id)}/workers`;
    this.box = h("div", {}, h("p", { class: "later" }, "Once the job is placed, its workers appear here."));
    place.append(this.box);
    this.polled = new Polled(id, "workers", (found) => this.#found(found.data), (message) => this.box.replaceChildren(h("p", { class: "later" }, message)));
  }

  set(job) {
    if (ended(job)) this.polled.end();
  }

  #found(workers) {
    const now = JSON.stringify(workers);
    if (now === this.#shown) return;
    this.#shown = now;
    if (workers.length) this.box.replaceChildren(table(HEADS, workers.map((w) => this.#row(w)), { class: "workers" }));
  }

  #row(w) {
    const errors = Object.entries(w.errors).map(([kind, n]) => `${kind} ${count(n)}`).join(", ");
    const seen = w.seen_at === null ? "–" : `${duration(Date.now() / 1000 - w.seen_at)} ago`;
    return [w.id, h("span", { class: `pill ${w.status}` }, w.status), `${w.version}`, `${w.lag}`, percent(w.busy / (w.uptime || 1)), count(w.running), count(w.tokens), errors || "none", seen, this.#button(w)];
  }

  #button(w) {
    if (w.role !== "rollout") return "";
    if (["draining", "drained"].includes(w.status)) return h("button", { type: "button", onclick: () => this.#ask(w, "undrain") }, "Undrain");
    return w.status === "running" ? h("button", { type: "button", onclick: () => this.#drain(w) }, "Drain") : "";
  }

  async #drain(worker) {
    if (await confirmed(`Drain ${worker.id}? It finishes its groups, and takes no new ones.`, "Drain it")) await this.#ask(worker, "drain");
  }

  async #ask(worker, what) {
    try {
      await post(`${this.path}/${encodeURIComponent(worker.id)}/${what}`);
      await this.polled.ask();
    } catch (error) {
      tell(error.message);
    }
  }
}

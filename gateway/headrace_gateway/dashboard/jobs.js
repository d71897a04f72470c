// The list of jobs, newest first: progress, reward and age of tokens of each. Chosen jobs can be compared.

import { get, Refused } from "./api.js";
import { connection, h, setText } from "./dom.js";
import { ended } from "./format.js";
import { Row } from "./row.js";

const EVERY_MS = 3000;
const PAGE = 100; // jobs
const STATUSES = ["running", "queued", "validating_files", "paused", "succeeded", "failed", "cancelled"];

export function showJobs(page) {
  new JobList(page).refresh();
}

class JobList {
  #rows = new Map(); // by id, newest job first
  #more = false;
  #drawn = false;

  constructor(page) {
    const query = new URLSearchParams(location.search);
    this.page = page;
    this.status = h("select", { id: "status", "aria-label": "Status", onchange: () => this.#filter() }, h("option", { value: "" }, "every status"), STATUSES.map((s) => h("option", { value: s }, s.replace("_", " "))));
    this.words = h("input", { id: "words", type: "search", placeholder: "model, suffix or id", "aria-label": "Find by model, suffix or id", value: query.get("q") ?? "", oninput: () => this.#filter() });
    this.status.value = query.get("status") ?? "";
    this.shown = h("span", { class: "meta", role: "status" });
    this.list = h("ul", { class: "list" });
    this.older = h("button", { type: "button", hidden: true, onclick: () => this.#older() }, "Load older jobs");
    this.compare = h("a", { class: "button primary", id: "compare" }, "Compare");
    this.chosen = h("span");
    this.choice = h("div", { class: "choice-bar", hidden: true }, this.chosen, h("button", { type: "button", onclick: () => this.#unchoose() }, "Clear"), this.compare);
    this.content = [h("h1", { class: "sr" }, "Jobs"), h("div", { class: "filters" }, this.status, this.words, this.shown), this.list, h("div", { class: "older" }, this.older), this.choice];
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
  }

  // Reads the newest page again, and the pages with jobs that have not ended.
  async refresh() {
    clearTimeout(this.timer);
    try {
      if (!document.hidden) await this.#read();
      connection("live", "live");
    } catch (error) {
      const refused = error instanceof Refused;
      connection("lost", refused ? error.message : "the gateway does not answer; trying again …");
    }
    this.timer = setTimeout(() => this.refresh(), EVERY_MS);
  }

  async #read() {
    const newest = await get(`/v1/headrace/overview?limit=${PAGE}`);
    const known = [...this.#rows.keys()], seen = newest.data.map((job) => job.id);
    if (known.length <= PAGE) this.#more = newest.has_more;
    const rest = known.filter((id) => !seen.includes(id)).map((id) => this.#rows.get(id));
    const open = rest.length > 0 && rest.some((row) => !ended(row.job));
    this.#take(newest.data, rest);
    if (open) await this.#again(seen.at(-1), rest.length);
    this.#show();
  }

  async #again(after, many) {
    for (let left = many; left > 0; left -= PAGE) {
      const { data } = await get(`/v1/headrace/overview?limit=${PAGE}&after=${encodeURIComponent(after)}`);
      for (const job of data) this.#rows.get(job.id)?.set(job);
      if (!data.length) return;
      after = data.at(-1).id;
    }
  }

  async #older() {
    this.older.disabled = true;
    try {
      const { data, has_more: more } = await get(`/v1/headrace/overview?limit=${PAGE}&after=${encodeURIComponent([...this.#rows.keys()].at(-1))}`);
      this.#more = more;
      for (const job of data) this.#rows.set(job.id, this.#row(job));
    } catch (error) {
      connection("lost", error.message);
    }
    this.older.disabled = false;
    this.#show();
  }

  #take(newest, rest) {
    const before = this.#rows;
    this.#rows = new Map(newest.map((job) => [job.id, before.get(job.id) ?? this.#row(job)]));
    for (const job of newest) this.#rows.get(job.id).set(job);
    for (const row of rest) this.#rows.set(row.job.id, row);
  }

  #row(job) {
    return new Row(job, () => this.#chose());
  }

  #show() {
    if (!this.#rows.size) {
      this.#drawn = false;
      return this.page.replaceChildren(empty());
    }
    if (!this.#drawn) this.page.replaceChildren(...this.content);
    this.older.hidden = !this.#more;
    this.#filter();
    if (!this.#drawn) performance.mark("drawn");
    this.#drawn = true;
  }

  #filter() {
    const status = this.status.value, words = this.words.value.trim().toLowerCase();
    const found = [...this.#rows.values()].filter((row) => (!status || row.job.status === status) && row.says.includes(words)).map((row) => row.element);
    const same = found.length === this.list.children.length && found.every((element, i) => element === this.list.children[i]);
    if (!same) this.list.replaceChildren(...found);
    setText(this.shown, found.length === this.#rows.size ? `${found.length} jobs` : `${found.length} of ${this.#rows.size} jobs`);
    const query = new URLSearchParams(Object.entries({ status, q: words }).filter(([, value]) => value));
    history.replaceState(null, "", query.size ? `/?${query}` : "/");
  }

  #chose() {
    const ids = [...this.#rows.values()].filter((row) => row.chosen).map((row) => row.job.id);
    this.choice.hidden = ids.length === 0;
    setText(this.chosen, ids.length === 1 ? "One job chosen; choose another one to compare it with" : `${ids.length} jobs chosen`);
    this.compare.hidden = ids.length < 2;
    this.compare.href = `/compare?jobs=${ids.map(encodeURIComponent).join(",")}`;
  }

  #unchoose() {
    for (const row of this.#rows.values()) row.unchoose();
    this.#chose();
  }
}

function empty() {
  return h("div", { class: "card empty" },
    h("p", {}, "No job yet. Submit one with the OpenAI client, with curl, or from a terminal:"),
    h("code", {}, "headrace train examples/adder/job.toml"),
    h("p", {}, "It then appears here with its progress, its reward, and the age of its tokens against the bound."));
}

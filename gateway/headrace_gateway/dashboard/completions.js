// The completions that a job trained on, newest first. The address holds the selection: ?step= ?group= ?color=
//
//     newest page ──every few seconds: is there a newer group?──► at the top of the page it is shown at once;
//                                                                 further down a notice offers to show it

import { get, jobPath } from "./api.js";
import { connection, h, setText } from "./dom.js";
import { ended, named } from "./format.js";
import { wireHeader } from "./header.js";
import { GroupCard } from "./completions/group.js";
import { WAYS } from "./completions/tints.js";
import { tinted } from "./completions/tokens.js";

const GROUPS = 5; // on one page
const EVERY_MS = 4000;
const TYPING_MS = 350;
const AT_TOP = 120; // pixels scrolled: further down, the text that somebody reads must not move

class CompletionsPage {
  constructor(place, id) {
    this.id = id;
    this.groups = [];
    this.before = []; // cursors of the pages before this one
    this.after = null;
    const asked = new URLSearchParams(location.search);
    this.way = asked.get("color") in WAYS ? asked.get("color") : "age";
    this.#build(place, asked);
    this.#begin();
  }

  async #begin() {
    try {
      this.job = await get(jobPath(this.id));
      setText(this.name, named(this.job));
      document.title = `Completions · ${named(this.job)} · Headrace`;
      await this.#load();
    } catch (error) {
      this.#failed(error);
    }
    this.#watch();
  }

  // ── loading and showing ──────────────────────────────────────────────────────────────────────────────────────────────────

  #build(place, asked) {
    const page = `/jobs/${encodeURIComponent(this.id)}`;
    this.name = h("a", { class: "link", href: page }, this.id);
    this.step = h("input", { type: "text", inputmode: "numeric", id: "step", placeholder: "all", maxlength: 9, autocomplete: "off", value: asked.get("step") ?? "", oninput: () => this.#soon() });
    this.ofGroup = h("input", { type: "text", inputmode: "numeric", id: "group", placeholder: "all", maxlength: 9, autocomplete: "off", value: asked.get("group") ?? "", oninput: () => this.#soon() });
    this.wanted = h("input", { type: "search", id: "search", placeholder: "in these groups", maxlength: 200, autocomplete: "off", oninput: () => this.#search() });
    const ways = Object.entries(WAYS).map(([key, way]) => h("label", {}, h("input", { type: "radio", name: "way", value: key, checked: key === this.way, onchange: () => this.#color(key) }), way.name));
    this.good = h("p", { class: "good-is", id: "good" });
    this.legend = h("ul", { class: "scale", "aria-label": "What the colours mean" });
    this.fresh = h("button", { type: "button", class: "primary fresh", hidden: true, onclick: () => this.#newest() }, "Newer completions: show them");
    this.list = h("div", { class: "groups", "aria-live": "off" });
    this.newer = h("button", { type: "button", id: "newer", onclick: () => this.#turn(this.before.pop() ?? null) }, "← Newer");
    this.older = h("button", { type: "button", id: "older", onclick: () => this.#older() }, "Older →");
    this.where = h("span", { class: "meta" });
    place.append(
      h("div", { class: "head" }, h("div", { class: "title" }, h("h1", {}, "Completions")),
        h("p", { class: "meta" }, "The completions that steps trained on: a few groups of each step, chosen by a hash of the group's number. ", this.name)),
      h("section", { class: "card tools", "aria-label": "What is shown" },
        h("fieldset", { class: "ways" }, h("legend", {}, "Colour of a token"), ways),
        h("div", { class: "fields" }, h("label", {}, "Step", this.step), h("label", {}, "Group", this.ofGroup), h("label", { class: "search" }, "Search", this.wanted)),
        this.good, this.legend),
      this.fresh, this.list,
      h("nav", { class: "pager", "aria-label": "Pages" }, this.newer, this.where, this.older));
  }

  async #load() {
    const asked = new URLSearchParams({ limit: GROUPS });
    for (const [name, value] of Object.entries({ ...this.#filters(), after: this.after })) if (value) asked.set(name, value);
    this.list.setAttribute("aria-busy", "true");
    const query = (this.query = `${asked}`);
    const page = await get(`${jobPath(this.id)}/rollouts?${query}`);
    if (query !== this.query) return; // another selection was requested meanwhile
    this.#show(page);
    this.list.removeAttribute("aria-busy");
  }

  #filters() {
    const digits = (input) => (/^\d+$/.test(input.value.trim()) ? input.value.trim() : null);
    return { step: digits(this.step), group: digits(this.ofGroup) };
  }

  #show(page) {
    this.page = page;
    this.scale = this.#scale(page.data);
    this.groups = page.data.map((group) => new GroupCard(group, this.way, this.scale));
    this.nothing = h("p", { class: "card empty", hidden: true });
    this.list.replaceChildren(...this.groups.map((group) => group.element), this.nothing);
    this.fresh.hidden = true;
    this.newer.disabled = this.after === null;
    this.older.disabled = !page.has_more;
    setText(this.where, page.data.length ? `page ${this.before.length + (this.after === null ? 1 : 2)}` : "");
    this.#legend();
    this.#search();
  }

  #scale(groups) {
    const settings = this.job.method.reinforcement.hyperparameters;
    const ages = groups.flatMap((group) => group.completions.flatMap((c) => c.ages.map((age) => age ?? 0)));
    return { oldest: ages.reduce((a, b) => Math.max(a, b), settings.max_staleness ?? 1), cap: settings.importance_cap ?? 5 };
  }

  // ── what users do ─────────────────────────────────────────────────────────────────────────────────────────────

  #color(way) {
    this.way = way;
    for (const group of this.groups) group.paint(way, this.scale);
    this.#legend();
    this.#remember();
  }

  #legend() {
    const way = WAYS[this.way];
    setText(this.good, way.goodIs);
    const none = { age: null, weight: null, logprob: null };
    const items = way.legend(this.scale).map(([token, text]) => [{ ...none, ...token }, text]);
    if (this.way !== "plain") items.push([none, "none known"]);
    this.legend.replaceChildren(...items.map(([token, text]) => {
      const swatch = h("i", { class: "swatch" });
      tinted(swatch, token, this.way, this.scale);
      return h("li", {}, swatch, text);
    }), h("li", {}, h("s", {}, "struck"), "not trained on"));
  }

  #search() {
    const wanted = this.wanted.value.toLowerCase();
    const found = this.groups.filter((group) => group.search(wanted));
    if (!this.nothing) return;
    this.nothing.hidden = found.length > 0;
    setText(this.nothing, this.#whyNothing(wanted));
  }

  #whyNothing(wanted) {
    const { step, group } = this.#filters();
    if (wanted && this.groups.length) return "None of the completions on this page holds that text.";
    if (step || group || this.after) return "No completion of that is recorded. Some groups of each step are recorded; the oldest are deleted first.";
    if (this.job.method.reinforcement.hyperparameters.keep_rollouts === 0) return "This job records no completions: its keep_rollouts is 0.";
    return ended(this.job) ? "This job ended before its first step." : "No step yet. Completions appear with the first one.";
  }

  #soon() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.#newest(), TYPING_MS);
  }

  #newest() {
    this.before = [];
    this.#turn(null);
  }

  #older() {
    if (this.after !== null) this.before.push(this.after);
    this.#turn(this.page.last_id);
  }

  async #turn(after) {
    this.after = after;
    this.#remember();
    try {
      await this.#load();
      scrollTo({ top: 0 });
    } catch (error) {
      this.#failed(error);
    }
  }

  #remember() {
    const kept = new URLSearchParams({ color: this.way });
    for (const [name, value] of Object.entries(this.#filters())) if (value) kept.set(name, value);
    history.replaceState(null, "", `?${kept}`);
  }

  // ── new groups ─────────────────────────────────────────────────────────────────────────────────────────

  async #watch() {
    try {
      if (this.job && !document.hidden) await this.#look();
    } catch (error) {
      connection("lost", `the gateway does not answer: ${error.message}`);
    }
    if (this.job && ended(this.job) && this.page) return connection("", "ended");
    setTimeout(() => this.#watch(), EVERY_MS);
  }

  async #look() {
    this.job = await get(jobPath(this.id));
    connection("live", "live");
    const { step, group } = this.#filters();
    if (this.after !== null || group) return;
    const { first_id: newest } = await get(`${jobPath(this.id)}/rollouts?limit=1${step ? `&step=${step}` : ""}`);
    if (!newest || newest === this.page?.first_id) return;
    if (scrollY < AT_TOP && !this.wanted.value && !this.list.contains(document.activeElement)) await this.#load();
    else this.fresh.hidden = false;
  }

  #failed(error) {
    this.list.removeAttribute("aria-busy");
    this.list.replaceChildren(h("p", { class: "card error", role: "alert" }, error.message));
    this.groups = [];
    connection("lost", "");
  }
}

wireHeader();
const [, id] = location.pathname.match(/^\/jobs\/([^/]+)\/completions$/);
new CompletionsPage(document.getElementById("page"), decodeURIComponent(id));

// The page of one job, live: one event stream sends everything, first the job's past, then each change.

import { card, connection, h } from "./dom.js";
import { named } from "./format.js";
import { Live } from "./live.js";
import { Measurements } from "./data/measurements.js";
import { Events } from "./panels/events.js";
import { Flow } from "./panels/flow.js";
import { Head } from "./panels/head.js";
import { Learning } from "./panels/learning.js";
import { RewardFigures } from "./panels/reward.js";
import { Settings } from "./panels/settings.js";
import { Staleness } from "./panels/staleness.js";
import { Tiles } from "./panels/tiles.js";
import { Workers } from "./panels/workers.js";

const REDRAW_MS = 500;
const GROUPS = [["learning", "Learning"], ["staleness", "Staleness"], ["flow", "Flow"], ["trust", "Reward"], ["control", "Control"]];

export function showJob(page, id) {
  const view = new JobPage(page);
  new Live(id, { begin: () => view.begin(), on: (kind, data) => view.on(kind, data), refused: (error) => view.refused(error) });
}

class JobPage {
  #due = null;
  #built = false;
  #past = true; // while the past is being received, nothing is drawn

  constructor(page) {
    this.page = page;
    this.measured = new Measurements();
    this.state = null;
    page.replaceChildren(h("div", { class: "card empty" }, "Reading the job …"));
  }

  begin() {
    const { depths } = this.measured; // the stream does not send these again
    this.measured = new Measurements();
    this.measured.depths = depths;
    this.#past = true;
  }

  on(kind, data) {
    if (kind === "state" && !data.ledger) {
      this.refused({ message: "A record of this job's ledger is damaged: the gateway's log and `headrace doctor` name the record. The job can still be cancelled." });
      return;
    }
    if (kind === "state") {
      this.state = data;
      this.measured.addDepths(Date.now() / 1000, data.ledger.states);
    } else this.measured.add(kind, data);
    if (kind === "live") {
      this.#past = false;
      this.#draw();
    } else if (!this.#past) this.#due ??= setTimeout(() => this.#draw(), REDRAW_MS);
  }

  refused(error) {
    connection("lost", "");
    this.page.replaceChildren(h("div", { class: "card empty" }, h("p", {}, error.message), h("a", { class: "link", href: "/" }, "All jobs")));
  }

  #draw() {
    clearTimeout(this.#due);
    this.#due = null;
    if (this.#past || !this.state) return;
    const first = !this.#built;
    if (first) this.#build(this.state.job);
    const { state, measured, settings } = this, bounds = settings.bounds;
    this.settings.set(state.job);
    this.workers.set(state.job);
    this.head.set(state);
    const { rate } = this.flow.set(state, measured, settings.inForce);
    this.tiles.set(state, measured, bounds.at(-1)[1], rate[1]);
    this.learning.set(measured);
    this.staleness.set(state.job, measured, bounds);
    this.reward.set(state.reward, measured.steps);
    this.events.set(measured.events);
    if (first) requestAnimationFrame(() => setTimeout(() => performance.mark("drawn"))); // charts draw after the layout
  }

  #build(job) {
    this.#built = true;
    document.title = `${named(job)} · Headrace`;
    this.page.replaceChildren();
    this.head = new Head(this.page, job);
    this.tiles = new Tiles(this.page);
    const nav = h("nav", { class: "parts", "aria-label": "Parts of this page" }, GROUPS.map(([id, name]) => h("a", { href: `#${id}` }, name)));
    this.page.append(nav);
    const grids = Object.fromEntries(GROUPS.map(([id, name]) => [id, this.#group(id, name)]));
    this.learning = new Learning(grids.learning);
    this.staleness = new Staleness(grids.staleness);
    this.flow = new Flow(grids.flow, job.id);
    this.reward = new RewardFigures(card(grids.trust, "Can the reward be relied on", "Healthy: completions scored again get the same reward, few rewards are flipped, the reward does not drift, and none fails.", { wide: true }));
    this.workers = new Workers(card(grids.control, "Workers", "Healthy: all run, none is behind for long, and none has errors.", { wide: true }), job.id);
    this.settings = new Settings(card(grids.control, "Settings", "Healthy: few changes during a job, each with a reason, because changes are part of the result.", { wide: true }), job);
    this.events = new Events(card(grids.control, "Events and errors", "Healthy: no warnings (yellow) and no errors (red).", { wide: true }));
  }

  #group(id, name) {
    const grid = h("div", { class: "grid" });
    this.page.append(h("h2", { id, class: "part-name" }, name), grid);
    return grid;
  }
}

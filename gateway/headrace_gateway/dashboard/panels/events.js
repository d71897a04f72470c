// The job's events, newest first; warnings and errors can be shown alone.

import { h } from "../dom.js";
import { clock } from "../format.js";

const MAX_EVENTS = 300;
const KINDS = { warn: "warn", error: "error-line" };

const line = (event) => h("li", { class: KINDS[event.level] ?? "" }, h("time", {}, clock(event.created_at)), h("span", {}, event.message));

export class Events {
  #source = null;
  #logged = 0;

  constructor(place) {
    this.alone = h("input", { type: "checkbox", onchange: () => this.log.classList.toggle("troubles", this.alone.checked) });
    this.log = h("ol", { class: "log", tabindex: "0", "aria-label": "Events" });
    this.nothing = h("p", { class: "later" }, "The job's events appear here, newest first.");
    place.append(h("label", { class: "choice" }, this.alone, " warnings and errors only"), this.nothing, this.log);
  }

  set(events) {
    if (events !== this.#source) {
      this.log.replaceChildren(); // a new connection, which sends everything again
      this.#logged = 0;
    }
    this.#source = events;
    this.log.prepend(...events.slice(Math.max(this.#logged, events.length - MAX_EVENTS)).reverse().map(line));
    this.#logged = events.length;
    this.nothing.hidden = events.length > 0;
    while (this.log.children.length > MAX_EVENTS) this.log.lastChild.remove();
  }
}

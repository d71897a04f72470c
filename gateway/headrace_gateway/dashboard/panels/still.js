// When the job last stood still: who waited for whom, as its watchdog saw it, and what was done about it.

import { h } from "../dom.js";
import { clock, duration } from "../format.js";

export class Still {
  #shown = null;

  constructor(place) {
    this.box = h("div", { class: "still", hidden: true });
    place.append(this.box);
  }

  set(events) {
    const last = events.findLast((event) => event.data?.waits);
    if (!last || last.id === this.#shown) return;
    this.#shown = last.id;
    this.box.hidden = false;
    const waits = last.data.waits.map(({ who, for: what, seconds }) => h("li", {}, h("b", {}, who), ` waits for ${what}`, seconds ? `, ${duration(seconds)}` : ""));
    this.box.replaceChildren(h("p", {}, `${clock(last.created_at)} · ${last.message}`), h("ul", {}, waits));
  }
}

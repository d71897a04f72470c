// The job's last stall: who waited for whom, as the watchdog reported it, and what the watchdog did.

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

// A table that scrolls on narrow screens.

import { h } from "./dom.js";

// `rows`: lists of cells, which are texts or elements
export function table(heads, rows, attributes = {}) {
  return h("div", { class: "scrolls", tabindex: "0", role: "group", "aria-label": heads.join(", ") }, h("table", attributes,
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell)))))));
}

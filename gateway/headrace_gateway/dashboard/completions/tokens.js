// The tokens of one completion as text: each is a span with its tint. The Tab key stops once for all of them, arrow keys move from
// one to the next, and a card describes the selected one. A click pins the card, for touch screens.

import { h } from "../dom.js";
import { chance, short, WAYS, WHY } from "./tints.js";

const FIRST = 500; // tokens shown before "show all", so that a page of long completions opens at once
const spans = new WeakMap(); // span → its token

const card = h("div", { class: "token-card", role: "status", hidden: true });
document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
document.addEventListener("scroll", hide, { passive: true });

export function tokensOf(completion) {
  return completion.tokens.map((text, i) => ({
    text, id: completion.token_ids[i], version: completion.versions[i], age: completion.ages[i],
    weight: completion.importance_weights[i], logprob: completion.logprobs[i], why: completion.left_out[i],
  }));
}

export class TokenText {
  constructor(completion, label) {
    this.tokens = tokensOf(completion);
    this.box = h("div", { class: "tokens", tabindex: 0, role: "group", "aria-label": `${label}. Arrow keys go from token to token.`,
      onmouseover: (event) => point(event.target), onmouseleave: hide, onblur: hide,
      onclick: (event) => point(event.target), onkeydown: (event) => this.#key(event) });
    this.more = h("button", { type: "button", class: "more", onclick: () => this.#grow() }, `Show all ${this.tokens.length.toLocaleString("en")} tokens`);
    this.shown = [];
    this.current = -1;
    this.#add(Math.min(FIRST, this.tokens.length));
  }

  get elements() {
    return [this.box, this.more];
  }

  paint(way, scale) {
    Object.assign(this, { way, scale });
    this.shown.forEach((span, i) => tinted(span, this.tokens[i], way, scale));
  }

  // Marks the matches of a search: ranges [start, end) of the text.
  mark(ranges) {
    this.ranges = ranges;
    let place = 0;
    this.shown.forEach((span, i) => {
      const from = place;
      place += this.tokens[i].text.length;
      span.classList.toggle("hit", ranges.some(([start, end]) => start < place && from < end));
    });
  }

  #add(upTo) {
    const fresh = this.tokens.slice(this.shown.length, upTo).map(spanOf);
    this.shown.push(...fresh);
    this.box.append(...fresh);
    this.more.hidden = this.shown.length === this.tokens.length;
  }

  #grow() {
    this.#add(this.tokens.length);
    this.paint(this.way, this.scale);
    this.mark(this.ranges ?? []);
    this.box.focus();
  }

  #key(event) {
    const to = { ArrowRight: this.current + 1, ArrowLeft: this.current - 1, Home: 0, End: this.shown.length - 1 }[event.key];
    if (to === undefined || !this.shown.length) return;
    event.preventDefault();
    this.current = Math.min(this.shown.length - 1, Math.max(0, to));
    this.shown[this.current].scrollIntoView({ block: "nearest" });
    point(this.shown[this.current]);
  }
}

function spanOf(token) {
  const span = h("span", {}, token.text);
  if (token.text === "") span.classList.add("partial");
  if (token.text.includes("\n")) span.classList.add("newline");
  if (token.why) span.classList.add("masked");
  spans.set(span, token);
  return span;
}

export function tinted(element, token, way, scale) {
  const tint = WAYS[way].tint(token, scale);
  element.classList.toggle("unknown", tint === null);
  element.style.setProperty("--tint", tint ? `var(--${tint.color})` : "transparent");
  element.style.setProperty("--share", `${Math.round(100 * (tint?.share ?? 0))}%`);
}

// ── the card ────────────────────────────────────────────────────────────────────────────────────────────────────────

let pointed = null;

function hide() {
  pointed?.classList.remove("pointed");
  pointed = null;
  card.hidden = true;
}

function point(span) {
  const token = spans.get(span);
  if (!token || span === pointed) return;
  hide();
  pointed = span;
  span.classList.add("pointed");
  card.replaceChildren(h("code", {}, token.text === "" ? "part of the character that follows" : JSON.stringify(token.text)), h("dl", {}, facts(token).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]).flat()));
  if (!card.isConnected) document.body.append(card);
  card.hidden = false;
  place(span.getClientRects()[0] ?? span.getBoundingClientRect());
}

function facts(token) {
  const found = [["token", `${token.id}`]];
  if (token.version !== null) found.push(["version", `${token.version}`], ["age", `${token.age}`]);
  found.push(["importance weight", token.weight === null ? "none computed" : short(token.weight)]);
  if (token.logprob !== null) found.push(["log-probability", `${short(token.logprob)} (${chance(token.logprob)})`]);
  if (token.why) found.push(["not trained", WHY[token.why]]);
  return found;
}

function place(at) {
  const { width, height } = card.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left), document.documentElement.clientWidth - width - 8);
  const below = at.bottom + 6 + height < innerHeight;
  card.style.left = `${left}px`;
  card.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - height - 6)}px`;
}


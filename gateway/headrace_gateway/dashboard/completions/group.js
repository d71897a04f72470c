// One group: its prompt, and its completions from the highest reward to the lowest.

import { h } from "../dom.js";
import { short } from "./tints.js";
import { TokenText } from "./tokens.js";

const ENDS = 4; // of a large group, this many of the highest and of the lowest are shown first

export class GroupCard {
  constructor(group, way, scale) {
    this.group = group;
    const best = [...group.completions].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity) || a.index - b.index);
    this.completions = best.map((completion) => new CompletionCard(completion, way, scale));
    this.rest = best.length > 2 * ENDS + 1 ? this.completions.slice(ENDS, -ENDS) : [];
    for (const completion of this.rest) completion.element.hidden = true;
    this.more = h("button", { type: "button", class: "more", hidden: !this.rest.length, onclick: () => this.#open() }, `Show the ${this.rest.length} between the best ${ENDS} and the worst ${ENDS}`);
    const bodies = this.completions.map((c) => c.element);
    bodies.splice(ENDS, 0, this.more);
    this.element = h("section", { class: "card group", "aria-label": `Group ${group.group} of step ${group.step}` },
      h("h2", {}, `Step ${group.step} · group ${group.group}`),
      h("p", { class: "meta" }, summary(group)),
      prompt(group.prompt),
      bodies);
  }

  paint(way, scale) {
    for (const completion of this.completions) completion.text.paint(way, scale);
  }

  // Shows the completions that contain the text, or all if the prompt contains it. Returns whether there are any.
  search(wanted) {
    const all = !wanted || this.group.prompt.toLowerCase().includes(wanted);
    const found = this.completions.filter((completion) => completion.search(wanted) || all);
    for (const completion of this.completions) completion.element.hidden = !found.includes(completion) || (!wanted && this.rest.includes(completion));
    this.more.hidden = Boolean(wanted) || !this.rest.length;
    this.element.hidden = !found.length;
    return found.length > 0;
  }

  #open() {
    for (const completion of this.rest) completion.element.hidden = false;
    this.rest[0]?.text.box.focus();
    this.rest = [];
    this.more.hidden = true;
  }
}

class CompletionCard {
  constructor(completion, way, scale) {
    this.lower = completion.text.toLowerCase();
    this.text = new TokenText(completion, `Completion of reward ${short(completion.reward)}`);
    this.text.paint(way, scale);
    this.element = h("article", { class: `completion${completion.greedy ? " greedy" : ""}` }, verdict(completion), h("div", { class: "said" }, this.text.elements, notes(completion.notes)));
  }

  search(wanted) {
    const ranges = [];
    for (let at = wanted ? this.lower.indexOf(wanted) : -1; at >= 0; at = this.lower.indexOf(wanted, at + wanted.length)) ranges.push([at, at + wanted.length]);
    this.text.mark(ranges);
    return ranges.length > 0;
  }
}

function summary(group) {
  const rewards = group.completions.map((c) => c.reward).filter((r) => r !== null);
  const parts = [`row ${group.row} of the training file`, `updated version ${group.version}`, count(group)];
  if (rewards.length) parts.push(`mean reward ${short(rewards.reduce((a, b) => a + b, 0) / rewards.length)}`);
  if (rewards.length > 1 && new Set(rewards).size === 1) parts.push("all rewards are equal: there is no gradient, so no weight was computed");
  if (group.attempt > 1) parts.push(`lease ${group.attempt}: it was issued again`);
  return parts.join(" · ");
}

function count(group) {
  const kept = group.completions.filter((c) => !c.greedy).length;
  return kept < group.group_size ? `${kept} of ${group.group_size} completions` : `${kept} completions`;
}

function prompt(text) {
  return h("details", { class: "prompt", open: true }, h("summary", {}, "Prompt"), h("pre", { tabindex: 0, "aria-label": "Prompt" }, text));
}

// Texts that the reward returned beside its numbers.
function notes(texts) {
  const entries = Object.entries(texts);
  return entries.length ? h("dl", { class: "notes" }, entries.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text)))) : null;
}

function verdict(completion) {
  const { reward, trained_reward: used, advantage, components, finish_reason: finish, greedy, tokens, masked } = completion;
  const left = masked.filter(Boolean).length;
  const lines = [
    ...(used === reward ? [] : [["trained on", short(used)]]),
    ["advantage", advantage === null ? "none" : `${advantage > 0 ? "+" : ""}${short(advantage)}`],
    ["tokens", left ? `${tokens.length}, ${left === tokens.length ? "none" : tokens.length - left} trained` : `${tokens.length}`],
    ["ended by", greedy ? `${finish}, greedy` : finish],
    ...Object.entries(components).map(([name, value]) => [name, short(value)]),
  ];
  return h("div", { class: "verdict" },
    h("div", { class: "reward" }, reward === null ? "no reward" : short(reward), reward === null ? null : h("small", {}, " reward")),
    h("dl", {}, lines.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
}


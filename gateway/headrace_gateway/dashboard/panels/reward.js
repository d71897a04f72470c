// Reliability of the reward, as the gateway summarises it: shares with 95 % intervals, drift, failures.

import { count, h } from "../dom.js";

const LATELY = 8; // steps
const SURELY_BAD = { agree: 0.9, flips: 0.1, equal: 0.9 }; // an interval, or a share, beyond these values is red

export class RewardFigures {
  constructor(place) {
    this.box = h("div", { class: "figures" });
    place.append(this.box);
    this.shown = "";
  }

  set(found, steps) {
    const rows = [again(found.scored_again), ...Object.entries(found.truth).flatMap(truth), ...Object.entries(found.between).map(between), audit(found), drift(found.drift), alike(steps), failures(found)].filter(Boolean);
    const now = JSON.stringify(rows);
    if (now === this.shown) return;
    this.shown = now;
    this.box.replaceChildren(...rows.flatMap(({ of, figure, says, more, bad, unknown }) => [
      h("span", { class: "of" }, of),
      figure ? interval(figure) : h("span"),
      h("span", { class: `says ${bad ? "bad" : unknown ? "unknown" : ""}` }, h("b", {}, says), more ? ` ${more}` : ""),
    ]));
  }
}

const percent = (v) => `${(100 * v).toFixed(v > 0 && v < 0.1 ? 1 : 0)} %`;
const behind = (f) => `${count(f.count)} completions of ${count(f.groups)} groups`;
const range = (f) => `(${percent(f.low)} to ${percent(f.high)}), ${behind(f)}`;

function again({ equal, mean_difference: difference, failures: failed, skipped_groups: skipped }) {
  const of = "Scored again, the same reward";
  if (!equal) return { of, says: "nothing scored again yet", unknown: true };
  const notes = [range(equal)];
  if (difference && equal.value < 1) notes.push(`mean difference ${difference.toPrecision(2)}`);
  if (skipped) notes.push(`${count(skipped)} groups skipped: the reward is too slow`);
  if (Object.keys(failed).length) notes.push(`failed: ${kinds(failed)}`);
  return { of, figure: equal, says: percent(equal.value), more: notes.join(" · "), bad: equal.high < SURELY_BAD.agree };
}

function truth([name, { p01, p10, disagreement }]) {
  const row = (of, f) => ({
    of, figure: f ?? undefined, says: f ? percent(f.value) : `no such completion yet`, more: f ? range(f) : "",
    bad: f !== null && f.low > SURELY_BAD.flips, unknown: f === null,
  });
  return [row(`Low made high (p01), by “${name}”`, p01), row(`High made low (p10), by “${name}”`, p10), row(`Disagrees with “${name}”`, disagreement)];
}

function between([pair, figure]) {
  return { of: `Disagree: ${pair}`, figure: figure ?? undefined, says: figure ? percent(figure.value) : "no such completion yet", more: figure ? range(figure) : "", unknown: figure === null };
}

function audit({ audit_failed: failed }) {
  return failed ? { of: "Audits that failed", says: `${count(failed)} completions`, bad: true } : null;
}

function drift({ mean_shift: shift, rounds, moves }) {
  const of = "Drift against the first scores";
  if (!shift) return { of, says: rounds ? "too few groups have two scores" : "panel not scored again yet", unknown: true };
  const signed = (v) => `${v > 0 ? "+" : ""}${Number(v.toPrecision(2))}`;
  return { of, says: moves ? "the reward has changed" : "no change beyond its error", more: `mean shift ${signed(shift.value)} (${signed(shift.low)} to ${signed(shift.high)}), ${behind(shift)}, round ${rounds}`, bad: moves };
}

function alike(steps) {
  const shares = steps.slice(-LATELY).map((s) => s.zero_variance_share).filter((v) => v !== null && v !== undefined);
  const of = "Groups of equal rewards";
  if (!shares.length) return { of, says: "no group compared yet", unknown: true };
  const value = shares.reduce((a, b) => a + b, 0) / shares.length;
  return { of, figure: { value, low: value, high: value }, says: percent(value), more: `of the groups in the last ${shares.length} steps`, bad: value > SURELY_BAD.equal };
}

function failures({ failures: failed, left_out: leftOut, not_applicable: none, sample_parse_errors: lacking, completions }) {
  const some = Object.keys(failed).length > 0;
  const notes = [`of ${count(completions)} completions`];
  if (leftOut) notes.push(`${count(leftOut)} left out of their groups`);
  if (lacking) notes.push(`${count(lacking)} scored 0, because they lack the JSON that the grader reads`);
  if (none) notes.push(`${count(none)} not applicable`);
  return { of: "Failed rewards", says: some ? kinds(failed) : "none", more: notes.join(" · "), bad: some };
}

const kinds = (counts) => Object.entries(counts).map(([kind, n]) => `${kind} ${count(n)}`).join(", ");

function interval({ value, low, high }) {
  const span = h("i"), mark = h("b");
  span.style.left = `${100 * low}%`;
  span.style.width = `${100 * (high - low)}%`;
  mark.style.left = `${100 * value}%`;
  return h("div", { class: "interval", role: "img", "aria-label": `${percent(value)}, ${percent(low)} to ${percent(high)}` }, span, mark);
}

// Tokens by age: step by step, and for several steps together. Pure.

const LATELY = 20; // steps

// Steps merged into at most `most` columns of equal width: [{ from, to, mean, ages: [{ age, tokens, masked, share }] }]. If the
// history is downsampled, a column is as wide as the gap between two steps, so that the chart has no holes.
export function columns(steps, most) {
  if (!steps.length) return { columns: [], width: 1, top: 0 };
  const first = steps[0].step, last = steps.at(-1).step;
  const width = Math.max(1, Math.ceil((last - first + 1) / Math.min(most, steps.length)));
  const found = new Map();
  for (const step of steps) {
    const at = Math.floor((step.step - first) / width);
    if (!found.has(at)) found.set(at, []);
    found.get(at).push(step);
  }
  const made = [...found].map(([at, its]) => ({ from: first + at * width, to: first + (at + 1) * width - 1, ages: together(its), mean: meanAge(its) }));
  return { columns: made, width, top: Math.max(0, ...made.flatMap((c) => c.ages.map((a) => a.age))) };
}

// By age, ascending: tokens (masked ones included), masked tokens, share of all tokens; other figures are weighted by tokens.
export function together(steps) {
  const found = new Map();
  let all = 0;
  for (const step of steps) {
    for (const [age, of] of Object.entries(step.ages)) {
      const sum = found.get(+age) ?? { age: +age, tokens: 0, masked: 0, ess: 0, clip: 0 };
      sum.tokens += of.tokens;
      sum.masked += of.masked;
      sum.ess += of.effective_sample_size * of.tokens;
      sum.clip += of.clip_share * of.tokens;
      found.set(+age, sum);
      all += of.tokens;
    }
  }
  const by = [...found.values()].sort((a, b) => a.age - b.age);
  return by.map((a) => ({ ...a, share: a.tokens / (all || 1), ess: a.ess / (a.tokens || 1), clip: a.clip / (a.tokens || 1) }));
}

export const lately = (steps) => steps.slice(-LATELY);

// Mean age of the tokens that entered the gradient of these steps; null if none did.
export function meanAge(steps) {
  const used = together(steps).map((a) => [a.age, a.tokens - a.masked]);
  const tokens = used.reduce((sum, [, n]) => sum + n, 0);
  return tokens ? used.reduce((sum, [age, n]) => sum + age * n, 0) / tokens : null;
}

// The largest age that entered the gradient of a step; null if none did.
export function oldest(step) {
  const used = Object.entries(step.ages).filter(([, of]) => of.tokens > of.masked).map(([age]) => +age);
  return used.length ? Math.max(...used) : null;
}

// [ages, effective sample size and clip share of the last steps, effective sample size of the whole job]
export function figuresByAge(steps) {
  const whole = together(steps), now = new Map(together(lately(steps)).map((a) => [a.age, a]));
  return [whole.map((a) => a.age), whole.map((a) => now.get(a.age)?.ess ?? null), whole.map((a) => now.get(a.age)?.clip ?? null), whole.map((a) => a.ess)];
}

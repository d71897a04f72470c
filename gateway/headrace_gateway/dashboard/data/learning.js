// Rewards and lengths over steps. Pure.

const SMOOTHING = 0.8; // weight of the previous smoothed value

export function smoothed(values) {
  let smooth = null;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    smooth = smooth === null ? value : SMOOTHING * smooth + (1 - SMOOTHING) * value;
    return smooth;
  });
}

// [steps, reward, smoothed reward, validation reward]
export function rewards(measured) {
  const numbers = [...measured.steps, ...measured.evaluations].map((m) => m.step);
  const x = [...new Set(numbers)].sort((a, b) => a - b);
  const each = x.map((step) => measured.step(step)?.reward_mean ?? null);
  return [x, each, smoothed(each), x.map((step) => measured.evaluation(step)?.reward_mean ?? null)];
}

// { names, data: [steps, smoothed mean of each component…] }
export function components(measured) {
  const steps = measured.steps;
  const names = [...new Set(steps.flatMap((s) => Object.keys(s.components)))].sort();
  const of = (name) => smoothed(steps.map((s) => s.components[name] ?? null));
  return { names, data: [steps.map((s) => s.step), ...names.map(of)] };
}

export function lengths(measured) {
  const steps = measured.steps;
  return [steps.map((s) => s.step), steps.map((s) => s.completion_length), steps.map((s) => 100 * s.truncated_share)];
}

// [steps, effective sample size, clip share]
export function offPolicy(measured) {
  const steps = measured.steps;
  return [steps.map((s) => s.step), steps.map((s) => s.effective_sample_size), steps.map((s) => s.clip_share)];
}

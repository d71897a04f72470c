// Figures of several jobs, by step or by time, for comparison. Pure.

import { oldest } from "./ages.js";
import { smoothed } from "./learning.js";

// The compared figures: from a job's measurements to [[step, time, value]…].
export const COMPARED = {
  reward: (measured) => {
    const steps = measured.steps, smooth = smoothed(steps.map((s) => s.reward_mean));
    return steps.map((s, i) => [s.step, s.time, smooth[i]]);
  },
  evaluation: (measured) => measured.evaluations.map((e) => [e.step, e.time, e.reward_mean]),
  age: (measured) => measured.steps.map((s) => [s.step, s.time, oldest(s)]),
  ess: (measured) => measured.steps.map((s) => [s.step, s.time, s.effective_sample_size]),
  rate: (measured) => {
    const steps = measured.steps;
    const rate = (s, before) => (s.time > before.time ? (s.tokens * (s.step - before.step)) / (s.time - before.time) : null);
    return steps.slice(1).map((s, i) => [s.step, s.time, rate(s, steps[i])]);
  },
};

// uPlot's data of several jobs: each job's values at every abscissa that any of them has.
export function beside(jobs, what, byTime) {
  const tables = jobs.map(({ job, measured }) => {
    const points = COMPARED[what](measured).map(([step, time, value]) => [byTime ? Math.max(0, time - job.created_at) : step, value]);
    points.sort((a, b) => a[0] - b[0]);
    return [points.map(([x]) => x), points.map(([, y]) => y)];
  });
  return tables.some(([x]) => x.length) ? uPlot.join(tables) : [[], ...jobs.map(() => [])];
}

// [name, value of each job…] for the settings that are not the same in all jobs.
export function differing(jobs) {
  const all = jobs.map(({ job }) => ({ model: job.model, training_file: job.training_file, seed: job.seed, grader: job.method.reinforcement.grader, ...job.method.reinforcement.hyperparameters }));
  const names = [...new Set(all.flatMap(Object.keys))];
  const rows = names.map((name) => [name, ...all.map((settings) => said(settings[name]))]);
  return rows.filter(([, first, ...others]) => others.some((value) => value !== first));
}

const said = (value) => (value === undefined || value === null ? "none" : typeof value === "object" ? JSON.stringify(value) : `${value}`);

// Formats figures for people. Pure.

const number = new Intl.NumberFormat("en");
const time = new Intl.DateTimeFormat([], { timeStyle: "medium", hourCycle: "h23" });

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 172_800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

export function elapsed(seconds) {
  const s = Math.round(seconds);
  const hours = Math.floor(s / 3600), minutes = String(Math.floor((s % 3600) / 60)).padStart(hours ? 2 : 1, "0");
  return `${hours ? `${hours}:` : ""}${minutes}:${String(s % 60).padStart(2, "0")}`;
}

export function count(n) {
  if (n < 10_000) return number.format(n);
  const [size, unit] = n < 1e6 ? [1e3, "k"] : n < 1e9 ? [1e6, "M"] : [1e9, "G"];
  return `${(n / size).toFixed(1)}${unit}`;
}

export function bytes(n) {
  if (n < 1024) return `${n} B`;
  const [size, unit] = n < 1024 ** 2 ? [1024, "KiB"] : n < 1024 ** 3 ? [1024 ** 2, "MiB"] : [1024 ** 3, "GiB"];
  return `${(n / size).toFixed(1)} ${unit}`;
}

export const clock = (unix) => time.format(unix * 1000);

export const day = (unix) => new Date(unix * 1000).toLocaleDateString([], { dateStyle: "medium" });

export const percent = (share) => `${Math.round(100 * share)} %`;

// A percentage with more digits where it is small, so that a small share does not look like zero.
export const finePercent = (share) => (share > 0 && share < 0.1 ? `${(100 * share).toFixed(1)} %` : percent(share));

// With this many decimal places; with an exponent if that would be a long row of digits, or only zeros.
const decimal = (v, places) => (v && (Math.abs(v) >= 1e6 || Math.abs(v) < 0.5 / 10 ** places) ? v.toExponential(2) : v.toFixed(places));

export const two = (v) => (v === null || v === undefined ? "–" : decimal(v, Math.abs(v) < 10 ? 2 : 0));

export const whole = (v) => (Number.isInteger(v) ? `${v}` : v.toFixed(Math.abs(v) < 10 ? 2 : 1));

export const ended = (job) => ["succeeded", "failed", "cancelled"].includes(job.status);

export const named = (job) => (job.suffix ? `${job.model} · ${job.suffix}` : job.model);

export const inWords = (status) => status.replace("_", " ");

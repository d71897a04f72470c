// A sparkline: a small line without figures, as high as a line of text; `bound` is dashed.

import { svg } from "../dom.js";

const WIDTH = 120, HEIGHT = 30, PAD = 3;

export function spark(values, { kind, bound = null, label }) {
  const points = values.map((v, i) => [i, v]).filter(([, v]) => v !== null);
  const box = svg("svg", { class: `spark ${kind}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  if (!points.length) return box;
  const all = points.map(([, v]) => v), low = bound === null ? Math.min(...all) : 0, high = Math.max(bound ?? -Infinity, ...all, low + 1e-9);
  const x = (i) => (values.length < 2 ? WIDTH / 2 : PAD + (i / (values.length - 1)) * (WIDTH - 2 * PAD));
  const y = (v) => HEIGHT - PAD - ((v - low) / (high - low)) * (HEIGHT - 2 * PAD);
  if (bound !== null) box.append(svg("line", { class: "bound", x1: 0, x2: WIDTH, y1: y(bound), y2: y(bound) }));
  box.append(svg("polyline", { points: points.map(([i, v]) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(" ") }));
  return box;
}

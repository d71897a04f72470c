// A job's history so far, thinned, read off its stream; the stream is then let go.

import { get, jobPath } from "./api.js";
import { Measurements } from "./data/measurements.js";
import { THIN } from "./live.js";

const QUIET_MS = 60_000;

// { job, measured }. Raises what the gateway says where there is no such job.
export async function history(id) {
  await get(jobPath(id));
  return new Promise((resolve, reject) => {
    const measured = new Measurements(), source = new EventSource(`${jobPath(id)}/stream?thin=${THIN}`);
    let job = null;
    const end = (how, what) => {
      clearTimeout(limit);
      source.close();
      how(what);
    };
    const limit = setTimeout(() => end(reject, new Error(`The history of ${id} did not come within a minute.`)), QUIET_MS);
    for (const kind of ["step", "evaluation"]) source.addEventListener(kind, (message) => measured.add(kind, JSON.parse(message.data)));
    source.addEventListener("state", (message) => {
      ({ job } = JSON.parse(message.data));
    });
    source.addEventListener("live", () => end(resolve, { job, measured }));
    source.addEventListener("error", () => end(reject, new Error("The gateway went away. Reload the page.")));
  });
}

// Reads a job's history so far, downsampled, from its stream, and closes the stream.

import { Measurements } from "./data/measurements.js";
import { streamed } from "./stream.js";

// Returns { job, measured }. Raises `Refused` with the gateway's message if the job does not exist.
export async function history(id) {
  const measured = new Measurements(), stream = streamed(id);
  let job = null;
  for await (const messages of stream.pieces) {
    for (const [kind, data] of messages) {
      if (kind === "state") ({ job } = data);
      else if (kind === "live") return { job, measured };
      else if (kind === "step" || kind === "evaluation") measured.add(kind, data);
    }
  }
  throw new Error("The gateway went away. Reload the page.");
}

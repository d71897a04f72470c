// A job's history so far, thinned, read off its stream; the stream is then let go.

import { Measurements } from "./data/measurements.js";
import { streamed } from "./stream.js";

// { job, measured }. Raises what the gateway says where there is no such job.
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

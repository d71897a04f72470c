// Reads a job's event stream: many events at once, which takes a tenth of the time of an EventSource, which reads one by one. The
// page of a job requests its stream before the page's other modules are loaded.
//
//     this module ──request──► gateway: collects the past ┐
//     the other modules, the page's frame … ──────────────┴─► `streamed(id)`: takes the response to that request

import { jobPath, login, refused } from "./api.js";

const THIN = 300; // entries of each kind and worker: more than a chart has pixels for
const SILENT_MS = 30_000; // the gateway sends something every ten seconds

const page = location.pathname.match(/^\/jobs\/([^/]+)$/);
let early = page ? asked(decodeURIComponent(page[1])) : null;

// The gateway does not answer, or the stream broke.
export class Away extends Error {}

function asked(id) {
  const stopping = new AbortController();
  const answer = fetch(`${jobPath(id)}/stream?thin=${THIN}`, { signal: stopping.signal });
  answer.catch(() => null); // the caller of `streamed` gets the error
  return { id, answer, stop: () => stopping.abort() };
}

// { pieces, stop }: `pieces` yields lists of [kind, data] until the stream ends. Raises `Refused` with the gateway's message, and
// `Away` if the stream breaks, is stopped, or is silent for SILENT_MS.
export function streamed(id) {
  const { answer, stop } = early?.id === id ? early : asked(id);
  early = null;
  return { pieces: pieces(answer, stop), stop };
}

async function* pieces(answer, stop) {
  const response = await answer.catch(away);
  if (response.status === 401) login();
  if (!response.ok) throw await refused(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const silent = setTimeout(stop, SILENT_MS);
      const { value, done } = await reader.read().catch(away).finally(() => clearTimeout(silent));
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      yield blocks.map(read).filter(Boolean);
    }
  } finally {
    stop();
  }
}

function away(error) {
  throw new Away(error.message);
}

// Parses one server-sent event in the gateway's form; null for a comment.
function read(block) {
  const kind = block.match(/^event: (.*)$/m), data = block.indexOf("data: ");
  if (!kind) return null;
  return [kind[1], kind[1] === "done" ? null : JSON.parse(block.slice(data + 6))];
}

// A job's event stream, read as it comes: many events in one go, which is a tenth of the work of an EventSource's one by one.
// The page of a job asks for its stream before the page's other modules are there.
//
//     this module ──request──► gateway: gathers the past ─┐
//     the other modules, the page's frame … ──────────────┴─► `streamed(id)`: takes the answer that is under way

import { jobPath, login, refused } from "./api.js";

const THIN = 300; // entries of each kind and worker: more than a chart has pixels for
const SILENT_MS = 30_000; // the gateway speaks every ten seconds

const page = location.pathname.match(/^\/jobs\/([^/]+)$/);
let early = page ? asked(decodeURIComponent(page[1])) : null;

// The gateway does not answer, or no more.
export class Away extends Error {}

function asked(id) {
  const stopping = new AbortController();
  const answer = fetch(`${jobPath(id)}/stream?thin=${THIN}`, { signal: stopping.signal });
  answer.catch(() => null); // it is told to who takes it
  return { id, answer, stop: () => stopping.abort() };
}

// { pieces, stop }: `pieces` gives lists of [kind, data], until the stream ends. Raises `Refused` with the gateway's own words,
// and `Away` where it breaks off, is stopped, or is silent for SILENT_MS.
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

// One server-sent event as the gateway writes them; null for a comment.
function read(block) {
  const kind = block.match(/^event: (.*)$/m), data = block.indexOf("data: ");
  if (!kind) return null;
  return [kind[1], kind[1] === "done" ? null : JSON.parse(block.slice(data + 6))];
}

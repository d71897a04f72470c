// A job's event stream, kept: when the gateway goes away it is asked again until it answers, and the page says so. A page
// that nobody sees lets its stream go, because a browser opens six connections to a host at most.
//
//     open ──message──► on(kind, data) …  ──► "done": the job has ended
//       ▲                    │ error, or hidden for HIDDEN_MS
//       └── AGAIN_MS later, or seen again: `begin()` is called, and everything is told anew

import { get, jobPath, Refused } from "./api.js";
import { connection } from "./dom.js";

const KINDS = ["state", "event", "step", "evaluation", "update", "worker", "live"];
export const THIN = 400; // entries of each kind and worker: more than a chart has pixels for
const AGAIN_MS = 1000;
const TOO_MANY = 429;
const HIDDEN_MS = 60_000;

export class Live {
  #source = null;
  #over = false;
  #leaving = null;

  // `begin()` before the first message of each connection, `on(kind, data)` for each (`live`: the past is told), `refused(error)` when there is no such job
  constructor(id, { begin, on, refused }) {
    Object.assign(this, { id, begin, on, refused });
    document.addEventListener("visibilitychange", () => this.#seen());
    this.#open();
  }

  #open() {
    const source = new EventSource(`${jobPath(this.id)}/stream?thin=${THIN}`);
    this.#source = source;
    let begun = false;
    for (const kind of KINDS) {
      source.addEventListener(kind, (message) => {
        if (!begun) this.begin();
        begun = true;
        this.on(kind, JSON.parse(message.data));
      });
    }
    source.addEventListener("open", () => connection("live", "live"));
    source.addEventListener("done", () => this.#done());
    source.addEventListener("error", () => this.#lost());
  }

  #done() {
    this.#over = true;
    this.#source.close();
    connection("", "ended");
  }

  async #lost() {
    this.#close();
    connection("lost", "the gateway does not answer; trying again …");
    try {
      await get(jobPath(this.id));
    } catch (error) {
      if (error instanceof Refused && error.status < 500 && error.status !== TOO_MANY) return this.refused(error);
    }
    setTimeout(() => this.#source ?? this.#open(), AGAIN_MS);
  }

  #close() {
    this.#source?.close();
    this.#source = null;
  }

  #seen() {
    clearTimeout(this.#leaving);
    if (this.#over) return;
    if (!document.hidden) return this.#source ?? this.#open();
    this.#leaving = setTimeout(() => {
      this.#close();
      connection("", "paused while hidden");
    }, HIDDEN_MS);
  }
}

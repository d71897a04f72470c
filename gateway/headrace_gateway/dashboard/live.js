// A job's event stream, which reconnects: if the gateway does not answer, it tries again until it does, and the page shows
// that. A hidden page closes its stream, because a browser opens at most six connections to a host.
//
//     open ──pieces──► on(kind, data) …  ──► "done": the job has ended
//       ▲                    │ it breaks or ends before, or hidden for HIDDEN_MS
//       └── AGAIN_MS later, or visible again: `begin()` is called, and everything is sent anew

import { Refused } from "./api.js";
import { connection } from "./dom.js";
import { Away, streamed } from "./stream.js";

const AGAIN_MS = 1000;
const TOO_MANY = 429;
const HIDDEN_MS = 60_000;

export class Live {
  #stream = null;
  #over = false;
  #leaving = null;

  // `begin()` before the first message of each connection, `on(kind, data)` for each (`live`: the past is complete), `refused(error)` when there is no such job
  constructor(id, { begin, on, refused }) {
    Object.assign(this, { id, begin, on, refused });
    document.addEventListener("visibilitychange", () => this.#seen());
    this.#follow();
  }

  async #follow() {
    const stream = this.#stream = streamed(this.id);
    try {
      if (await this.#received(stream.pieces)) return this.#done();
    } catch (error) {
      if (error instanceof Refused && error.status < 500 && error.status !== TOO_MANY) return this.refused(error);
      if (!(error instanceof Refused || error instanceof Away)) throw error;
    }
    if (this.#stream !== stream) return; // closed while the page was hidden
    this.#stream = null;
    connection("lost", "the gateway does not answer; trying again …");
    setTimeout(() => this.#stream ?? this.#follow(), AGAIN_MS);
  }

  // Whether the stream reached its end.
  async #received(pieces) {
    let begun = false;
    for await (const messages of pieces) {
      if (!begun) this.begin();
      if (!begun) connection("live", "live");
      begun = true;
      for (const [kind, data] of messages) {
        if (kind === "done") return true;
        this.on(kind, data);
      }
    }
    return false;
  }

  #done() {
    this.#over = true;
    connection("", "ended");
  }

  #seen() {
    clearTimeout(this.#leaving);
    if (this.#over) return;
    if (!document.hidden) return this.#stream ?? this.#follow();
    this.#leaving = setTimeout(() => {
      this.#stream?.stop();
      this.#stream = null;
      connection("", "paused while hidden");
    }, HIDDEN_MS);
  }
}

// A job's event stream, kept: when the gateway goes away it is asked again until it answers, and the page says so. A page
// that nobody sees lets its stream go, because a browser opens six connections to a host at most.
//
//     open ──pieces──► on(kind, data) …  ──► "done": the job has ended
//       ▲                    │ it breaks or ends before, or hidden for HIDDEN_MS
//       └── AGAIN_MS later, or seen again: `begin()` is called, and everything is told anew

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

  // `begin()` before the first message of each connection, `on(kind, data)` for each (`live`: the past is told), `refused(error)` when there is no such job
  constructor(id, { begin, on, refused }) {
    Object.assign(this, { id, begin, on, refused });
    document.addEventListener("visibilitychange", () => this.#seen());
    this.#follow();
  }

  async #follow() {
    const stream = this.#stream = streamed(this.id);
    try {
      if (await this.#told(stream.pieces)) return this.#done();
    } catch (error) {
      if (error instanceof Refused && error.status < 500 && error.status !== TOO_MANY) return this.refused(error);
      if (!(error instanceof Refused || error instanceof Away)) throw error;
    }
    if (this.#stream !== stream) return; // let go while nobody sees the page
    this.#stream = null;
    connection("lost", "the gateway does not answer; trying again …");
    setTimeout(() => this.#stream ?? this.#follow(), AGAIN_MS);
  }

  // Whether it was told to its end.
  async #told(pieces) {
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

// Polls a part of a job's state that no stream sends, every few seconds while the page is visible and the job has not ended.

import { get, jobPath } from "./api.js";

const EVERY_MS = 4000;

export class Polled {
  #timer = null;
  #ended = false;

  // `what`: the last part of the route; calls `found(answer)` for each answer, `failed(message)` for each error; polling continues
  // after both
  constructor(id, what, found, failed) {
    Object.assign(this, { path: `${jobPath(id)}/${what}`, found, failed });
    this.ask();
  }

  // The job has ended: polls once more.
  end() {
    if (this.#ended) return;
    this.#ended = true;
    this.ask();
  }

  async ask() {
    clearTimeout(this.#timer);
    try {
      if (!document.hidden) this.found(await get(this.path));
    } catch (error) {
      this.failed(error.message);
    }
    if (!this.#ended) this.#timer = setTimeout(() => this.ask(), EVERY_MS);
  }
}

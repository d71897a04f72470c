// Something of a job that no stream tells: asked for every few seconds while somebody looks and the job goes on.

import { get, jobPath } from "./api.js";

const EVERY_MS = 4000;

export class Polled {
  #timer = null;
  #ended = false;

  // `what`: the last part of the route; `found(answer)` for each answer, `failed(message)` for none: both are followed by
  // another try
  constructor(id, what, found, failed) {
    Object.assign(this, { path: `${jobPath(id)}/${what}`, found, failed });
    this.ask();
  }

  // The job has ended: there is one last answer.
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

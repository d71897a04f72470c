// The list of jobs, newest first, asked for every few seconds.

import { clock, connection, ended, h } from "./dom.js";

const EVERY_MS = 3000;

export async function showJobs(page) {
  try {
    const jobs = await get("/v1/fine_tuning/jobs?limit=100");
    const versions = await Promise.all(jobs.data.map((job) => stepsDone(job)));
    page.replaceChildren(jobs.data.length ? list(jobs.data, versions) : empty());
    connection("live", "live");
  } catch (error) {
    connection("lost", `no connection: ${error.message}`);
  }
  setTimeout(() => showJobs(page), EVERY_MS);
}

async function get(path) {
  const response = await fetch(path);
  const body = await response.json();
  if (!response.ok) throw new Error(body.error.message);
  return body;
}

async function stepsDone(job) {
  return job.status === "succeeded" ? job.total_steps : (await get(`/v1/fine_tuning/jobs/${job.id}/ledger`)).version;
}

function list(jobs, versions) {
  return h("div", { class: "list" }, jobs.map((job, i) => row(job, versions[i])));
}

function row(job, version) {
  const created = new Date(job.created_at * 1000);
  const settings = job.method.reinforcement.hyperparameters;
  const share = job.total_steps ? (100 * version) / job.total_steps : 0;
  const bar = h("i");
  bar.style.width = `${share}%`;
  return h("a", { class: "card job", href: `/jobs/${job.id}` },
    h("div", {},
      h("div", { class: "name" }, h("span", {}, job.model), h("span", { class: `pill ${job.status}` }, job.status.replace("_", " "))),
      h("div", { class: "meta" }, `${settings.algorithm} · ${job.suffix ? `${job.suffix} · ` : ""}${job.id}`)),
    h("div", {},
      h("div", { class: "steps" },
        h("span", {}, `step ${version} of ${job.total_steps}`),
        h("span", {}, ended(job) ? created.toLocaleDateString() : `since ${clock(job.created_at)}`)),
      h("div", { class: `bar ${job.status}` }, bar)));
}

function empty() {
  return h("div", { class: "card empty" },
    h("p", {}, "No job yet. Submit one with the OpenAI client, with curl, or from a terminal:"),
    h("code", {}, "headrace train examples/adder/job.toml"));
}

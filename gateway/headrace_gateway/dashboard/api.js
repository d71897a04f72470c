// Requests to the gateway, on whose origin the page is. Who is not known is asked to log in.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const get = (path) => ask("GET", path);
export const post = (path, body) => ask("POST", path, body);
export const patch = (path, body) => ask("PATCH", path, body);

// Raises `Refused` with the gateway's own words, and a TypeError where it does not answer.
async function ask(method, path, body) {
  const options = { method };
  if (body !== undefined) Object.assign(options, { body: JSON.stringify(body), headers: { "content-type": "application/json" } });
  const response = await fetch(path, options);
  if (response.status === 401) login();
  const answered = response.headers.get("content-type")?.includes("json") ? await response.json() : null;
  if (!response.ok) throw new Refused(response.status, answered?.error?.message ?? `the gateway answered ${response.status}`);
  return answered;
}

function login() {
  location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
}

let described = null;

// Whether the gateway has this route, as its own description says; asked once.
export async function offers(route) {
  described ??= get("/openapi.json");
  try {
    return route in (await described).paths;
  } catch (error) {
    described = null;
    throw error;
  }
}

export const jobPath = (id) => `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;

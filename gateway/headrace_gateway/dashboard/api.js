// Requests to the gateway that serves the page. If the gateway requires a login, the login page opens.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const get = (path) => ask("GET", path);
export const post = (path, body) => ask("POST", path, body);
export const patch = (path, body) => ask("PATCH", path, body);

// Raises `Refused` with the gateway's message, and a TypeError if the gateway does not answer.
async function ask(method, path, body) {
  const options = { method };
  if (body !== undefined) Object.assign(options, { body: JSON.stringify(body), headers: { "content-type": "application/json" } });
  const response = await fetch(path, options);
  if (response.status === 401) login();
  if (!response.ok) throw await refused(response);
  return isJson(response) ? response.json() : null;
}

// The gateway's error message for a request that it refused.
export async function refused(response) {
  const said = isJson(response) ? await response.json() : null;
  return new Refused(response.status, said?.error?.message ?? `the gateway answered ${response.status}`);
}

const isJson = (response) => response.headers.get("content-type")?.includes("json");

export function login() {
  location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
}

export const jobPath = (id) => `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;

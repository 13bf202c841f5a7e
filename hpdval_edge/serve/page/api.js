// Talks to the server; every failure is an Error whose message is a sentence for people.

const TOKEN = "hpedge-token";
let askForToken = async () => null;

export function onTokenNeeded(ask) {
  askForToken = ask;
}

export async function call(path, options = {}) {
  for (let refused = false; ; refused = true) {
    const response = await send(path, options);
    const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}.` }));
    if (response.ok) return answer;
    if (response.status !== 401) throw new Error(answer.error);
    const token = await askForToken(refused || sessionStorage.getItem(TOKEN) !== null);
    if (!token) throw new Error(answer.error);
    sessionStorage.setItem(TOKEN, token);
  }
}

async function send(path, options) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is hpedge serve still running?");
  }
}

export function classify(picture, { signal, heatMap } = {}) {
  const form = new FormData();
  form.append("file", picture, picture.name || "picture");
  if (heatMap !== undefined) {
    form.append("heat_map", heatMap);
    form.append("scores", "chosen");
  }
  return call("v1/classify", { method: "POST", body: form, signal });
}

export function edit(verb, body) {
  return call(`v1/labels/${verb}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

export function addFile(file) {
  const form = new FormData();
  form.append("file", file, file.name);
  return call("v1/labels/add", { method: "POST", body: form });
}

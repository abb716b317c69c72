// The server's side of the page: the token, requests, and the live stream, which comes back by itself.

const SILENCE_MS = 4000; // the server says something each second
const RETRY_MS = [500, 1000, 2000, 4000];
const TOKEN = "edgelab-token";

// The part after # never leaves the browser. It goes from the address bar, so that a photo of it tells nothing.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem(TOKEN, given);
  history.replaceState(null, "", location.pathname);
}

export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** A response, or the server's own words as a Refusal. */
export async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch {
    throw new Refusal(0, "the demo cannot be reached; is it still running?");
  }
  if (response.ok) return response;
  let text = `the demo answered with status ${response.status}`;
  try {
    text = (await response.json()).error;
  } catch {
    // not ours: a proxy's
  }
  throw new Refusal(response.status, text);
}

/**
 * Follow the stream for ever. onMessage(json, jpeg or null) for each message; onState("live" | "lost", why);
 * onToken() resolves once another token is set. A hidden page does not watch, so that nothing is encoded for it.
 */
export async function follow(onMessage, onState, onToken) {
  let failures = 0;
  for (;;) {
    await visible();
    const stop = new AbortController();
    const hide = () => document.hidden && stop.abort();
    document.addEventListener("visibilitychange", hide);
    let silence;
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(() => stop.abort(), SILENCE_MS);
    };
    try {
      alive();
      const response = await ask("stream", { signal: stop.signal });
      await read(response.body.getReader(), (json, jpeg) => {
        alive();
        failures = 0;
        onState("live", "");
        onMessage(json, jpeg);
      });
    } catch (error) {
      if (error.status === 401) {
        await onToken();
        continue;
      }
      if (document.hidden) continue;
      onState("lost", error.status ? error.message : "connection lost, trying again");
    } finally {
      clearTimeout(silence);
      document.removeEventListener("visibilitychange", hide);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]));
    failures += 1;
  }
}

function visible() {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    look();
  });
}

/** Cut the stream into messages: two lengths as big-endian uint32, JSON, JPEG. Throws at its end. */
async function read(reader, give) {
  let held = new Uint8Array(0);
  const take = async (count) => {
    while (held.length < count) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the stream has ended");
      const joined = new Uint8Array(held.length + value.length);
      joined.set(held);
      joined.set(value, held.length);
      held = joined;
    }
    const taken = held.slice(0, count);
    held = held.subarray(count);
    return taken;
  };
  for (;;) {
    const lengths = new DataView((await take(8)).buffer);
    const text = new TextDecoder().decode(await take(lengths.getUint32(0)));
    const jpeg = lengths.getUint32(4) ? await take(lengths.getUint32(4)) : null;
    give(JSON.parse(text), jpeg);
  }
}

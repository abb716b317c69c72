// The demo's page: the newest picture with what each side says of it, uploads, switching.

import { LaneView, number, set } from "./lane.js";
import { Refusal, ask, follow, setToken } from "./stream.js";

const $ = (id) => document.getElementById(id);
const pen = $("picture").getContext("2d");
const lanes = [];
let limits = { bytes: 16 << 20, pixels: 16e6 };
let still = null; // the upload that is on show, as {blob, name}; null: live
let live = null; // the last message of the stream that has a picture
let next = null; // the newest message, while an older one is being decoded
let decoding = false;
let agreed = { of: "", yes: 0, all: 0, number: 0 };

document.body.classList.toggle("fingers", navigator.maxTouchPoints > 0);
follow(receive, connection, askToken);

async function receive(json, jpeg) {
  next = { json, jpeg: jpeg ?? next?.jpeg ?? null };
  if (decoding) return;
  decoding = true;
  while (next) {
    const { json: message, jpeg: picture } = next;
    next = null;
    // Decoded first and then shown with its numbers, so that both are of the same picture.
    const bitmap = picture && (await createImageBitmap(new Blob([picture], { type: "image/jpeg" })));
    show(message, bitmap);
  }
  decoding = false;
}

function show({ title, limits: newLimits, shown, status }, bitmap) {
  limits = newLimits;
  document.title = `${title} · edgelab demo`;
  set($("title"), title);
  set($("source"), status.source);
  set($("message"), status.message ?? "");
  $("message").hidden = !status.message;
  set($("fps"), status.fps === null ? "–" : number(status.fps));
  power(status);
  sides(status);
  count(shown, status);
  if (shown) live = shown;
  if (bitmap && !still) draw(bitmap);
  bitmap?.close();
  if (!still && shown) answers(shown, true, bitmap !== null);
  $("live").hidden = !(still && live);
  badge(status.state);
}

function power({ watts, watts_of: rail, watts_missing: missing }) {
  const known = watts !== null;
  set($("watts-of"), known && rail ? `Power, ${rail}` : "Power");
  set($("watts"), known ? `${number(watts)} W` : "–");
  set($("no-watts"), missing ?? "");
  $("no-watts").parentElement.hidden = known || !missing;
}

function sides(status) {
  while (lanes.length < status.lanes.length) {
    const side = lanes.length;
    lanes.push(new LaneView($("lanes"), (lane) => change(side, lane)));
  }
  while (lanes.length > status.lanes.length) lanes.pop().root.remove();
  lanes.forEach((view, i) => view.status(status.lanes[i], status.choices, status.lane_fps[i] ?? null));
}

/** How often both sides have said the same, since the page was opened or a side was switched. */
function count(shown, status) {
  const of = JSON.stringify(status.lanes);
  if (of !== agreed.of) agreed = { of, yes: 0, all: 0, number: agreed.number };
  if (!shown || shown.agree === null || shown.number === agreed.number) return;
  agreed.number = shown.number;
  agreed.all += 1;
  agreed.yes += shown.agree ? 1 : 0;
}

/** fresh: it is another picture than before. */
function answers(shown, isLive, fresh) {
  if (shown.answers.length !== lanes.length) return; // a switch is under way
  if (!isLive || fresh) shown.answers.forEach((answer, i) => lanes[i].answer(answer, isLive));
  const most = 1.1 * Math.max(...lanes.flatMap((lane) => lane.latencies));
  for (const lane of lanes) lane.trace(most);
  set($("preparing"), shown.preprocess_ms === null ? "–" : `${number(shown.preprocess_ms)} ms`);
  verdict(shown, isLive);
}

function verdict({ answers: all, agree }, isLive) {
  const firsts = all.map((answer) => answer.top[0]?.name);
  $("verdict").dataset.agree = agree;
  const words = all.map((answer, i) => `${answer.precision.toUpperCase()} says ${firsts[i] ?? "nothing"}`);
  const said = agree === false ? words.join(", ") : (firsts.find(Boolean) ?? "no answer");
  set($("said"), said);
  const notes = [];
  if (agree !== null && isLive) notes.push(`agree on ${agreed.yes} of ${agreed.all}`);
  if (agree !== null && !isLive) notes.push(agree ? "both say so" : "they differ");
  const [a, b] = lanes.map((lane) => lane.shown);
  if (lanes.length === 2 && a && b) {
    const [quick, times] = a > b ? [lanes[1], a / b] : [lanes[0], b / a];
    if (lanes[0].precision !== lanes[1].precision) notes.push(`${quick.precision} ${times.toFixed(2)}× as fast`);
  }
  set($("agreed"), notes.join(" · "));
  const label = `picture: ${said}`;
  if ($("picture").getAttribute("aria-label") !== label) $("picture").setAttribute("aria-label", label);
}

function draw(bitmap) {
  // Not larger than a screen shows: a photo of 12 megapixels would take 48 MB on a phone.
  const scale = Math.min(1, 1920 / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [Math.max(1, bitmap.width * scale), Math.max(1, bitmap.height * scale)].map(Math.round);
  if (pen.canvas.width !== width) pen.canvas.width = width;
  if (pen.canvas.height !== height) pen.canvas.height = height;
  pen.drawImage(bitmap, 0, 0, width, height);
  $("empty").hidden = true;
}

function badge(state) {
  $("badge").hidden = !still && !live;
  const words = { playing: "live", waiting: "waiting", ended: "ended", failed: "stopped" };
  set($("badge"), still ? `your picture: ${still.name}` : words[state]);
}

function connection(state, why) {
  $("connection").dataset.state = state;
  set($("connection"), state === "live" ? "connected" : why);
}

function alert(text) {
  $("alert").hidden = !text;
  set($("alert").firstElementChild, text ?? "");
}

async function change(side, lane) {
  lanes[side].busy(true);
  alert(null);
  try {
    await ask("switch", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ side, ...lane }),
    });
    lanes[side].runs = JSON.stringify(lane);
    lanes[side].latencies = [];
    if (still) await classify(still.blob, still.name);
  } catch (error) {
    tell(error);
  }
  lanes[side].busy(false);
}

/** Have a file classified and put it on the stage; what was there stays where that fails. */
async function classify(file, name) {
  alert(null);
  document.body.classList.add("sending");
  try {
    const bitmap = await decode(file);
    const blob = bitmap ? await fitting(file, bitmap) : file;
    const response = await ask("classify", { method: "POST", headers: { "Content-Type": blob.type }, body: blob });
    const { shown } = await response.json();
    still = { blob, name };
    if (bitmap) draw(bitmap);
    answers(shown, false, true);
    $("live").hidden = !live;
    badge("");
    bitmap?.close();
  } catch (error) {
    tell(error);
  }
  document.body.classList.remove("sending");
}

/** null where the browser cannot read it: the server then says what is wrong. */
async function decode(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    return null;
  }
}

/** The file itself, or a smaller JPEG of it where the server would not take so much. */
async function fitting(file, bitmap) {
  const pixels = bitmap.width * bitmap.height;
  if (pixels <= limits.pixels && file.size <= limits.bytes) return file;
  const scale = Math.min(1, 2048 / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width * scale, bitmap.height * scale].map((side) => Math.max(1, Math.round(side)));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
}

function tell(error) {
  if (!(error instanceof Refusal)) throw error;
  alert(error.message);
}

function askToken() {
  connection("lost", "needs its token");
  if (!$("ask").open) $("ask").showModal();
  return new Promise((resolve) => {
    $("ask").addEventListener("close", () => { setToken($("token").value.trim()); $("token").value = ""; resolve(); }, { once: true });
  });
}

for (const id of ["file", "camera"]) {
  $(id).addEventListener("change", (event) => {
    const file = event.target.files[0];
    event.target.value = ""; // the same file may be chosen again
    if (file) classify(file, file.name);
  });
}
$("live").addEventListener("click", () => { still = null; alert(null); $("live").hidden = true; });
$("alert").querySelector("button").addEventListener("click", () => alert(null));
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const file = event.dataTransfer.files[0];
  if (file) classify(file, file.name);
});

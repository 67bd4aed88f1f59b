// Asks the server every two seconds and draws what it says.

import { bars, lines, shares, short } from "./charts.js";
import { History } from "./metrics.js";
import { driftRows, make, modelRows, routes } from "./models.js";
import { playground } from "./playground.js";

const EVERY_MS = 2000;
const byId = (id) => document.getElementById(id);
const history = new History();
let models = [];
let shownForm = null;

/** Requests with the key, where one is needed. It stays in this tab. */
const ask = {
  async fetch(path, options = {}) {
    const key = sessionStorage.getItem("ferry-key");
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status === 401) byId("key-field").hidden = false;
    const text = await response.text();
    let message = text;
    try {
      const body = JSON.parse(text);
      message = body.message ?? body.error?.message ?? text;
    } catch { /* not JSON: as it is */ }
    throw new Error(message || `${path}: ${response.status}`);
  },
  async post(path, body) {
    return this.fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  },
  async json(path, body) {
    return (await this.post(path, body)).json();
  },
  /** Server-sent events, as they come. */
  async *events(path, body) {
    const reader = (await this.post(path, body)).body.pipeThrough(new TextDecoderStream()).getReader();
    let waiting = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      waiting += value;
      const events = waiting.split("\n\n");
      waiting = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        const parsed = JSON.parse(data);
        if (parsed.error) throw new Error(parsed.error.message);
        yield parsed;
      }
    }
  },
};

function chosen() {
  return byId("model").value;
}

/** Metrics of the chosen model, or of all. */
function ofModel(labels) {
  return !chosen() || labels.model === chosen();
}

function drawModels() {
  byId("models").tBodies[0].replaceChildren(...modelRows(models));
  byId("routes").replaceChildren(...routes(models));
  const select = byId("model");
  const names = models.filter(({ task }) => task).map(({ name }) => name);
  if ([...select.options].map(({ value }) => value).join() !== ["", ...names].join()) {
    const before = select.value;
    select.replaceChildren(make("option", { value: "" }, "all"), ...names.map((name) => make("option", { value: name }, name)));
    select.value = names.includes(before) ? before : "";
  }
  const model = models.find(({ name }) => name === chosen());
  const form = model ? `${model.name} ${model.task}` : "";
  if (form !== shownForm) {
    shownForm = form;
    playground(byId("playground"), byId("answer"), ask, model?.name, model?.task);
  }
  byId("live-of").textContent = byId("playground-of").textContent = chosen() || "all models";
  if (!chosen()) byId("playground-of").textContent = "";
}

function tile(value, label) {
  return make("div", { className: "tile" }, make("b", {}, value), make("span", {}, label));
}

function drawLive() {
  const last = (points) => points.at(-1)?.value ?? null;
  const milliseconds = (points) => points.map(({ at, value }) => ({ at, value: value === null ? null : value * 1000 }));
  const requests = history.rates("ferry_requests_total", ofModel);
  const p50 = milliseconds(history.quantiles("ferry_request_seconds", ofModel, 0.5));
  const p99 = milliseconds(history.quantiles("ferry_request_seconds", ofModel, 0.99));
  const read = history.rates("ferry_tokens_total", ofModel);
  const generated = history.rates("ferry_generated_tokens_total", ofModel);
  const failed = history.rates("ferry_requests_total", (labels) => ofModel(labels) && labels.outcome !== "ok");
  const ttft = history.quantiles("ferry_time_to_first_token_seconds", ofModel, 0.5);
  byId("tiles").replaceChildren(
    tile(short(last(requests)), "requests/s"),
    tile(`${short(last(p50))} ms`, "p50"),
    tile(`${short(last(p99))} ms`, "p99"),
    tile(short(last(failed)), "not answered/s"),
    tile(short(history.now("ferry_waiting_rows", ofModel)), "rows waiting"),
    tile(short(last(generated)), "tokens generated/s"),
    tile(ttft.length && last(ttft) !== null ? `${short(last(ttft) * 1000)} ms` : "–", "TTFT p50"),
    tile(short(history.now("ferry_sequences", (labels) => ofModel(labels) && labels.state === "running")), "sequences"));
  lines(byId("throughput"), [{ name: "a", points: requests }]);
  lines(byId("latency"), [{ name: "a", points: p50 }, { name: "b", points: p99 }]);
  lines(byId("tokens"), [{ name: "a", points: read }, { name: "b", points: generated }]);
  bars(byId("batch"), history.buckets("ferry_batch_rows", ofModel), (below) => short(below));
  bars(byId("queue"), history.buckets("ferry_queue_delay_seconds", ofModel), (below) =>
    below < 1e-3 ? `${short(below * 1e6)}µ` : below < 1 ? `${short(below * 1e3)}m` : `${short(below)}s`);
  const blocks = (state) => history.now("ferry_cache_blocks", (labels) => ofModel(labels) && labels.state === state);
  shares(byId("blocks"), [
    { name: "a", value: blocks("used"), label: "used" },
    { name: "c", value: blocks("cached"), label: "cached" },
    { name: "d", value: blocks("free"), label: "free" },
  ]);
  const drift = driftRows(history.latest);
  byId("drift-section").hidden = !drift.length;
  byId("drift").tBodies[0].replaceChildren(...drift);
}

async function look() {
  try {
    const ready = await fetch("/health/ready");
    byId("health").textContent = (await ready.text()).trim();
    byId("health").className = `pill ${ready.ok ? "ready" : "loading"}`;
    models = (await (await ask.fetch("/dashboard/status")).json()).models;
    drawModels();
    history.add(await (await ask.fetch("/metrics")).text());
    drawLive();
    byId("note").textContent = "";
  } catch (error) {
    byId("note").textContent = error instanceof TypeError ? "the server can't be reached" : error.message;
    if (error instanceof TypeError) byId("health").className = "pill failed";
  }
  setTimeout(look, EVERY_MS);
}

byId("model").addEventListener("change", () => { drawModels(); drawLive(); });
byId("key").addEventListener("change", (event) => sessionStorage.setItem("ferry-key", event.target.value));
look();

// Lines, bars and shares as SVG, drawn anew at each scrape.

const WIDTH = 400, HEIGHT = 130, LEFT = 44, BOTTOM = 16, TOP = 6;
const NAMESPACE = "http://www.w3.org/2000/svg";

/** A number for people: three digits, and k, M, G. */
export function short(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return `${trim(value / unit)}${letter}`;
  }
  return trim(value);
}

function trim(value) {
  return Math.abs(value) >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toPrecision(2);
}

function element(parent, name, attributes, text) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function clear(svg) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
}

function empty(svg, text) {
  clear(svg);
  element(svg, "text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, text);
}

/** A round number at or above `value`; 1 for nothing. */
function ceiling(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * unit).find((step) => step >= value);
}

/** Lines over time: [{name: "a", points: [{at, value}]}]; null values leave a gap. */
export function lines(svg, series) {
  const points = series.flatMap(({ points }) => points);
  const values = points.map(({ value }) => value).filter((value) => value !== null);
  if (values.length < 2) return empty(svg, "waiting for two readings");
  clear(svg);
  const top = ceiling(Math.max(...values));
  const [from, to] = [points[0].at, Math.max(...points.map(({ at }) => at))];
  const x = (at) => LEFT + ((at - from) / Math.max(to - from, 1)) * (WIDTH - LEFT - 4);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  for (const part of [0, 0.5, 1]) {
    element(svg, "line", { class: "grid", x1: LEFT, x2: WIDTH - 4, y1: y(part * top), y2: y(part * top) });
    element(svg, "text", { x: LEFT - 6, y: y(part * top) + 3, "text-anchor": "end" }, short(part * top));
  }
  element(svg, "text", { x: LEFT, y: HEIGHT - 3 }, `${Math.round((to - from) / 1000)} s ago`);
  element(svg, "text", { x: WIDTH - 4, y: HEIGHT - 3, "text-anchor": "end" }, "now");
  for (const { name, points } of series) {
    let path = "", drawing = false;
    for (const { at, value } of points) {
      if (value === null) { drawing = false; continue; }
      path += `${drawing ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      drawing = true;
    }
    element(svg, "path", { class: `line ${name}`, d: path, "vector-effect": "non-scaling-stroke" });
  }
}

/** Bars of a histogram's buckets, empty ones at both ends left out. */
export function bars(svg, buckets, label) {
  const filled = buckets.map(({ count }) => count > 0);
  if (!filled.includes(true)) return empty(svg, "none");
  clear(svg);
  const shown = buckets.slice(Math.max(filled.indexOf(true) - 1, 0), filled.lastIndexOf(true) + 2);
  const most = Math.max(...shown.map(({ count }) => count));
  const step = (WIDTH - 8) / shown.length;
  shown.forEach(({ below, count }, index) => {
    const height = (count / most) * (HEIGHT - BOTTOM - 14);
    const bar = element(svg, "rect", {
      class: "bar", x: 4 + index * step + 1, y: HEIGHT - BOTTOM - height,
      width: Math.max(step - 2, 1), height,
    });
    element(bar, "title", {}, `up to ${label(below)}: ${count}`);
    const every = Math.ceil(shown.length / 9);
    if (index % every === 0) {
      element(svg, "text", { x: 4 + (index + 0.5) * step, y: HEIGHT - 3, "text-anchor": "middle" }, label(below));
    }
  });
}

/** Shares of a whole, side by side: [{name: "a", value, label}]. */
export function shares(svg, parts) {
  const total = parts.reduce((sum, { value }) => sum + value, 0);
  if (!total) return empty(svg, "no KV cache");
  clear(svg);
  let left = 4;
  for (const { name, value, label } of parts) {
    const width = (value / total) * (WIDTH - 8);
    element(svg, "rect", { class: `fill-${name}`, x: left, y: 40, width, height: 30 });
    if (width > 50) element(svg, "text", { x: left + 4, y: 86 }, `${label} ${short(value)}`);
    left += width;
  }
}

// Reads Prometheus' text format, keeps the last minutes of it, and tells rates and quantiles.

const KEEP_MS = 180_000;

/** One scrape: name -> list of {labels, value}. */
export function parse(text) {
  const families = new Map();
  for (const line of text.split("\n")) {
    if (!line || line[0] === "#") continue;
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, key, value] of (found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[key] = value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
    }
    const value = found[3] === "+Inf" ? Infinity : Number(found[3]);
    if (!families.has(found[1])) families.set(found[1], []);
    families.get(found[1]).push({ labels, value });
  }
  return families;
}

/** The last scrapes, newest last. */
export class History {
  scrapes = [];

  add(text, at = Date.now()) {
    this.scrapes.push({ at, families: parse(text) });
    while (this.scrapes.length > 2 && at - this.scrapes[0].at > KEEP_MS) this.scrapes.shift();
  }

  get latest() {
    return this.scrapes.at(-1)?.families ?? new Map();
  }

  /** Sum of what `match` lets through, in a scrape. */
  static sum(families, name, match) {
    let sum = 0;
    for (const { labels, value } of families.get(name) ?? []) if (match(labels)) sum += value;
    return sum;
  }

  now(name, match) {
    return History.sum(this.latest, name, match);
  }

  /** Per second, between each two neighbouring scrapes: [{at, value}]. */
  rates(name, match) {
    return this.#pairs().map(([before, after]) => {
      const change = History.sum(after.families, name, match) - History.sum(before.families, name, match);
      return { at: after.at, value: Math.max(change, 0) / ((after.at - before.at) / 1000) };
    });
  }

  /** A quantile of a histogram between each two neighbouring scrapes; null where nothing came. */
  quantiles(name, match, share) {
    return this.#pairs().map(([before, after]) => ({
      at: after.at,
      value: quantile(change(before.families, after.families, name, match), share),
    }));
  }

  /** A histogram's buckets over the last `ms`: [{below, count}]. */
  buckets(name, match, ms = 60_000) {
    const last = this.scrapes.at(-1);
    const first = this.scrapes.find(({ at }) => last && last.at - at <= ms);
    if (!last || first === last) return [];
    return change(first.families, last.families, name, match);
  }

  #pairs() {
    return this.scrapes.slice(1).map((scrape, index) => [this.scrapes[index], scrape]);
  }
}

function change(before, after, name, match) {
  const cumulative = (families) => {
    const sums = new Map();
    for (const { labels, value } of families.get(`${name}_bucket`) ?? []) {
      if (!match(labels)) continue;
      const below = labels.le === "+Inf" ? Infinity : Number(labels.le);
      sums.set(below, (sums.get(below) ?? 0) + value);
    }
    return sums;
  };
  const [old, now] = [cumulative(before), cumulative(after)];
  let under = 0;
  return [...now.keys()].sort((a, b) => a - b).map((below) => {
    const total = Math.max(now.get(below) - (old.get(below) ?? 0), under);
    const count = total - under;
    under = total;
    return { below, count };
  });
}

/** By linear interpolation inside the bucket, as Prometheus does; null without values. */
export function quantile(buckets, share) {
  const total = buckets.reduce((sum, { count }) => sum + count, 0);
  if (!total) return null;
  let [under, above] = [0, 0];
  for (const { below, count } of buckets) {
    if (under + count >= share * total && count > 0) {
      if (below === Infinity) return above;
      return above + (below - above) * ((share * total - under) / count);
    }
    under += count;
    if (below !== Infinity) above = below;
  }
  return above;
}

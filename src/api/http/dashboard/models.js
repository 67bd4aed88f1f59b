// Tables of models, of routes and trials, of drift.

/** An element with text, children or both: never markup from outside. */
export function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const state = (name) => name.replace("VERSION_STATE_", "").toLowerCase();

function bytes(count) {
  if (!count) return "–";
  const [unit, name] = count >= 2 ** 30 ? [2 ** 30, "GiB"] : [2 ** 20, "MiB"];
  return `${(count / unit).toFixed(1)} ${name}`;
}

export function modelRows(models) {
  return models.flatMap((model) => {
    const rows = model.versions.map((version, index) => {
      const traffic = version.shadow ? "shadow" : version.percent ? `${version.percent} %` : "–";
      const name = state(version.state);
      return make("tr", {},
        make("td", {}, index ? "" : model.name, index || !model.task ? "" : make("small", {}, ` ${model.task}`)),
        make("td", {}, String(version.version)),
        make("td", { className: name }, name),
        make("td", { className: "n" }, traffic),
        make("td", { className: "n" }, String(version.in_flight)),
        make("td", { className: "n" }, String(version.answered)),
        make("td", { className: version.failed ? "n failed" : "n" }, String(version.failed)),
        make("td", { className: "n" }, bytes(version.memory_bytes)),
        make("td", {}, version.reason || (version.load_ms ? `loaded in ${version.load_ms} ms` : "")));
    });
    if (rows.length) return rows;
    return [make("tr", {}, make("td", {}, model.name), make("td", { colSpan: 8, className: "absent" }, model.reason || "no version"))];
  });
}

/** Where each model's requests go, and how its candidates compare. */
export function routes(models) {
  const served = models.filter(({ route }) => route);
  if (!served.length) return [make("p", { className: "absent" }, "nothing is served")];
  // Where one version has all the traffic and nothing was decided there is nothing to tell.
  const shown = served.filter(({ route, decisions }) =>
    route.canary?.version || route.shadow?.version || Object.keys(route.labels).length || decisions.length);
  const plain = served.length - shown.length;
  const rest = plain ? [make("p", { className: "absent" }, `${plain} model${plain === 1 ? "" : "s"} without a trial`)] : [];
  return [...shown.map((model) => {
    const { route } = model;
    const parts = [`version ${route.stable} serves`];
    if (route.canary?.version) parts.push(`${route.canary.percent} % go to version ${route.canary.version} (canary)`);
    if (route.shadow?.version) parts.push(`${route.shadow.percent} % are shown to version ${route.shadow.version} (shadow)`);
    for (const [label, version] of Object.entries(route.labels)) parts.push(`'${label}' is ${version}`);
    const figures = model.versions.flatMap(({ version, comparison }) =>
      comparison.map(({ name, value }) => make("tr", {},
        make("td", {}, String(version)), make("td", {}, name),
        make("td", { className: "n" }, value.toPrecision(5)))));
    const decisions = model.decisions.slice(-3).reverse().map(({ at, action, by, version, reason }) =>
      make("li", {}, `${at} ${action} of version ${version} by ${by}${reason ? `: ${reason}` : ""}`));
    return make("div", {},
      make("p", {}, make("b", {}, model.name), `: ${parts.join(", ")}`),
      figures.length ? make("table", {}, make("tbody", {}, ...figures)) : null,
      decisions.length ? make("ul", { className: "decisions" }, ...decisions) : null);
  }), ...rest];
}

/** Every gauge of drift there is. */
export function driftRows(families) {
  const rows = [];
  for (const [name, values] of families) {
    if (!name.startsWith("ferry_drift_") || /_(total|bucket|sum|count)$/.test(name)) continue;
    for (const { labels, value } of values) {
      const { model = "", version = "", ...rest } = labels;
      const what = [name.replace("ferry_drift_", ""), ...Object.values(rest)].join(" ");
      rows.push(make("tr", {}, make("td", {}, model), make("td", {}, version), make("td", {}, what),
        make("td", { className: "n" }, value.toPrecision(4))));
    }
  }
  return rows;
}

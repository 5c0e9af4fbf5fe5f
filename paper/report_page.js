"use strict";
// Draws the page that paper/report.py has filled with data. Text goes into text nodes alone
// (`element` below), so nothing that a model wrote can run.

const page = JSON.parse(document.getElementById("page").textContent);
const packed = JSON.parse(document.getElementById("tuples").textContent);
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b1f24"];
const FILTERS = ["all", "solved", "refused", "duplicate", "cut", "unparsed"];
const LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const SVG = "http://www.w3.org/2000/svg";

// --------------------------------------------------------------------------------------------
// Elements

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const child of children) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function drawn(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function picture(width, height, label) {
  return drawn("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label});
}

function shown(value, digits) {
  if (typeof value !== "number") return value === null || value === undefined ? "–" : String(value);
  if (digits !== undefined) return value.toFixed(digits);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(1);
  if (size >= 100) return value.toFixed(0);
  return size >= 10 ? value.toFixed(1) : value.toFixed(3);
}

function signed(value) {
  return typeof value === "number" ? (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2) : "–";
}

function table(names, rows, numeric) {
  const kind = (i) => (numeric.includes(i) ? "number" : null);
  const head = element("tr", {}, ...names.map((name, i) => element("th", {class: kind(i)}, name)));
  const body = rows.map((row) => element("tr", {}, ...row.map(
    (cell, i) => element("td", {class: kind(i)}, cell instanceof Node ? cell : shown(cell)))));
  return element("div", {class: "scroll"}, element("table", {}, element("thead", {}, head),
    element("tbody", {}, ...body)));
}

function section(title, id) {
  const link = element("a", {href: `#${id}`}, title);
  document.getElementById("sections").append(link);
  const box = element("section", {id: id}, element("h2", {}, title));
  document.getElementById("main").append(box);
  return box;
}

// --------------------------------------------------------------------------------------------
// Head

function drawHead() {
  const head = document.getElementById("head");
  head.append(element("h1", {}, page.title));
  const what = page.stages.map((stage) => `${stage.name.split("/").pop()}: ${stage.state}`);
  head.append(element("p", {class: "soft"}, what.join(" · ")));
  head.append(...page.headlines.map(headline));
  for (const stage of coloured.filter((s) => s.values.R_out).slice(0, 4)) {
    const facts = Object.fromEntries(stage.facts);
    const words = ["method", "model", "problems", "commit"].filter((name) => facts[name])
      .map((name) => (name === "method" ? facts[name] : `${name} ${facts[name]}`));
    if (words.length) {
      head.append(element("p", {class: "small what"}, element("strong", {}, stage.name),
        `: ${words.join(" · ")}`));
    }
  }
  if (page.notes.length) {
    const items = page.notes.map((note) => element("li", {}, note));
    head.append(element("div", {class: "notes"}, element("strong", {}, "What is missing here"),
      element("ul", {}, ...items)));
  }
}

function headline(h) {
  const box = element("div", {class: "headline"});
  const range = `95 % interval ${shown(h.low, 3)} to ${shown(h.high, 3)}`;
  box.append(element("span", {class: "figure"}, shown(h.value, 3)));
  if (h.evaluated) {
    const bounds = Object.entries(h.ceilings).map(([name, value]) => `${name} ${shown(value, 3)}`);
    const others = h.others.map(([name, value]) => `${name} ${shown(value, 3)}`);
    box.append(element("div", {},
      element("div", {}, element("strong", {}, `pass@${h.k} of ${h.evaluated}`),
        ` (${h.where}), ${range}`),
      bounds.length ? element("div", {class: "soft"}, `ceilings: ${bounds.join(", ")}`) : null,
      others.length ? element("div", {class: "soft"}, `beside ${others.join(", ")}`) : null));
    return box;
  }
  const audited = typeof h.audit === "number";
  const audit = audited ? `; the audit before training: ${shown(h.audit, 3)}` : "";
  box.append(element("div", {},
    element("div", {}, element("strong", {}, `${h.stage}: solved in training (R_out)`),
      `, mean of the last ${h.window} steps, ${range} over steps`),
    element("div", {class: "soft"}, `the first ${h.window} steps: ${shown(h.first, 3)}${audit}; ` +
      "no evaluation on held-out problems is here")));
  return box;
}

function drawStages() {
  if (!page.stages.length) return;
  const box = section("What ran", "stages");
  for (const stage of page.stages) {
    const facts = stage.facts.flatMap(([name, value]) =>
      [element("dt", {}, name), element("dd", {}, value)]);
    for (const warning of stage.warnings) {
      facts.push(element("dt", {}, "warning"), element("dd", {}, warning));
    }
    const audit = Object.entries(stage.audit).map(([name, value]) => `${name} ${shown(value)}`);
    if (audit.length) facts.push(element("dt", {}, "audit"), element("dd", {}, audit.join(", ")));
    for (const refresh of stage.refreshes) {
      const verdict = refresh.accepted ? "accepted" : "dropped";
      facts.push(element("dt", {}, "gate refresh"), element("dd", {},
        `step ${shown(refresh.step)}: AUC ${shown(refresh.auc)}, ${verdict}`));
    }
    const method = stage.facts.find(([name]) => name === "method");
    box.append(element("details", {}, element("summary", {}, element("strong", {}, stage.name),
      `  ${stage.state}${method ? `. ${method[1]}` : ""}`), element("dl", {}, ...facts)));
  }
}

// --------------------------------------------------------------------------------------------
// Curves

const CHART = {width: 340, height: 170, left: 42, right: 8, top: 8, bottom: 22};
const hidden = new Set();       // stages whose box in the legend is off

function drawCurves() {
  const steps = page.stages.filter((stage) => stage.steps.length);
  if (!page.charts.length) return;
  const box = section("Curves", "curves");
  const main = steps.filter((stage) => stage.values.R_out);
  for (const stage of main.length ? steps : []) {
    if (!stage.values.R_out) hidden.add(stage.name);
  }
  const area = element("div", {});
  box.append(legend(steps, () => redraw(area, steps)), element("p", {class: "soft small"},
    "Faint: each step. Strong: the mean of the steps around it. Green: the healthy range of the " +
    "glossary, where it is a number. Point at a curve for its values."), area);
  redraw(area, steps);
}

function legend(stages, changed) {
  const box = element("div", {class: "legend"});
  for (const stage of stages) {
    const toggle = element("input", {type: "checkbox", onchange: (event) => {
      if (event.target.checked) hidden.delete(stage.name);
      else hidden.add(stage.name);
      changed();
    }});
    toggle.checked = !hidden.has(stage.name);
    const swatch = element("span", {class: "swatch"});
    swatch.style.background = colour(stage);
    const thinned = stage.stride > 1 ? ` (every ${stage.stride}. step)` : "";
    box.append(element("label", {}, toggle, swatch, stage.name + thinned));
  }
  return box;
}

// the stages that most curves are of have the colours that are told apart best
const coloured = page.stages.filter((stage) => stage.values.R_out)
  .concat(page.stages.filter((stage) => !stage.values.R_out));

function colour(stage) {
  return COLOURS[coloured.indexOf(stage) % COLOURS.length];
}

function redraw(area, stages) {
  const open = area.querySelector("details");
  const wasOpen = open ? open.open : false;
  area.replaceChildren();
  let title = null;
  let grid = null;
  for (const chart of page.charts) {
    const visible = stages.filter((s) => !hidden.has(s.name) && s.values[chart.metric]);
    if (!visible.length) continue;
    if (chart.section !== title) {
      title = chart.section;
      grid = element("div", {class: "charts"});
      if (title === "All other metrics") {
        const more = element("details", {}, element("summary", {}, title), grid);
        more.open = wasOpen;
        area.append(more);
      } else area.append(element("h3", {}, title), grid);
    }
    grid.append(drawChart(chart, visible));
  }
}

function drawChart(chart, stages) {
  const about = [chart.formula, chart.healthy ? `Healthy: ${chart.healthy}` : ""];
  const svg = picture(CHART.width, CHART.height, chart.metric);
  const hover = element("div", {class: "hover"});
  const scale = scaleOf(chart, stages);
  drawAxes(svg, chart, scale);
  const alone = stages.length === 1;
  if (chart.metric === "seconds" && alone) about.push(drawPhases(svg, stages[0], scale));
  for (const stage of stages) {
    const points = pointsOf(stage, chart.metric);
    const options = {stroke: colour(stage)};
    svg.append(drawn("path", {...options, class: "raw", d: path(points, scale)}));
    svg.append(drawn("path", {...options, class: "mean", d: path(smoothed(points), scale)}));
    if (chart.metric.startsWith("dev/")) svg.append(...marked(stage, points, scale));
  }
  const cross = drawn("line", {class: "cross", y1: CHART.top, y2: CHART.height - CHART.bottom,
    visibility: "hidden"});
  svg.append(cross);
  const point = (event) => showValues(event, svg, cross, hover, chart, stages, scale);
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  hover.textContent = latest(chart, stages);
  svg.addEventListener("pointerleave", () => {
    cross.setAttribute("visibility", "hidden");
    hover.textContent = latest(chart, stages);
  });
  return element("div", {class: "chart", "data-metric": chart.metric},
    element("h4", {}, chart.metric),
    element("div", {class: "about"}, about.filter(Boolean).join(". ")), svg, hover);
}

function marked(stage, points, scale) {
  // a dot an evaluation, and a large one at the checkpoint that was chosen
  return points.map(([step, value]) => drawn("circle", {cx: scale.x(step), cy: scale.y(value),
    r: step === stage.best ? 6 : 2.5, fill: colour(stage)},
  drawn("title", {}, step === stage.best ? `step ${step}: best/` : `step ${step}`)));
}

const PHASES = {seconds_sampling: ["sampling", "#56b4e9"], seconds_verifying: ["verifying",
  "#e69f00"], seconds_update: ["update", "#009e73"]};

function drawPhases(svg, stage, scale) {
  // stacked from below, as areas; what is left below the line is everything else
  const held = Object.entries(PHASES).filter(([name]) => stage.values[name]);
  let floor = stage.steps.map((step) => [step, 0]);
  for (const [name, [, fill]] of held) {
    const tops = floor.map(([step, y], i) => [step, y + (stage.values[name][i] || 0)]);
    const around = smoothed(tops).concat(smoothed(floor).reverse());
    svg.append(drawn("path", {d: `${path(around, scale)}z`, fill, "fill-opacity": 0.35}));
    floor = tops;
  }
  return held.length ? `Areas from below: ${held.map(([, [words]]) => words).join(", ")}` : "";
}

function pointsOf(stage, metric) {
  const points = [];
  stage.steps.forEach((step, i) => {
    const value = stage.values[metric][i];
    if (value !== null) points.push([step, value]);
  });
  return points;
}

function smoothed(points) {
  // as many steps before as after, so that the strong line does not lag; fewer at both ends
  const half = Math.floor(points.length / 24);
  return points.map(([step], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1);
    return [step, near.reduce((sum, [, value]) => sum + value, 0) / near.length];
  });
}

function scaleOf(chart, stages) {
  const values = stages.flatMap((s) => pointsOf(s, chart.metric).map(([, value]) => value));
  const steps = stages.flatMap((s) => [s.steps[0], s.steps[s.steps.length - 1]]);
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (chart.band && chart.band[0] < low) low = Math.max(chart.band[0], low - 2 * (high - low || 1));
  if (chart.band && chart.band[1] > high && chart.band[1] < 3 * high) high = chart.band[1];
  if (low > 0 && low < 0.5 * high) low = 0;
  if (low >= 0 && high <= 1 && high > 0.3) [low, high] = [0, 1];
  const room = high > low ? 0.04 * (high - low) : Math.abs(high) || 1;
  const floor = low >= 0 && low - room < 0 ? 0 : low - room;
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const across = CHART.width - CHART.left - CHART.right;
  const down = CHART.height - CHART.top - CHART.bottom;
  return {
    low: floor, high: high + room, first, last,
    x: (step) => CHART.left + across * (last > first ? (step - first) / (last - first) : 0.5),
    y: (value) => CHART.top + down * (1 - (value - floor) / (high + room - floor)),
  };
}

function drawAxes(svg, chart, scale) {
  if (chart.band) {
    const [from, to] = chart.band.map((v) => Math.min(scale.high, Math.max(scale.low, v)));
    const [y1, y2] = [scale.y(to), scale.y(from)];
    if (chart.band[1] >= scale.low && chart.band[0] <= scale.high) {
      svg.append(drawn("rect", {class: "band", x: CHART.left, y: y1 - 1,
        width: CHART.width - CHART.left - CHART.right, height: y2 - y1 + 2}));
    }
  }
  for (const value of ticks(scale.low, scale.high)) {
    const y = scale.y(value);
    svg.append(drawn("line", {class: "axis", x1: CHART.left, x2: CHART.width - CHART.right,
      y1: y, y2: y}));
    svg.append(drawn("text", {x: CHART.left - 5, y: y + 4, "text-anchor": "end"}, tick(value)));
  }
  const bottom = CHART.height - 6;
  svg.append(drawn("text", {x: CHART.left, y: bottom}, `step ${scale.first}`));
  svg.append(drawn("text", {x: CHART.width - CHART.right, y: bottom, "text-anchor": "end"},
    String(scale.last)));
}

function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const width = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / width); i * width <= high && found.length < 12; i++) {
    found.push(i * width);
  }
  return found;
}

function tick(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4 || size < 1e-3) return value.toExponential(0);
  return String(Number(value.toPrecision(3)));
}

function path(points, scale) {
  return points.map(([step, value], i) =>
    `${i ? "L" : "M"}${scale.x(step).toFixed(1)} ${scale.y(value).toFixed(1)}`).join("");
}

function nearest(points, step) {
  return points.reduce((best, point) =>
    (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
}

function showValues(event, svg, cross, hover, chart, stages, scale) {
  const frame = svg.getBoundingClientRect();
  const x = (event.clientX - frame.left) / frame.width * CHART.width;
  const share = (x - CHART.left) / (CHART.width - CHART.left - CHART.right);
  const step = scale.first + share * (scale.last - scale.first);
  const found = stages.map((stage) => nearest(pointsOf(stage, chart.metric), step));
  cross.setAttribute("x1", scale.x(found[0][0]));
  cross.setAttribute("x2", scale.x(found[0][0]));
  cross.setAttribute("visibility", "visible");
  hover.replaceChildren(...values(found, stages));
}

function values(points, stages) {
  return points.map(([step, value], i) => {
    const part = element("span", {}, `step ${step}: ${shown(value)}  `);
    if (stages.length > 1) part.style.color = colour(stages[i]);
    return part;
  });
}

function latest(chart, stages) {
  if (stages.length > 1) return "";
  const points = pointsOf(stages[0], chart.metric);
  return `last: ${shown(points[points.length - 1][1])}`;
}

// --------------------------------------------------------------------------------------------
// Tuples

const view = {stage: null, groups: [], statements: {}, at: 0, filter: "all", search: "", hits: []};

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function drawTuples() {
  const stages = page.stages.filter((stage) => stage.kept);
  if (!stages.length) return null;
  const box = section("Tuples", "tuples-read");
  const parts = {
    stage: element("select", {"aria-label": "stage", onchange: (e) => open(e.target.value, parts)},
      ...stages.map((stage) => element("option", {value: stage.name}, stage.name))),
    step: element("input", {type: "range", min: 0, max: 0, value: 0, "aria-label": "step",
      oninput: (event) => toStep(Number(event.target.value), parts)}),
    number: element("output", {class: "small"}),
    problem: element("select", {"aria-label": "problem",
      onchange: (event) => visit(Number(event.target.value), parts)}),
    search: element("input", {type: "search", placeholder: "search all text",
      "aria-label": "search", oninput: (event) => refine(parts, {search: event.target.value})}),
    filters: element("div", {class: "row", role: "group", "aria-label": "filter"}),
    found: element("span", {class: "soft small", role: "status"}),
    kept: element("p", {class: "soft small"}),
    shown: element("div", {}),
  };
  parts.filters.append(...FILTERS.map((name) => element("button", {type: "button",
    "data-filter": name, onclick: () => refine(parts, {filter: name})}, name)));
  box.append(introduction(), controls(parts), parts.kept, parts.shown);
  document.addEventListener("keydown", (event) => onKey(event, parts));
  const asked = new URLSearchParams(location.hash.slice(1));
  const known = stages.find((stage) => stage.name === asked.get("stage"));
  const name = (known || stages[stages.length - 1]).name;
  parts.stage.value = name;
  return open(name, parts).then(() => {
    const at = view.groups.findIndex((group) => String(group.step) === asked.get("step") &&
      group.problem === asked.get("problem"));
    if (known && at >= 0) {
      go(at, parts);
      box.scrollIntoView();
    }
  });
}

function remember(group) {
  // the address leads to this problem again: to send, and after a reload
  const words = new URLSearchParams({stage: view.stage.name, step: group.step,
    problem: group.problem});
  try {
    history.replaceState(null, "", `#${words}`);
  } catch {
    // a browser may refuse that to a file from disk
  }
}

function introduction() {
  return element("p", {class: "small"},
    "Each card is a tuple: one plan, its strategies, a program for each. The bar on top is what ",
    "the planner is paid (A), the ground of a branch what the solver is paid (a): ",
    element("span", {class: "key"}, "charged ", element("span", {class: "scale"}), " paid."));
}

function controls(parts) {
  const turn = (by, text, label) => element("button", {type: "button", "aria-label": label,
    onclick: () => move(by, parts)}, text);
  return element("div", {class: "controls"},
    element("div", {class: "row"}, parts.stage, turn(-1, "◀", "previous"), parts.step,
      turn(1, "▶", "next"), parts.number, parts.problem),
    element("div", {class: "row"}, parts.filters, parts.search), parts.found,
    element("div", {class: "soft small keys"}, element("kbd", {}, "←"), " ",
      element("kbd", {}, "→"), " previous and next problem with a match, ",
      element("kbd", {}, "↑"), " ", element("kbd", {}, "↓"), " step, ", element("kbd", {}, "/"),
      " search, ", element("kbd", {}, "1"), "–", element("kbd", {}, "6"), " filter"));
}

async function open(name, parts) {
  const stage = page.stages.find((s) => s.name === name);
  view.stage = stage;
  const kept = stage.kept;
  view.groups = [];
  if (packed[name]) {
    try {
      const data = await unpack(packed[name]);
      view.groups = data.groups;
      view.statements = data.statements;
    } catch (error) {
      parts.kept.textContent = `The tuples cannot be unpacked by this browser (${error}).`;
      return;
    }
  }
  const share = Math.round(100 * kept.share);
  const less = share < 100 ? `, and of each about ${share} % of its problems` : "";
  parts.kept.textContent = kept.steps === kept.of && kept.share === 1
    ? `All ${kept.of} steps are here.`
    : `To keep this file small, ${kept.steps} of ${kept.of} steps are here${less}; samples.jsonl ` +
      "has all.";
  view.steps = [...new Set(view.groups.map((group) => group.step))];
  parts.step.max = Math.max(0, view.steps.length - 1);
  for (const group of view.groups) {
    group.text = JSON.stringify([group.problem, view.statements[group.problem],
      group.tuples]).toLowerCase();
  }
  view.at = view.groups.findIndex((g) => g.step === view.steps[view.steps.length - 1]);
  refine(parts, {});
}

function matches(tuple) {
  return view.filter === "all" || tuple.marks.includes(view.filter);
}

function refine(parts, change) {
  Object.assign(view, change);
  const wanted = JSON.stringify(view.search.toLowerCase()).slice(1, -1);
  view.hits = [];
  let tuples = 0;
  view.groups.forEach((group, i) => {
    const found = group.tuples.filter(matches).length;
    if (found && group.text.includes(wanted)) {
      view.hits.push(i);
      tuples += found;
    }
  });
  for (const button of parts.filters.children) {
    button.setAttribute("aria-pressed", String(button.dataset.filter === view.filter));
  }
  parts.found.textContent = `${tuples.toLocaleString("en")} tuples of ` +
    `${view.hits.length.toLocaleString("en")} problems match`;
  if (view.hits.length && !view.hits.includes(view.at)) {
    view.at = view.hits.find((i) => i >= view.at) ?? view.hits[view.hits.length - 1];
  }
  go(view.at, parts);
}

function move(by, parts) {
  const next = by > 0 ? view.hits.find((i) => i > view.at) : view.hits.findLast((i) => i < view.at);
  if (next !== undefined) visit(next, parts);
}

function visit(at, parts) {
  go(at, parts);
  remember(view.groups[at]);
}

function toStep(place, parts) {
  const step = view.steps[Math.min(view.steps.length - 1, Math.max(0, place))];
  const inside = (i) => view.groups[i].step === step;
  const hit = view.hits.find(inside);
  visit(hit ?? view.groups.findIndex((group) => group.step === step), parts);
}

function onKey(event, parts) {
  const typing = event.target.matches("input[type=search], select");
  if (event.key === "Escape" && typing) event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !view.groups.length) return;
  const place = view.steps.indexOf(view.groups[view.at].step);
  const filter = FILTERS[Number(event.key) - 1];
  if (event.key === "ArrowRight") move(1, parts);
  else if (event.key === "ArrowLeft") move(-1, parts);
  else if (event.key === "/") parts.search.focus();
  else if (filter) refine(parts, {filter});
  else if (onScreen(parts.shown) && event.key === "ArrowUp") toStep(place - 1, parts);
  else if (onScreen(parts.shown) && event.key === "ArrowDown") toStep(place + 1, parts);
  else return;
  event.preventDefault();
}

function onScreen(node) {
  // elsewhere the arrows scroll the page, as they should
  const frame = node.getBoundingClientRect();
  return frame.top < 0.6 * window.innerHeight && frame.bottom > 0;
}

function go(place, parts) {
  const group = view.groups[place];
  parts.shown.replaceChildren();
  if (!group) {
    parts.shown.append(element("p", {}, "No tuple fits into this file."));
    return;
  }
  view.at = place;
  parts.step.value = view.steps.indexOf(group.step);
  parts.number.textContent = `step ${group.step}`;
  const options = [];
  view.groups.forEach((other, i) => {
    if (other.step === group.step) options.push(element("option", {value: i}, other.problem));
  });
  parts.problem.replaceChildren(...options);
  parts.problem.value = place;
  const statement = view.statements[group.problem];
  const cards = group.tuples.map(drawTuple);
  // those that the filter asks for come first; the others stay, since they are paid together
  cards.sort((a, b) => a.classList.contains("dim") - b.classList.contains("dim"));
  parts.shown.append(
    element("h3", {}, `Step ${group.step}, ${group.problem}: ${summary(group)}`),
    element("div", {class: "statement", dir: "auto"},
      statement || "(the statement is not here: name the problem file by --problems)"),
    element("div", {class: "tuples"}, ...cards));
}

function summary(group) {
  if (!group.tuples.some((tuple) => tuple.branches.length)) {
    return `${group.tuples.length} plans, none of them solved`;
  }
  const solved = group.tuples.filter((tuple) => tuple.marks.includes("solved")).length;
  const what = group.tuples.some((t) => t.strategies || t.plan) ? "tuples" : "attempts";
  return `${solved} of ${group.tuples.length} ${what} solve it`;
}

function payColour(value, strength) {
  const size = Math.min(1, Math.abs(value || 0) / 2) * strength;
  return value < 0 ? `rgba(213, 94, 0, ${size})` : `rgba(0, 114, 178, ${size})`;
}

function drawTuple(tuple, number) {
  const planned = tuple.strategies || tuple.plan !== undefined;
  const faults = (tuple.faults || []).filter((name) => !tuple.marks.includes(name));
  const names = tuple.marks.concat(faults.map((name) => `judge: ${name}`));
  const card = element("article", {class: `tuple${matches(tuple) ? "" : " dim"}`},
    element("header", {}, element("h4", {}, `${planned ? "tuple" : "attempt"} ${number}`),
      ...names.map((name) => element("span", {class: `mark ${name}`}, name))),
    element("div", {class: "numbers"}, ...numbersOf(tuple)));
  if (tuple.A) card.style.borderTopColor = payColour(tuple.A, 1);
  if (tuple.plan !== undefined) {
    card.append(element("div", {class: "small"}, `The plan does not parse: ${tuple.error}`),
      element("pre", {}, tuple.plan));
  }
  const places = Math.max((tuple.strategies || []).length, tuple.branches.length);
  for (let i = 0; i < places; i++) card.append(drawBranch(tuple, i));
  return card;
}

function numbersOf(tuple) {
  const names = [["p(Pass)", "p_pass", shown], ["J", "J", shown], ["R_out", "R_out", shown],
    ["R_plan", "R_plan", shown], ["A", "A", signed], ["reward", "reward", shown],
    ["r_mi", "r_mi", shown]];
  const held = names.filter(([, name]) => tuple[name] !== undefined);
  return held.map(([label, name, form]) => element("div", {}, element("span", {}, label),
    form(tuple[name], name === "p_pass" ? 2 : undefined)));
}

function drawBranch(tuple, i) {
  const branch = tuple.branches[i];
  const strategy = (tuple.strategies || [])[i] ?? (branch || {}).strategy;
  const pay = branch ? branch.a : (tuple.pay || [])[i] ?? tuple.A;
  const box = element("div", {class: "branch"});
  box.style.background = payColour(pay, 0.42);
  if (strategy) {
    box.append(element("div", {class: "strategy"}, element("b", {}, LABELS[i] || String(i)),
      strategy));
  }
  if (!branch) return box;
  const verdict = element("div", {class: "verdict"}, element("span",
    {class: branch.r ? "pass" : null}, (branch.r ? "✓ " : "✗ ") + shown(branch.status)));
  if (!branch.r && branch.tests_passed) {
    const tests = branch.tests_passed === 1 ? "test" : "tests";
    verdict.append(element("span", {}, `${branch.tests_passed} ${tests} passed`));
  }
  verdict.append(element("span", {}, `r ${shown(branch.r)}`), element("span", {},
    `a ${signed(branch.a)}`), element("span", {}, `${shown(branch.tokens)} tokens`));
  if (tuple.pay) verdict.append(element("span", {}, `A ${signed(tuple.pay[i])}`));
  if (branch.finish === "length") verdict.append(element("span", {}, "cut at the limit"));
  box.append(verdict);
  if (branch.message) box.append(element("div", {class: "small"}, branch.message));
  if (branch.reply) box.append(program(branch.reply));
  return box;
}

const TOKEN = new RegExp([
  "(#[^\\n]*)",
  "(\"(?:[^\"\\\\\\n]|\\\\.)*\"|'(?:[^'\\\\\\n]|\\\\.)*')",
  "\\b(and|as|assert|break|class|continue|def|del|elif|else|except|finally|for|from|global|if|" +
    "import|in|is|lambda|None|nonlocal|not|or|pass|raise|return|True|False|try|while|with|" +
    "yield)\\b",
  "\\b(\\d[\\d._]*)\\b"].join("|"), "g");

function program(text) {
  const box = element("pre", {});
  const only = /^```(?:python)?\n([^]*?)\n?```\s*$/.exec(text);
  const code = only && !only[1].includes("```") ? only[1] : text;
  let done = 0;
  for (const match of code.matchAll(TOKEN)) {
    const kind = ["c", "s", "k", "n"].find((_, i) => match[i + 1] !== undefined);
    box.append(code.slice(done, match.index), element("span", {class: kind}, match[0]));
    done = match.index + match[0].length;
  }
  box.append(code.slice(done));
  return box;
}

// --------------------------------------------------------------------------------------------
// The gate

function drawGate() {
  const stages = page.stages.filter((s) => s.gate.curves &&
    (s.gate.curves.length || s.gate.kinds.length || s.gate.table));
  if (!stages.length) return;
  const box = section("The gate", "gate");
  for (const stage of stages) {
    const panels = element("div", {class: "panels"});
    if (stage.gate.curves.length) {
      panels.append(square("ROC", "false positives", "true positives", stage.gate.curves,
        (curve) => curve.roc, (curve) => `${curve.by}: AUC ${curve.auc.toFixed(3)}`));
      panels.append(square("Reliability", "p(Pass)", "share that holds", stage.gate.curves,
        (curve) => curve.reliability, (curve) => `${curve.by}: ${curve.tuples} tuples`, true));
    }
    if (stage.gate.table) panels.append(joint(stage.gate.table));
    if (stage.gate.kinds.length) {
      panels.append(element("div", {class: "panel kinds"}, element("h4", {},
        "Decided rightly, by kind"),
        table(["kind", "share", "labels"], stage.gate.kinds, [1, 2]),
        element("p", {class: "soft small"}, "A plan with a fault is rightly refused, one without " +
          "is rightly accepted.")));
    }
    const tau = typeof stage.gate.tau === "number" ? `, τ = ${shown(stage.gate.tau)}` : "";
    box.append(element("h3", {}, stage.name + tau), panels);
  }
}

function square(title, across, up, curves, points, words, dots) {
  const svg = picture(300, 270, title);
  const x = (value) => 40 + 240 * value;
  const y = (value) => 230 - 220 * value;
  for (const value of [0, 0.5, 1]) {
    svg.append(drawn("line", {class: "axis", x1: x(0), x2: x(1), y1: y(value), y2: y(value)}),
      drawn("line", {class: "axis", x1: x(value), x2: x(value), y1: y(0), y2: y(1)}),
      drawn("text", {x: x(value), y: 245, "text-anchor": "middle"}, String(value)),
      drawn("text", {x: 34, y: y(value) + 4, "text-anchor": "end"}, String(value)));
  }
  svg.append(drawn("line", {class: "cross", x1: x(0), y1: y(0), x2: x(1), y2: y(1)}),
    drawn("text", {x: x(0.5), y: 262, "text-anchor": "middle"}, across),
    drawn("text", {x: 12, y: y(0.5), "text-anchor": "middle",
      transform: `rotate(-90 12 ${y(0.5)})`}, up));
  const names = element("div", {class: "small"});
  curves.forEach((curve, i) => {
    const stroke = COLOURS[i % COLOURS.length];
    const line = points(curve).map(([a, b], j) =>
      `${j ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    svg.append(drawn("path", {class: "mean", stroke, d: line}));
    for (const [a, b, count] of dots ? points(curve) : []) {
      // a dot as large as its tuples are many: small bins scatter
      const r = 2 + 5 * Math.sqrt(count / curve.tuples);
      svg.append(drawn("circle", {cx: x(a), cy: y(b), r, fill: stroke},
        drawn("title", {}, `${count} tuples: p ${shown(a)}, holds ${shown(b)}`)));
    }
    const swatch = element("span", {class: "swatch"});
    swatch.style.background = stroke;
    names.append(element("div", {}, swatch, ` ${words(curve)}`));
  });
  return element("div", {class: "panel"}, element("h4", {}, title), svg, names);
}

function joint(shares) {
  const cell = (name) => {
    const box = element("td", {}, element("strong", {}, `${(100 * shares[name]).toFixed(1)} %`));
    box.style.background = `rgba(0, 114, 178, ${(0.6 * shares[name]).toFixed(2)})`;
    return box;
  };
  const line = (decision) => element("tr", {}, element("th", {}, decision),
    cell(`${decision}, solved`), cell(`${decision}, failed`),
    element("td", {}, shown(shares[`solved | ${decision}`])));
  const head = ["", "solved", "failed", "solved | row"].map((name) => element("th", {}, name));
  return element("div", {class: "panel joint"}, element("h4", {}, "Accepted × solved"),
    element("table", {}, element("tr", {}, ...head), line("accepted"),
      line("rejected")),
    element("p", {class: "soft small narrow"},
      `Shares of ${shares.tuples.toLocaleString("en")} tuples of all steps. ` +
      "Only accepted and solved pays the planner; a plan that does not parse is rejected."));
}

// --------------------------------------------------------------------------------------------
// Where the data comes from

function drawSources() {
  if (!page.sources.length) return;
  const box = section("Data", "data");
  box.append(element("p", {class: "soft small"}, "How many there were, and what was dropped and " +
    "why, as prepare/ recorded it beside the files, and what the files hold."));
  if (page.sources.some((source) => !source.cleaned)) {
    box.append(element("p", {class: "soft small"}, "Files marked ° have no manifest.json beside " +
      "them (prepare.corpora writes one): whether they share problems with evaluation sets is " +
      "not known."));
  }
  for (const source of page.sources) {
    box.append(element("h3", {}, source.title + (source.cleaned ? "" : " °")), funnel(source.rows));
  }
}

function funnel(rows) {
  const most = Math.max(...rows.map((row) => row.count));
  const lines = rows.map((row) => {
    const bar = element("div", {class: row.lost ? "bar lost" : "bar"});
    bar.style.width = `${100 * row.count / most}%`;
    return element("tr", {class: row.lost ? "lost" : null}, element("td", {}, row.what),
      element("td", {class: "number"}, shown(row.count)), element("td", {class: "bars"}, bar));
  });
  return element("div", {class: "scroll"}, element("table", {class: "funnel"}, ...lines));
}

// --------------------------------------------------------------------------------------------
// Evaluation

function drawEvaluation() {
  const rows = page.evaluation.rows;
  if (!rows.length) return;
  const box = section("Evaluation", "evaluation");
  box.append(element("p", {class: "soft small"}, "As paper/tables.py prints it: mean and 95 % " +
    "bootstrap interval over problems, ± the deviation over seeds. Posterior-averaged where a " +
    "world knows the posterior."));
  for (const benchmark of new Set(rows.map((row) => row.benchmark))) {
    const held = rows.filter((row) => row.benchmark === benchmark)
      .sort((a, b) => b.value - a.value);
    const several = new Set(held.map((row) => row.model)).size > 1;
    for (const row of held) row.name = several ? `${row.model}: ${row.method}` : row.method;
    const ceilings = page.evaluation.ceilings[`${held[0].model} ${benchmark}`] || {};
    const names = [...new Set(held.flatMap((row) => Object.keys(row)))].filter((name) =>
      !["name", "model", "benchmark", "method", "value", "low", "high", "matrix", "k"]
        .includes(name));
    const cells = held.map((row) => [row.name, ...names.map((name) => row[name])]);
    box.append(element("h3", {}, `${benchmark}: pass@4`),
      element("div", {class: "scroll"}, element("div", {class: "wide"},
        intervals(held, ceilings))),
      element("details", {}, element("summary", {}, "the numbers"),
        table(["method", ...names], cells, names.map((_, i) => i + 1))),
      matrix(held));
  }
}

// room for names on the left; on a phone the pictures are drawn narrow, not scaled or scrolled
const narrow = window.innerWidth < 700;
const FRAME = narrow ? {width: 366, left: 140, across: 180} : {width: 900, left: 210, across: 660};

function intervals(rows, ceilings) {
  const height = 24 * rows.length + 46;
  const svg = picture(FRAME.width, height, "pass@K of every method");
  const x = (value) => FRAME.left + FRAME.across * Math.min(1, Math.max(0, value));
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(drawn("line", {class: "axis", x1: x(value), x2: x(value), y1: 20, y2: height - 22}),
      drawn("text", {x: x(value), y: height - 8, "text-anchor": "middle"}, String(value)));
  }
  for (const [name, value] of Object.entries(ceilings)) {
    svg.append(drawn("line", {class: "cross", x1: x(value), x2: x(value), y1: 18, y2: height - 22}),
      drawn("text", {x: x(value), y: 12, "text-anchor": "middle"},
        narrow ? value.toFixed(2) : `${name} ${value.toFixed(3)}`));
  }
  rows.forEach((row, i) => {
    const y = 34 + 24 * i;
    const stroke = /^cppo/i.test(row.method) ? COLOURS[0] : "#5b6570";
    svg.append(drawn("text", {x: FRAME.left - 10, y: y + 4, "text-anchor": "end"}, row.name),
      drawn("line", {x1: x(row.low), x2: x(row.high), y1: y, y2: y, stroke, "stroke-width": 3,
        "stroke-opacity": 0.45}),
      drawn("circle", {cx: x(row.value), cy: y, r: 5, fill: stroke}),
      drawn("text", {x: x(row.high) + 8, y: y + 4},
        row.value.toFixed(3) + (row.k === 4 ? "" : ` (pass@${row.k})`)));
  });
  return svg;
}

function matrix(rows) {
  const problems = page.evaluation.problems;
  // hardest last: by how many methods solve a problem
  const ease = problems.map((_, p) =>
    rows.reduce((sum, row) => sum + (Number(row.matrix[p]) || 0), 0));
  const order = problems.map((_, p) => p).filter((p) => rows.some((row) => row.matrix[p] !== "-"))
    .sort((a, b) => ease[b] - ease[a]);
  const svg = picture(FRAME.width, 16 * rows.length + 4, "which method solves which problem");
  const hover = element("div", {class: "hover"}, "Point at a column for its problem.");
  const wide = (FRAME.width - FRAME.left) / order.length;
  rows.forEach((row, i) => {
    svg.append(drawn("text", {x: FRAME.left - 10, y: 16 * i + 12, "text-anchor": "end"}, row.name));
    for (const digit of "0123456789") {
      const cell = (j) => `M${(FRAME.left + j * wide).toFixed(2)} ${16 * i}h${wide.toFixed(2)}v13` +
        `h${(-wide).toFixed(2)}z`;
      const cells = order.map((p, j) => (row.matrix[p] === digit ? cell(j) : ""));
      svg.append(drawn("path", {d: cells.join(""), fill: "#0072b2",
        "fill-opacity": 0.04 + 0.1 * Number(digit)}));
    }
  });
  const point = (event) => {
    const frame = svg.getBoundingClientRect();
    const x = (event.clientX - frame.left) / frame.width * FRAME.width;
    const place = Math.floor((x - FRAME.left) / wide);
    if (order[place] === undefined) return;
    const solve = rows.filter((row) => Number(row.matrix[order[place]]) >= 5);
    hover.textContent = `${problems[order[place]]}: ` + (solve.length
      ? `${solve.map((row) => row.name).join(", ")} solve at least half of it`
      : "no method solves half of it");
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  return element("div", {class: "scroll"}, element("div", {class: "wide"},
    element("h4", {}, "Which method solves which problem"), svg, hover,
    element("p", {class: "soft small"}, `${order.length} problems from left to right, the ` +
      "easiest first; the darker, the more is solved. A dark cell below pale ones is a problem " +
      "that one method alone solves.")));
}

// --------------------------------------------------------------------------------------------

drawHead();
drawStages();
drawEvaluation();
drawCurves();
const opened = drawTuples();
drawGate();
drawSources();
document.getElementById("foot").append(element("p", {class: "soft small"},
  `Made ${page.made} by python -m paper.report, commit ${page.commit}. docs/glossary.md explains ` +
  "every metric."));
Promise.resolve(opened).then(() => document.body.setAttribute("data-ready", "yes"));

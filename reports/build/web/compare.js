"use strict";

// Pure part: numbers and text, no document. Node runs its tests.

/** "1 network", "2 networks". */
const counted = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

const mean = (xs) => xs.reduce((a, b) => a + b, 0) / xs.length;

function deviation(xs) {
  if (xs.length < 2) return 0;
  const m = mean(xs);
  return Math.sqrt(xs.reduce((a, x) => a + (x - m) ** 2, 0) / (xs.length - 1));
}

/** Rows that have both quantities, as {row, x, y, sx, sy}. */
function spots(rows, xKey, yKey) {
  return rows
    .filter((row) => row.values[xKey] && row.values[yKey])
    .map((row) => {
      const xs = row.values[xKey];
      const ys = row.values[yKey];
      return { row, x: mean(xs), y: mean(ys), sx: deviation(xs), sy: deviation(ys) };
    });
}

/** Spots that no other spot beats, by x. `up`: a larger y is better. */
function paretoFront(all, up) {
  const good = up ? 1 : -1;
  const beaten = (p) =>
    all.some((q) => q.x <= p.x && good * q.y >= good * p.y && (q.x < p.x || q.y !== p.y));
  return all.filter((p) => !beaten(p)).sort((a, b) => a.x - b.x || a.y - b.y);
}

/** Two-sided exact sign-flip p of paired differences, as in significance.py. */
function signFlip(differences) {
  const n = differences.length;
  const size = differences.reduce((a, d) => a + Math.abs(d), 0);
  const bound = Math.abs(differences.reduce((a, d) => a + d, 0)) - 1e-9 * size;
  let hits = 0;
  for (let pattern = 0; pattern < 2 ** n; pattern++) {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += (pattern >> i) & 1 ? -differences[i] : differences[i];
    if (Math.abs(sum) >= bound) hits++;
  }
  return hits / 2 ** n;
}

/** Differences one - other at shared seeds. */
function paired(one, other, key) {
  const theirs = new Map(other.seeds.map((seed, i) => [seed, other.values[key]?.[i]]));
  return one.seeds
    .map((seed, i) => one.values[key]?.[i] - theirs.get(seed))
    .filter((d) => Number.isFinite(d));
}

/** Range of the values that are no outliers, as robust_range in style.py. */
function robustRange(values) {
  const xs = [...values].sort((a, b) => a - b);
  const at = (p) => {
    const i = p * (xs.length - 1);
    const low = Math.floor(i);
    return xs[low] + (i - low) * ((xs[low + 1] ?? xs[low]) - xs[low]);
  };
  if (xs.length >= 5) {
    const room = Math.max(3 * (at(0.75) - at(0.25)), 0.02 * Math.abs(at(0.5)));
    const inside = xs.filter((v) => v >= at(0.25) - room && v <= at(0.75) + room);
    if (4 * inside.length >= 3 * xs.length) return [inside[0], inside.at(-1)];
  }
  return [xs[0], xs.at(-1)];
}

/**
 * A place for the name of each mark {x, y, text, first} where it covers neither a mark nor a name
 * already placed; those with `first` choose first. Null: no such place.
 */
function placeNames(marks, { left, top, right, bottom }) {
  const taken = marks.map(({ x, y }) => [x - 8, y - 8, x + 8, y + 8]);
  const free = (b) => b[0] >= left && b[1] >= top && b[2] <= right && b[3] <= bottom &&
    !taken.some((t) => b[0] < t[2] && t[0] < b[2] && b[1] < t[3] && t[1] < b[3]);
  const places = marks.map(() => null);
  const order = marks.map((_, i) => i).sort((i, j) => (marks[j].first ? 1 : 0) - (marks[i].first ? 1 : 0) || i - j);
  for (const i of order) {
    const { x, y, text } = marks[i];
    const wide = 7.3 * text.length; // of 12 px text, a little more than needed
    for (const [dx, dy, anchor] of [
      [14, 4, "start"], [-14, 4, "end"], [9, -10, "start"], [-9, -10, "end"], [9, 19, "start"],
      [-9, 19, "end"], [0, -14, "middle"], [0, 24, "middle"], [9, -24, "start"], [-9, -24, "end"],
    ]) {
      const x0 = x + dx - { start: 0, middle: wide / 2, end: wide }[anchor];
      const box = [x0, y + dy - 10, x0 + wide, y + dy + 3];
      if (!free(box)) continue;
      taken.push(box);
      places[i] = { x: x + dx, y: y + dy, anchor };
      break;
    }
  }
  return places;
}

/** About `count` round numbers from `low` to `high`. */
function ticks(low, high, count, log) {
  if (log) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of [1, 2, 5]) if (m * 10 ** e >= low && m * 10 ** e <= high) found.push(m * 10 ** e);
    return found.length > 12 ? found.filter((t) => Math.abs(Math.log10(t) % 1) < 1e-9) : found;
  }
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step); t * step <= high * (1 + 1e-9); t++) found.push(t * step);
  return found;
}

/** A number for people: 93.21, 0.062, 887 T for 8.87e14. */
function pretty(value, digits = 2) {
  if (value === undefined || value === null || Number.isNaN(value)) return "–";
  const names = [[1e18, " E"], [1e15, " P"], [1e12, " T"], [1e9, " G"], [1e6, " M"]];
  const found = names.find(([size]) => Math.abs(value) >= size);
  if (found) return Number((value / found[0]).toPrecision(3)) + found[1];
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text;
}

function spread(values, digits = 2) {
  if (!values) return "–";
  const text = pretty(mean(values), digits);
  const s = deviation(values);
  return values.length > 1 && s > 0 && mean(values) < 1e6 ? `${text} ± ${pretty(s, digits)}` : text;
}

function csv(head, lines) {
  const quoted = (v) => (/[",\n]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v));
  return [head, ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
}

/** Outline of mark number `i`, about 6 units around the origin. */
function outline(i) {
  const polygon = (n, r, turn) =>
    "M" + Array.from({ length: n }, (_, k) => {
      const a = turn + (2 * Math.PI * k) / n;
      return `${(r * Math.cos(a)).toFixed(2)},${(r * Math.sin(a)).toFixed(2)}`;
    }).join("L") + "Z";
  const up = -Math.PI / 2;
  return [
    "M-6,0A6,6 0 1 0 6,0A6,6 0 1 0 -6,0Z",
    "M-5.3,-5.3H5.3V5.3H-5.3Z",
    polygon(3, 7.4, up),
    polygon(4, 7.2, up),
    polygon(3, 7.4, -up),
    polygon(5, 6.8, up),
    "M-2.2,-6.5H2.2V-2.2H6.5V2.2H2.2V6.5H-2.2V2.2H-6.5V-2.2H-2.2Z",
    polygon(6, 6.6, 0),
    "M-6.5,-4L-4,-6.5L0,-2.6L4,-6.5L6.5,-4L2.6,0L6.5,4L4,6.5L0,2.6L-4,6.5L-6.5,4L-2.6,0Z",
    polygon(8, 6.4, Math.PI / 8),
  ][i % 10];
}

if (typeof module !== "undefined")
  module.exports = {
    mean, deviation, spots, paretoFront, signFlip, paired, robustRange, placeNames, ticks, pretty, spread, csv, outline,
  };

// The page.

const BELOW = "below";

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const leagues = [...new Set(data.rows.map((r) => `${r.network} on ${r.data}`))];
  const methods = [...new Set(data.rows.map((r) => r.method))];
  const labels = Object.fromEntries(data.axes.map((a) => [a.key, `${a.label} (${a.unit})`]));
  data.scores.forEach((s) => (labels[s] = `test ${s} (%)`));
  labels[BELOW] = "below the best dense network (points)";
  const hidden = new Set();
  let picked = null;
  let order = { key: null, down: true };
  let shown = [];

  const state = () => ({ x: $("x").value, y: $("y").value, league: $("network").value });
  const up = () => $("y").value !== BELOW;
  const colour = (method) => `var(--c${methods.indexOf(method)})`;
  const mark = (row) =>
    `<svg class="icon" viewBox="-8 -8 16 16" aria-hidden="true"><path d="${outline(row.mark)}" fill="${colour(row.method)}"/></svg>`;
  const bounded = (key) => data.axes.find((a) => a.key === key)?.unit.startsWith("%");
  let frame;

  /** The drawing is as large as its place on the page, so that its text is never scaled. */
  function fit() {
    const width = Math.max(300, $("chart").parentElement.clientWidth);
    const narrow = width < 560;
    frame = { left: narrow ? 58 : 66, right: 18, top: 18, bottom: 52, width, height: narrow ? 380 : 480, narrow };
    $("chart").setAttribute("viewBox", `0 0 ${width} ${frame.height}`);
  }
  const escape = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

  function option(select, value, text) {
    select.add(new Option(text, value));
  }

  function fill() {
    leagues.forEach((l) => option($("network"), l, l));
    [...data.scores, BELOW].forEach((s) => option($("y"), s, labels[s]));
    data.axes
      .filter((a) => data.rows.some((r) => r.values[a.key]))
      .forEach((a) => option($("x"), a.key, labels[a.key] + (a.exact ? "" : ", this machine")));
    if (!data.rows.some((r) => r.kind === "one-shot")) $("sweeps").hidden = true;
    $("methods").insertAdjacentHTML("beforeend", methods.map((m) =>
      `<label class="chip"><input type="checkbox" checked value="${escape(m)}"><i style="background:${colour(m)}"></i>${escape(m)}</label>`).join(""));
    const seeds = new Set(data.rows.flatMap((r) => r.seeds)).size;
    $("summary").textContent =
      `${counted(methods.length, "method")}, ${counted(leagues.length, "network")}, ` +
      `${counted(data.rows.length, "candidate")}, up to ${counted(seeds, "seed")}; one harness, every number from a record`;
  }

  function chosen() {
    const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    return data.rows.filter((r) => {
      const text = `${r.name} ${r.method} ${r.settings} ${r.kind} ${r.records.join(" ")}`.toLowerCase();
      return `${r.network} on ${r.data}` === state().league && !hidden.has(r.method) &&
        (r.kind !== "one-shot" || $("oneshot").checked) && words.every((w) => text.includes(w));
    });
  }

  /** From low to high with some room; `robust`: outliers lie beyond, at the edge. */
  function range(all, key, log, robust) {
    const [low, high] = robust ? robustRange(all.map((p) => p[key])) : [-Infinity, Infinity];
    const inside = all.filter((p) => p[key] >= low && p[key] <= high);
    const ends = inside.flatMap((p) => [p[key] - (log ? 0 : p[`s${key}`]), p[key] + p[`s${key}`]]);
    const [a, b] = [Math.min(...ends), Math.max(...ends)];
    if (log) return [a / 1.25, b * 1.25];
    const room = (b - a || Math.abs(b) || 1) * 0.09;
    return [a - room, b + room];
  }

  function scales(all) {
    const log = $("log").checked && all.every((p) => p.x > 0);
    const robust = !$("wide").checked;
    const [x0, x1] = range(all, "x", log, robust && !log && !bounded(state().x));
    const [y0, y1] = range(all, "y", false, robust);
    const f = log ? Math.log : (v) => v;
    const { left, right, top, bottom, width, height } = frame;
    const wide = width - left - right;
    const high = height - top - bottom;
    const within = (v, low, top) => Math.min(Math.max(v, low), top);
    return {
      log, x0, x1, y0, y1,
      x: (v) => within(left + (wide * (f(v) - f(x0))) / (f(x1) - f(x0)), left + 8, width - right - 4),
      y: (v) => within(top + (high * (up() ? y1 - v : v - y0)) / (y1 - y0), top + 4, height - bottom - 8),
      outside: (p) => p.y < y0 || p.y > y1 || p.x < x0 || p.x > x1,
    };
  }

  function axes(s) {
    const { left, right, top, bottom, width, height, narrow } = frame;
    const digits = (list) => Math.max(0, Math.min(4, -Math.floor(Math.log10(Math.abs(list[1] - list[0]) || 1))));
    const xs = ticks(s.x0, s.x1, narrow ? 4 : 8, s.log);
    const ys = ticks(s.y0, s.y1, 7, false);
    const dx = s.log ? (Math.min(...xs) < 1 ? 2 : 0) : digits(xs);
    return [
      ...xs.map((t) => `<line class="grid" x1="${s.x(t)}" x2="${s.x(t)}" y1="${top}" y2="${height - bottom}"/>` +
        `<text class="tick" text-anchor="middle" x="${s.x(t)}" y="${height - bottom + 18}">${pretty(t, dx)}</text>`),
      ...ys.map((t) => `<line class="grid" y1="${s.y(t)}" y2="${s.y(t)}" x1="${left}" x2="${width - right}"/>` +
        `<text class="tick" text-anchor="end" x="${left - 6}" y="${s.y(t) + 4}">${pretty(t, digits(ys))}</text>`),
      `<text class="axis" text-anchor="middle" x="${(left + width - right) / 2}" y="${height - 12}">${escape(labels[state().x])}</text>`,
      `<text class="axis" text-anchor="middle" transform="translate(13 ${(top + height - bottom) / 2}) rotate(-90)">${escape(labels[state().y])}</text>`,
    ].join("");
  }

  function frontLine(s, front) {
    if (front.length < 2) return "";
    const steps = front.map((p, i) => (i ? `H${s.x(p.x)}V${s.y(p.y)}` : `M${s.x(p.x)},${s.y(p.y)}`));
    return `<path class="front" d="${steps.join("")}"/>`;
  }

  /** A thin line through one row's targets, or through the points of one sweep. */
  function trails(s, all) {
    const families = new Map();
    for (const p of all) {
      if (p.row.kind === "dense") continue;
      const key = p.row.kind === "one-shot" ? p.row.line : p.row.name.replace(/-p?[\d.]+(?=-|$)/, "");
      families.set(key, [...(families.get(key) ?? []), p]);
    }
    return [...families.values()].filter((f) => f.length > 1).map((f) => {
      const line = f.sort((a, b) => a.x - b.x || a.y - b.y).map((p) => `${s.x(p.x)},${s.y(p.y)}`).join("L");
      return `<path class="trail" d="M${line}" stroke="${colour(f[0].row.method)}"/>`;
    }).join("");
  }

  /** Names where there is space; an outlier says where it really is. */
  function names(s, all) {
    const { left, right, top, bottom, width, height } = frame;
    const marks = all.filter((p) => p.row.kind !== "one-shot").map((p) => {
      const [x, y, first] = [s.x(p.x), s.y(p.y), s.outside(p)];
      const far = !first ? "" : p.y < s.y0 || p.y > s.y1 ? ` ${up() === p.y < s.y0 ? "↓" : "↑"} ${pretty(p.y, 1)}` : ` → ${pretty(p.x, 1)}`;
      return { x, y, first, text: p.row.short + far, row: p.row };
    });
    const places = placeNames(marks, { left, top, right: width - right, bottom: height - bottom });
    return marks.map(({ text, row }, i) => places[i] &&
      `<text class="name${row === picked ? " picked" : ""}" text-anchor="${places[i].anchor}" x="${places[i].x}" y="${places[i].y}">${escape(text)}</text>`)
      .filter(Boolean).join("");
  }

  function drawPoint(s, p, i, front, tab) {
    const [x, y, c] = [s.x(p.x), s.y(p.y), colour(p.row.method)];
    const { x: xKey, y: yKey } = state();
    const seeds = $("each").checked
      ? p.row.seeds.map((_, k) => `<circle class="seed" r="3" fill="${c}" cx="${s.x(p.row.values[xKey][k])}" cy="${s.y(p.row.values[yKey][k])}"/>`).join("")
      : "";
    const label = `${p.row.name}, ${p.row.method}: ${labels[yKey]} ${spread(p.row.values[yKey])}, ${labels[xKey]} ${spread(p.row.values[xKey])}`;
    const open = p.row.kind === "one-shot" ? `fill="none" stroke="${c}" style="stroke:${c};stroke-width:1.7"` : `fill="${c}"`;
    return `<g class="point${picked === p.row ? " picked" : ""}" data-i="${i}" tabindex="${tab ? 0 : -1}" role="button" aria-label="${escape(label)}">` +
      `<line class="bar" stroke="${c}" x1="${x}" x2="${x}" y1="${s.y(p.y - p.sy)}" y2="${s.y(p.y + p.sy)}"/>` +
      (s.log ? "" : `<line class="bar" stroke="${c}" y1="${y}" y2="${y}" x1="${s.x(p.x - p.sx)}" x2="${s.x(p.x + p.sx)}"/>`) + seeds +
      `<circle class="halo" r="13" cx="${x}" cy="${y}"/>` +
      (front.includes(p) ? `<circle class="ring" r="10" cx="${x}" cy="${y}"/>` : "") +
      `<path class="mark" d="${outline(p.row.mark)}" transform="translate(${x} ${y})" ${open}/></g>`;
  }

  function drawChart() {
    const all = spots(chosen(), state().x, state().y).sort((a, b) => a.x - b.x || a.y - b.y);
    shown = all;
    if (!all.length) {
      $("chart").innerHTML = `<text class="axis" x="${frame.width / 2}" y="${frame.height / 2}" text-anchor="middle">No row has both quantities.</text>`;
      return [];
    }
    const s = scales(all);
    const front = paretoFront(all, up());
    const current = Math.max(0, all.findIndex((p) => p.row === picked));
    $("chart").innerHTML = axes(s) + trails(s, all) + frontLine(s, front) +
      all.map((p, i) => drawPoint(s, p, i, front, i === current)).join("") + names(s, all);
    return front.map((p) => p.row);
  }

  function columns() {
    const keys = [...data.scores, BELOW, ...data.axes.map((a) => a.key)];
    const present = keys.filter((k) => chosen().some((r) => r.values[k]));
    return [
      { key: "front", head: "front", of: (r, f) => (f.includes(r) ? 1 : 0), text: (r, f) => (f.includes(r) ? "●" : "") },
      { key: "name", head: "row", of: (r) => r.name, text: (r) => `${mark(r)} <span>${escape(r.name)}</span><small>${escape(r.settings)}</small>` },
      { key: "method", head: "method", of: (r) => r.method, text: (r) => escape(r.method) },
      { key: "seeds", head: "seeds", number: true, of: (r) => r.seeds.length, text: (r) => r.seeds.length },
      ...present.map((k) => ({
        key: k, head: labels[k], number: true,
        of: (r) => (r.values[k] ? mean(r.values[k]) : undefined),
        text: (r) => spread(r.values[k]).replace(/ ± .*/, '<span class="std">$&</span>'),
      })),
    ];
  }

  function sorted(rows, front) {
    const column = columns().find((c) => c.key === order.key);
    if (!column) return rows;
    const sign = order.down ? -1 : 1;
    return [...rows].sort((a, b) => {
      const [u, v] = [column.of(a, front), column.of(b, front)];
      if (u === undefined || v === undefined) return (u === undefined) - (v === undefined);
      return sign * (u < v ? -1 : u > v ? 1 : 0);
    });
  }

  function drawTable(front) {
    const all = columns();
    const rows = sorted(chosen(), front);
    const aria = (c) => (order.key === c.key ? (order.down ? "descending" : "ascending") : "none");
    $("table").tHead.innerHTML = `<tr>${all.map((c) =>
      `<th scope="col" class="${c.number ? "number" : ""}" aria-sort="${aria(c)}"><button type="button" data-key="${c.key}">${escape(c.head)}</button></th>`).join("")}</tr>`;
    $("table").tBodies[0].innerHTML = rows.map((r) =>
      `<tr data-row="${data.rows.indexOf(r)}" class="${r === picked ? "picked" : ""}">${all.map((c) =>
        `<td class="${c.number ? "number" : `is-${c.key}`}" data-head="${escape(c.head)}">${c.text(r, front)}</td>`).join("")}</tr>`).join("");
  }

  function facts(row) {
    const keys = [state().y, BELOW, ...data.axes.map((a) => a.key)];
    return [...new Set(keys)].filter((k) => row.values[k])
      .map((k) => `<dt>${escape(labels[k])}</dt><dd>${spread(row.values[k])}</dd>`).join("");
  }

  function rivals(row) {
    const key = state().y;
    return chosen().filter((r) => r !== row).map((r) => ({ r, d: paired(row, r, key) }))
      .filter(({ d }) => d.length >= 3 && d.length <= 16)
      .map(({ r, d }) => ({ r, n: d.length, d: mean(d), p: signFlip(d) }))
      .map((rival) => ({ ...rival, d: up() ? rival.d : -rival.d }))
      .sort((a, b) => b.d - a.d);
  }

  function drawDetail() {
    if (!picked) {
      $("detail").innerHTML = '<h2>Compare</h2><p class="quiet">Click a point or a row to test it against every other row shown, seed by seed. Tab and the arrow keys work too; Escape clears the selection.</p>';
      return;
    }
    const found = rivals(picked);
    const table = found.map(({ r, n, d, p }) =>
      `<tr><td>${mark(r)} ${escape(r.name)}</td><td class="number">${d >= 0 ? "+" : ""}${d.toFixed(2)}</td><td class="number">${p.toFixed(3)}</td><td class="number">${n}</td></tr>`).join("");
    $("detail").innerHTML = `<h2>${mark(picked)} ${escape(picked.name)}</h2>` +
      `<p class="quiet">${escape(picked.settings)}</p>` +
      (found.length
        ? `<table><thead><tr><th>better by, against</th><th class="number">points</th><th class="number">p</th><th class="number">n</th></tr></thead><tbody>${table}</tbody></table>`
        : '<p class="quiet">No other row shown shares three seeds with it, so there is nothing to test.</p>') +
      `<dl>${facts(picked)}</dl><p class="quiet">Seeds ${picked.seeds.join(", ")}; records ${picked.records.join(" ")}</p>`;
  }

  function draw() {
    drawTable(drawChart());
    drawDetail();
    remember();
  }

  /** The address stores the view, so that a link shows the same. */
  function remember() {
    const boxes = ["log", "each", "wide", "oneshot"].filter((id) => $(id).checked);
    const parts = { ...state(), on: boxes.join("."), off: [...hidden].join("."), row: picked?.name ?? "", find: $("find").value };
    const text = new URLSearchParams(Object.entries(parts).filter(([, v]) => v)).toString();
    try {
      history.replaceState(null, "", `#${text}`);
    } catch {
      return; // forbidden in a sandboxed frame; only the link is lost
    }
  }

  function recall() {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const [id, key] of [["network", "league"], ["x", "x"], ["y", "y"]])
      if ([...$(id).options].some((o) => o.value === asked.get(key))) $(id).value = asked.get(key);
    (asked.get("on") ?? "").split(".").filter(Boolean).forEach((id) => $(id) && ($(id).checked = true));
    (asked.get("off") ?? "").split(".").filter((m) => methods.includes(m)).forEach((m) => hidden.add(m));
    document.querySelectorAll("#methods input").forEach((box) => (box.checked = !hidden.has(box.value)));
    $("find").value = asked.get("find") ?? "";
    picked = chosen().find((r) => r.name === asked.get("row")) ?? null;
  }

  function pick(row) {
    picked = picked === row ? null : row;
    draw();
  }

  function hint(i) {
    const p = shown[i];
    const tip = $("tip");
    document.querySelectorAll("tr.hot").forEach((tr) => tr.classList.remove("hot"));
    if (!p) {
      tip.hidden = true;
      return;
    }
    const { x, y } = state();
    tip.innerHTML = `<b>${mark(p.row)} ${escape(p.row.name)}</b>` +
      `<dl>${[y, x].map((k) => `<dt>${escape(labels[k])}</dt><dd>${spread(p.row.values[k])}</dd>`).join("")}<dt>seeds</dt><dd>${p.row.seeds.length}</dd></dl>` +
      `<span class="quiet">${escape(p.row.settings)}</span>`;
    tip.hidden = false;
    const box = $("chart").getBoundingClientRect();
    const at = document.querySelector(`.point[data-i="${i}"] .mark`).getBoundingClientRect();
    const left = at.left - box.left + 22;
    tip.style.left = `${left + tip.offsetWidth > box.width ? left - tip.offsetWidth - 34 : left}px`;
    tip.style.top = `${Math.max(4, Math.min(at.top - box.top - 12, box.height - tip.offsetHeight - 6))}px`;
    document.querySelector(`tr[data-row="${data.rows.indexOf(p.row)}"]`)?.classList.add("hot");
  }

  const indexOf = (event) => Number(event.target.closest?.(".point")?.dataset.i ?? -1);

  function listenChart() {
    const chart = $("chart");
    chart.addEventListener("pointerover", (e) => hint(indexOf(e)));
    chart.addEventListener("pointerleave", () => hint(-1));
    chart.addEventListener("focusin", (e) => hint(indexOf(e)));
    chart.addEventListener("focusout", () => hint(-1));
    chart.addEventListener("click", (e) => indexOf(e) >= 0 && pick(shown[indexOf(e)].row));
    chart.addEventListener("keydown", (e) => {
      const i = indexOf(e);
      if (i < 0) return;
      const to = { ArrowRight: i + 1, ArrowUp: i + 1, ArrowLeft: i - 1, ArrowDown: i - 1, Home: 0, End: shown.length - 1 }[e.key];
      if (e.key === "Enter" || e.key === " ") {
        e.preventDefault();
        pick(shown[i].row);
        document.querySelector(`.point[data-i="${i}"]`)?.focus();
      } else if (to !== undefined) {
        e.preventDefault();
        move(i, (to + shown.length) % shown.length);
      }
    });
  }

  function move(from, to) {
    document.querySelector(`.point[data-i="${from}"]`).tabIndex = -1;
    const next = document.querySelector(`.point[data-i="${to}"]`);
    next.tabIndex = 0;
    next.focus();
  }

  function listenTable() {
    $("table").tHead.addEventListener("click", (e) => {
      const key = e.target.closest("button")?.dataset.key;
      if (!key) return;
      const descends = data.scores.includes(key) || key === "front";
      order = { key, down: order.key === key ? !order.down : descends };
      draw();
      document.querySelector(`th button[data-key="${key}"]`).focus();
    });
    const rowOf = (e) => data.rows[Number(e.target.closest("tr")?.dataset.row)];
    $("table").tBodies[0].addEventListener("click", (e) => rowOf(e) && pick(rowOf(e)));
    $("table").tBodies[0].addEventListener("pointerover", (e) => {
      document.querySelectorAll(".point.hot").forEach((g) => g.classList.remove("hot"));
      const i = shown.findIndex((p) => p.row === rowOf(e));
      document.querySelector(`.point[data-i="${i}"]`)?.classList.add("hot");
    });
  }

  function download() {
    const settings = { head: "settings", of: (r) => r.settings };
    const all = [...columns().filter((c) => c.key !== "front"), settings];
    const lines = sorted(chosen(), []).map((r) => all.map((c) => c.of(r) ?? ""));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(all.map((c) => c.head), lines)], { type: "text/csv" }));
    link.download = "compare.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function theme(name) {
    document.documentElement.dataset.theme = name;
  }

  fit();
  fill();
  if (data.rows.some((r) => r.values.macs_nonzero)) $("x").value = "macs_nonzero"; // all methods differ in it
  recall();
  theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  $("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  $("controls").addEventListener("input", draw);
  $("network").addEventListener("change", () => (picked = null));
  $("methods").addEventListener("change", (e) => {
    e.target.checked ? hidden.delete(e.target.value) : hidden.add(e.target.value);
    draw();
  });
  $("csv").addEventListener("click", download);
  document.addEventListener("keydown", (e) => e.key === "Escape" && picked && pick(picked));
  addEventListener("resize", () => (fit(), draw()));
  listenChart();
  listenTable();
  draw();
}

if (typeof document !== "undefined") start();

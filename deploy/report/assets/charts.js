// Curves over the steps, and tokens by staleness. A chart is drawn anew when its numbers change; the reader's cursor stays.

const HEIGHT = 168, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 24;
const COLOURS = ["var(--teacher)", "var(--student)", "var(--learner)", "var(--soft)"];
const charts = new Map();

function showCharts(state) {
  const steps = state.steps, by = (value) => steps.map((row) => [row.step, value(row)]).filter((pair) => pair[1] != null && Number.isFinite(pair[1]));
  const teachers = [...new Set(steps.slice(-50).flatMap((row) => Object.keys(row.kl_by_teacher || {})))];
  const kl = teachers.length > 1 ? teachers.map((name) => ({ name, pairs: by((row) => row.kl_by_teacher?.[name]) })) : [{ name: "", pairs: by((row) => row.kl) }];
  drawCurves("accuracy", "pass@1, held-out prompts", [{ name: "", pairs: state.evaluations.map((each) => [each.step, each.pass_at_1]), colour: "var(--student)" }], { show: percent, floor: 0, ceiling: 1 });
  drawCurves("kl", "Reverse KL, nats per token", kl, { show: tiny, smooth: true, log: true });
  drawCurves("rate", "Tokens trained per second", [{ name: "", colour: "var(--learner)", pairs: by((row) => (row.wall_s ? (row.response_tokens ?? 0) / row.wall_s : null)) }], { show: number, smooth: true, floor: 0 });
  drawBars("staleness", "Staleness of trained tokens", state.staleness || [], state.bound ?? 0);
  drawCurves("lag", "Mean staleness, in steps", [{ name: "", colour: "var(--student)", pairs: by(meanLag) }], { show: number, floor: 0, ceiling: state.bound || undefined });
  drawCurves("mismatch", "KL of sampler and learner", [{ name: "", colour: "var(--soft)", pairs: by((row) => row.behaviour_kl) }], { show: tiny, smooth: true, floor: 0 });
}

const meanLag = (row) => meanOf(Object.entries(row.staleness || {}));

function meanOf(pairs) {
  const total = pairs.reduce((sum, pair) => sum + pair[1], 0);
  return total ? pairs.reduce((sum, [lag, tokens]) => sum + lag * tokens, 0) / total : null;
}

function chartOf(id, caption) {
  if (!charts.has(id)) {
    const last = element("b"), figure = element("figure", { class: "card", id: `chart-${id}` }, element("figcaption", {}, element("span", {}, caption), last), element("div"), element("div", { class: "legend" }));
    byId("charts").append(figure);
    charts.set(id, { figure, last, plot: figure.children[1], legend: figure.children[2], drawn: "", at: null });
  }
  return charts.get(id);
}

/** Whether there is anything new to draw. */
function isNew(chart, key) {
  const same = chart.drawn === `${key}|${chart.plot.clientWidth}`;
  chart.drawn = `${key}|${chart.plot.clientWidth}`;
  return !same;
}

function drawCurves(id, caption, series, { show, floor, ceiling, smooth, log }) {
  const curves = series.filter((one) => one.pairs.length).map((one) => ({ ...one, calm: smooth ? averaged(one.pairs) : one.pairs }));
  if (!curves.length) return;
  const chart = chartOf(id, caption);
  if (!isNew(chart, JSON.stringify(curves.map(({ pairs }) => [pairs.length, pairs.at(-1)])))) return;
  const values = curves.flatMap(({ pairs }) => pairs.map((pair) => pair[1])), positive = values.filter((value) => value > 0);
  const asLog = log && positive.length === values.length && Math.max(...values) / Math.min(...values) > 30;
  const calmest = Math.min(...curves.flatMap(({ calm }) => calm.map((pair) => pair[1])));
  const scale = scaleOf(chart, curves, values, { floor: asLog ? calmest / 3 : floor, ceiling, asLog });
  const ticks = asLog ? decades(scale.low, scale.high) : [scale.low, (scale.low + scale.high) / 2, scale.high];
  const body = ticks.flatMap((value) => [svg("path", { class: "grid", d: `M${LEFT} ${scale.y(value)}H${scale.width - RIGHT}` }), svg("text", { x: LEFT - 7, y: scale.y(value) + 4, "text-anchor": "end" }, asLog ? value.toExponential(0).replace("e-", "e−").replace("e+0", "") : show(value))]);
  curves.forEach((one, i) => body.push(...curveShapes(one, scale, one.colour || COLOURS[i % COLOURS.length], smooth, curves.length === 1)));
  body.push(svg("text", { x: LEFT, y: HEIGHT - 6 }, `step ${scale.first}`), svg("text", { x: scale.width - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, String(scale.last)));
  finish(chart, caption, scale, body, curves, show);
}

function scaleOf(chart, curves, values, { floor, ceiling, asLog }) {
  const width = Math.max(220, chart.plot.clientWidth || 300), steps = curves.flatMap(({ pairs }) => [pairs[0][0], pairs.at(-1)[0]]);
  const first = Math.min(...steps), last = Math.max(...steps), bend = asLog ? Math.log10 : (value) => value;
  const low = floor ?? Math.min(...values), high = Math.max(ceiling ?? -Infinity, ...values, low + 1e-9);
  return {
    width, first, last, low, high,
    x: (step) => LEFT + ((width - LEFT - RIGHT) * (step - first)) / Math.max(1, last - first),
    y: (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (bend(Math.max(low, value)) - bend(low)) / (bend(high) - bend(low))),
  };
}

function decades(low, high) {
  const powers = [];
  for (let power = Math.ceil(Math.log10(low)); power <= Math.log10(high); power++) powers.push(10 ** power);
  return powers.length ? powers : [low, high];
}

function curveShapes({ pairs, calm }, scale, colour, smooth, alone) {
  const line = (points) => points.map(([step, value]) => `${scale.x(step).toFixed(1)},${scale.y(value).toFixed(1)}`).join(" ");
  const shapes = [];
  if (smooth && pairs.length > 8) shapes.push(svg("polyline", { class: "raw", stroke: colour, points: line(pairs) }));
  if (alone && pairs.length > 1) shapes.push(svg("polygon", { class: "area", fill: colour, points: `${scale.x(calm[0][0])},${scale.y(scale.low)} ${line(calm)} ${scale.x(calm.at(-1)[0])},${scale.y(scale.low)}` }));
  shapes.push(svg("polyline", { class: "curve", stroke: colour, points: line(calm) }));
  if (pairs.length <= 30) for (const [step, value] of pairs) shapes.push(svg("circle", { fill: colour, cx: scale.x(step), cy: scale.y(value), r: 3.2 }));
  return shapes;
}

/** An exponential mean over about a thirtieth of the run. */
function averaged(pairs) {
  const keep = 1 - 1 / Math.max(1, pairs.length / 30);
  let mean = pairs[0][1];
  return pairs.map(([step, value]) => [step, (mean = keep * mean + (1 - keep) * value)]);
}

function finish(chart, caption, scale, body, curves, show) {
  const latest = curves[0].pairs.at(-1)[1], steady = curves.map((one) => [one.name, (one.calm || one.pairs).at(-1)[1]]), picture = svg("svg", { viewBox: `0 0 ${scale.width} ${HEIGHT}`, role: "img", "aria-label": `${caption}: ${show(latest)} at step ${curves[0].pairs.at(-1)[0]}` }, ...body);
  const cursor = svg("path", { class: "cursor", d: "" });
  picture.append(cursor);
  const say = (at) => {
    const step = at == null ? null : nearest(curves[0].pairs, scale.first + ((at - LEFT) / (scale.width - LEFT - RIGHT)) * (scale.last - scale.first));
    cursor.setAttribute("d", step == null ? "" : `M${scale.x(step)} ${TOP}V${HEIGHT - BOTTOM}`);
    const said = step == null ? steady : curves.map(({ name, pairs }) => [name, (pairs.find((pair) => pair[0] === step) || pairs.at(-1))[1]]);
    write(chart.last, (step == null ? "" : `step ${step}: `) + said.map(([, value]) => show(value)).join(" · "));
  };
  picture.addEventListener("pointermove", (event) => say((chart.at = ((event.clientX - picture.getBoundingClientRect().left) * scale.width) / picture.getBoundingClientRect().width)));
  picture.addEventListener("pointerleave", () => say((chart.at = null)));
  chart.plot.replaceChildren(picture);
  chart.legend.replaceChildren(...(curves.length < 2 ? [] : curves.map(({ name }, i) => element("span", {}, element("i", { style: `background:${COLOURS[i % COLOURS.length]}` }), name))));
  say(chart.at);
}

const nearest = (pairs, step) => pairs.reduce((best, pair) => (Math.abs(pair[0] - step) < Math.abs(best - step) ? pair[0] : best), pairs[0][0]);

function drawBars(id, caption, pairs, bound) {
  if (!pairs.length) return;
  const chart = chartOf(id, caption);
  if (!isNew(chart, JSON.stringify(pairs))) return;
  const total = pairs.reduce((sum, pair) => sum + pair[1], 0), high = Math.max(...pairs.map((pair) => pair[1])), last = Math.max(bound, pairs.at(-1)[0]);
  const width = Math.max(220, chart.plot.clientWidth || 300), room = (width - 2 * RIGHT) / (last + 1), tall = HEIGHT - TOP - BOTTOM - 12;
  const shown = Object.fromEntries(pairs), every = Math.ceil((last + 1) / 12), body = [svg("path", { class: "grid", d: `M${RIGHT} ${HEIGHT - BOTTOM}H${width - RIGHT}` })];
  for (let lag = 0; lag <= last; lag++) {
    const share = (shown[lag] || 0) / total, height = (tall * (shown[lag] || 0)) / high, x = RIGHT + lag * room;
    body.push(svg("rect", { class: "bar", fill: "var(--student)", opacity: 0.85, x: x + room * 0.14, width: room * 0.72, y: HEIGHT - BOTTOM - height, height }, svg("title", {}, `${lag} steps behind: ${percent(share)} of tokens`)));
    if (lag % every === 0) body.push(svg("text", { x: x + room / 2, y: HEIGHT - 8, "text-anchor": "middle" }, String(lag)));
    if (share >= 0.0005 && room > 34) body.push(svg("text", { x: x + room / 2, y: HEIGHT - BOTTOM - height - 5, "text-anchor": "middle" }, percent(share)));
  }
  chart.plot.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${caption}, in optimizer steps, at most ${bound}` }, ...body));
  write(chart.last, `steps, bound ${bound}`);
}

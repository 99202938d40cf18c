// The token view: a list of rollouts, and one of them token by token. A run that grows adds to the list; what is being read stays.

let chosen = "";
let opened = null;
const nameOf = (rollout) => `${rollout.step}/${rollout.seq}`;

function fillList(state) {
  const key = byId("sort").value, wanted = byId("search").value.trim().toLowerCase();
  const fits = (rollout) => !wanted || rollout.prompt.toLowerCase().includes(wanted) || String(rollout.seq) === wanted;
  const sorted = (state.rollouts || []).filter(fits).sort((a, b) => b[key] - a[key] || a.seq - b.seq);
  const list = byId("list"), focused = list.contains(document.activeElement) ? document.activeElement.dataset.name : null, top = list.scrollTop;
  const buttons = sorted.map((rollout) => rolloutButton(rollout, state.recorded === false ? "weights of step" : "step"));
  list.replaceChildren(...buttons.map((button) => element("li", {}, button)));
  list.scrollTop = top;
  buttons.find((button) => button.dataset.name === focused)?.focus({ preventScroll: true });
  if (!chosen && buttons.length) buttons[0].click();
  if (!opened && !buttons.length) write(byId("text"), state.recorded === false ? "No scored answer has been seen waiting for the learner yet. Trained ones lie in the run's directory: `reflux dashboard runs/NAME` shows them." : "The journal holds no scored rollouts yet.");
}

function rolloutButton(rollout, word) {
  const dot = element("i", { "aria-hidden": "true", style: `--strength:${strength(rollout.worst).toFixed(2)}` });
  const button = element("button", { type: "button", "data-name": nameOf(rollout), "aria-pressed": String(nameOf(rollout) === chosen) }, element("span", {}, rollout.prompt.trim() || "(empty prompt)"),
    element("small", {}, dot, element("span", {}, `${word} ${rollout.step} · #${rollout.seq} · worst ${rollout.worst.toFixed(1)} · mean ${rollout.mean.toFixed(2)}${rollout.finish === "length" ? " · cut off" : ""}`)));
  button.addEventListener("click", () => choose(rollout));
  return button;
}

async function choose(rollout) {
  chosen = nameOf(rollout);
  for (const button of byId("list").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.name === chosen));
  const whole = rollout.tokens ? rollout : await fetchRollout(rollout);
  if (whole && nameOf(whole) === chosen) openRollout(whole);
}

async function fetchRollout(rollout) {
  try {
    const response = await fetch(`rollouts/${nameOf(rollout)}`);
    if (response.ok) return await response.json();
    write(byId("text"), await response.text());
  } catch {
    write(byId("text"), "The dashboard's server does not answer.");
  }
  return null;
}

function openRollout(rollout) {
  opened = { rollout, versions: versionsOf(rollout), at: -1, spans: [] };
  byId("text").replaceChildren(element("span", { class: "prompt" }, rollout.prompt));
  rollout.tokens.forEach((token, index) => byId("text").append(tokenSpan(token, index)));
  drawStrip(rollout);
  const worst = worstTokens(rollout)[0] ?? 0;
  opened.spans[worst].tabIndex = 0;
  showToken(worst);
  if (byId("text").scrollHeight > byId("text").clientHeight) byId("text").scrollTop = Math.max(0, opened.spans[worst].offsetTop - byId("text").clientHeight / 2);
}

function versionsOf(rollout) {
  return rollout.versions.flatMap(([term, step, count, exact]) => Array(count).fill(`(${term}, ${step})${exact ? "" : " or newer"}`));
}

function tokenSpan(token, index) {
  const { rollout, versions, spans } = opened, swapped = index > 0 && versions[index] !== versions[index - 1];
  const label = `token ${index + 1} of ${rollout.tokens.length}, ${short(token)}, gap ${logp(rollout.gap[index])}`;
  const span = element("span", { class: swapped ? "token swap" : "token", role: "button", tabindex: -1, "aria-label": label, "data-index": index }, visible(token));
  span.style.backgroundColor = colour(rollout.gap[index]);
  spans.push(span);
  return span;
}

const worstTokens = (rollout) => rollout.gap.map((_, index) => index).sort((a, b) => rollout.gap[b] - rollout.gap[a]);

/** One bar per token: up where the teacher disagrees. Click, or choose one of the worst. */
function drawStrip(rollout) {
  const count = rollout.gap.length, high = Math.max(1, ...rollout.gap.map((gap) => Math.min(12, Math.abs(gap)))), width = Math.max(count, 40), middle = 40;
  const bars = rollout.gap.map((gap, i) => svg("rect", { class: gap > 0 ? "up" : "down", x: i + 0.12, width: 0.76, y: gap > 0 ? middle - (38 * Math.min(12, gap)) / high : middle, height: Math.max(0.3, (gap > 0 ? 38 : 22) * Math.min(12, Math.abs(gap)) / high) }));
  opened.here = svg("rect", { class: "here", y: 0, height: 64, width: 1 });
  const strip = svg("svg", { viewBox: `0 0 ${width} 64`, preserveAspectRatio: "none", "aria-hidden": "true" }, opened.here, ...bars);
  strip.addEventListener("pointermove", (event) => showToken(indexAt(strip, event, width, count)));
  strip.addEventListener("click", (event) => opened.spans[indexAt(strip, event, width, count)].focus());
  const worst = worstTokens(rollout).slice(0, 6).filter((index) => rollout.gap[index] > 0.05).map((index) => {
    const button = element("button", { type: "button", style: `--strength:${(0.5 * strength(rollout.gap[index])).toFixed(2)}`, "aria-label": `token ${index + 1}, gap ${logp(rollout.gap[index])}` }, `${short(rollout.tokens[index])} ${rollout.gap[index].toFixed(1)}`);
    button.addEventListener("click", () => opened.spans[index].focus());
    return button;
  });
  byId("strip").replaceChildren(element("p", {}, worst.length ? "Where the teacher disagrees most:" : "The teacher agrees everywhere.", ...worst), strip);
}

const indexAt = (strip, event, width, count) => Math.max(0, Math.min(count - 1, Math.floor(((event.clientX - strip.getBoundingClientRect().left) / strip.getBoundingClientRect().width) * width)));

function showToken(index) {
  if (!opened || opened.at === index) return;
  opened.spans[opened.at]?.classList.remove("now");
  opened.spans[index].classList.add("now");
  opened.here.setAttribute("x", index);
  opened.at = index;
  showDetail(opened.rollout, opened.versions[index], index);
}

function walk(event) {
  const at = Number(event.target.dataset?.index ?? -1), last = (opened?.spans.length ?? 0) - 1;
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
  if (at < 0 || next === undefined || next < 0 || next > last) return;
  opened.spans[next].focus();
  event.preventDefault();
}

/** One token is in the order of the tab key: the last that was looked at. */
function tokenFocused(event) {
  const index = Number(event.target.dataset?.index ?? -1);
  if (index < 0) return;
  for (const span of opened.spans) if (span.tabIndex === 0) span.tabIndex = -1;
  event.target.tabIndex = 0;
  showToken(index);
}

function listenToTokens(state) {
  byId("text").addEventListener("keydown", walk);
  byId("text").addEventListener("focusin", tokenFocused);
  byId("text").addEventListener("mouseover", (event) => event.target.dataset?.index && showToken(Number(event.target.dataset.index)));
  byId("sort").addEventListener("change", () => fillList(state));
  byId("search").addEventListener("input", () => fillList(state));
}

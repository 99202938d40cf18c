// What the picture says: of a run that lives from its last look, of a finished or stopped one from its record.

const MOST_LANES = 3;
const PLACE = { sampling: "producer", scoring: "scorer", training: "learner", publishing: "weights", admission: "admission" };
const PLURAL = { producer: "Producers", scorer: "Scorers", learner: "Learner" };
let picture = null;

function showPipeline(state) {
  const wide = byId("pipeline").clientWidth >= 860, now = state.now;
  const topics = laneTopics(now, state.teachers || []);
  if (!picture || picture.wide !== wide || picture.topics.join() !== topics.join()) {
    picture = drawPipeline(wide, topics);
    byId("pipeline").replaceChildren(picture.svg);
  }
  picture.svg.classList.toggle("still", !now);
  if (now) fillLive(now, state); else fillFromRecord(state);
  markHeld(now);
  showVerdict(state);
  picture.svg.setAttribute("aria-label", pictureInWords(state));
}

function laneTopics(now, teachers) {
  const seen = (now ? now.queues.map((queue) => queue.topic) : teachers.map((name) => `rollouts:${name}`)).filter((topic) => topic.startsWith("rollouts"));
  const all = seen.length ? seen : teachers.length ? teachers.map((name) => `rollouts:${name}`) : ["rollouts"];
  return all.length <= MOST_LANES ? all : [...all.slice(0, MOST_LANES - 1), "rollouts:…"];
}

function fillNode(role, { name, big, state, small, points }) {
  const parts = picture.nodes[role];
  write(parts.name, name);
  write(parts.big, big);
  const room = picture.wide ? 27 : 44;
  write(parts.state, state.length > room ? state.slice(0, room - 1) + "…" : state);
  write(parts.small, small);
  const { x, y, width, height } = parts.sparkBox, high = Math.max(...points, 1e-9);
  parts.spark.setAttribute("points", points.length < 2 ? "" : points.map((value, i) => `${(x + (width * i) / (points.length - 1)).toFixed(1)},${(y + height - (height * value) / high).toFixed(1)}`).join(" "));
}

function fillTube(topic, label, queue, full) {
  const parts = picture.tubes[topic], { width } = parts.box;
  write(parts.label, label);
  write(parts.count, queue ? queue.backlog.toLocaleString("en") : "–");
  write(parts.age, queue && queue.backlog ? `oldest ${seconds(queue.oldest_s)}` : "");
  write(parts.title, queue ? `${queue.topic}: ${queue.backlog} waiting or at work, ${queue.leased} of them leased, the oldest for ${seconds(queue.oldest_s)}` : label);
  parts.fill.setAttribute("width", queue ? (width * Math.min(1, queue.backlog / Math.max(1, full))).toFixed(1) : 0);
}

function fillLive(now, state) {
  now.roles.forEach((row, i) => {
    const cpu = row.cpu > 0.005 ? ` · CPU ${Math.round(100 * row.cpu)} %` : "";
    fillNode(row.role, {
      name: row.role === "learner" ? `Learner${row.workers ? "" : " (none)"}` : `${PLURAL[row.role]} × ${row.workers}`,
      big: `${Math.round(row.tokens_s).toLocaleString("en")} tok/s`, state: row.state, small: `${number(Math.round(10 * row.samples_s) / 10)} samples/s${cpu}`,
      points: now.history.map((past) => past.tokens_s[i]),
    });
  });
  const full = state.window || Math.max(1, now.ledger ? now.ledger.live : 1);
  const byTopic = Object.fromEntries(now.queues.map((queue) => [queue.topic, queue]));
  for (const topic of Object.keys(picture.tubes)) {
    const queue = topic === "rollouts:…" ? restOf(now.queues) : byTopic[topic];
    fillTube(topic, laneName(topic, now.queues.length - 2), queue, full);
  }
  const rates = Object.fromEntries(now.roles.map((row) => [row.role, row.samples_s]));
  const pace = { tickets: rates.producer, "to-rollouts": rates.producer, rollouts: rates.scorer, "to-scored": rates.scorer, scored: rates.learner };
  for (const [name, links] of Object.entries(picture.links)) for (const link of links) setPace(link.dots, pace[name]);
  setPace(picture.weights.dots, rates.learner / 10);
  setPace(picture.admission.dots, rates.learner);
  const version = now.learner.published ? `version (${now.learner.published.replace(":", ", ")})` : "none yet";
  write(picture.weights.label, `new weights · ${version}`);
  write(picture.admission.label, state.window ? `tickets: at most ${state.window} samples in flight` : "tickets, with each publication");
}

/** Several teachers are told apart by their names. */
function laneName(topic, lanes) {
  if (topic === "rollouts:…") return `${lanes - MOST_LANES + 1} others`;
  return picture.topics.length > 1 && topic.startsWith("rollouts:") ? topic.slice("rollouts:".length) : topic.split(":")[0];
}

function restOf(queues) {
  const rest = queues.filter((queue) => queue.topic.startsWith("rollouts:")).slice(MOST_LANES - 1), sum = (key) => rest.reduce((total, queue) => total + queue[key], 0);
  return { topic: "other teachers", backlog: sum("backlog"), leased: sum("leased"), oldest_s: Math.max(0, ...rest.map((queue) => queue.oldest_s)) };
}

function setPace(dots, rate) {
  dots.classList.toggle("idle", !(rate > 0));
  const pace = rate > 0 ? `${(1.4 / (1 + Math.log10(1 + rate))).toFixed(1)}s` : "";
  if (dots.style.getPropertyValue("--pace") !== pace) dots.style.setProperty("--pace", pace);
}

function fillFromRecord(state) {
  const done = state.result, total = (key) => state.steps.reduce((sum, row) => sum + (row[key] || 0), 0);
  const samples = done.samples ?? total("samples"), tokens = done.tokens ?? total("response_tokens");
  const how = done.steps ? "finished" : state.steps.length ? "on record" : "no step yet", cpu = (role) => (done.cpu_s && done.cpu_s[role] ? `${number(done.cpu_s[role])} CPU seconds` : "");
  const answers = `${samples.toLocaleString("en")} answers`;
  fillNode("producer", { name: "Producers", big: `${short3(tokens)} tokens`, state: `${answers} sampled`, small: cpu("producer"), points: [] });
  fillNode("scorer", { name: "Scorers", big: `${short3(tokens)} tokens`, state: `${answers} scored`, small: cpu("scorer"), points: [] });
  fillNode("learner", { name: "Learner", big: `${lastStep(state).toLocaleString("en")} steps`, state: how, small: cpu("learner"), points: [] });
  for (const topic of Object.keys(picture.tubes)) fillTube(topic, laneName(topic, (state.teachers || []).length), null, 1);
  write(picture.weights.label, "new weights");
  write(picture.admission.label, state.window ? `tickets: at most ${state.window} samples in flight` : "tickets");
}

const short3 = (value) => (value >= 1e6 ? `${(value / 1e6).toFixed(2)} M` : value >= 1e5 ? `${Math.round(value / 1e3)} k` : value.toLocaleString("en"));
const lastStep = (state) => Math.max(0, state.result.steps ?? 0, state.now?.learner.step ?? 0, state.steps.length ? state.steps.at(-1).step : 0);

/** The place that keeps the others waiting; what lies outside is marked at the role that complains. */
function heldPlace(now) {
  const found = now && now.bottleneck;
  if (!found) return "";
  return found.place === "outside" ? found.line.split(" ")[0] : found.place === "Redis" ? "Redis" : PLACE[found.place] || "scorer";
}

function markHeld(now) {
  const held = heldPlace(now);
  for (const group of picture.svg.querySelectorAll("[data-place]")) {
    const tube = group.classList.contains("tube");
    group.classList.toggle("held", held === "Redis" ? tube : !tube && group.dataset.place === held);
    if (!tube) for (const path of group.querySelectorAll(".flow.return")) path.classList.toggle("held-line", group.dataset.place === held);
  }
}

function showVerdict(state) {
  const now = state.now, verdict = byId("verdict");
  const line = now ? (now.bottleneck ? now.bottleneck.line : now.roles.map((row) => `${row.role} ${row.state}`).join("; ")) : state.result.steps ? "" : state.away || "";
  const ledger = now ? now.ledger_line : state.result.ledger ? ledgerInWords(state.result.ledger) : "";
  const text = [line, ledger, ...(now ? now.complaints : [])].join("\n");
  if (verdict.dataset.text === text) return;
  verdict.dataset.text = text;
  const head = line ? [now && now.bottleneck ? element("span", { class: "dot" }) : "", element("b", {}, line.slice(0, 1).toUpperCase() + line.slice(1))] : [];
  verdict.replaceChildren(...head, element("small", {}, ledger), ...(now ? now.complaints.map((said) => element("small", { class: "ill" }, said)) : []));
}

const ledgerInWords = (ledger) => `admitted ${ledger.admitted.toLocaleString("en")} = applied ${ledger.applied.toLocaleString("en")} + live ${ledger.live} + dead ${ledger.dead}`;

function pictureInWords(state) {
  const parts = Object.entries(picture.nodes).map(([role, node]) => `${PLURAL[role]}: ${node.big.textContent}, ${node.state.textContent}`);
  const waiting = Object.values(picture.tubes).map((tube) => `${tube.label.textContent}: ${tube.count.textContent}`);
  return `Pipeline. ${parts.join(". ")}. Waiting: ${waiting.join(", ")}.`;
}

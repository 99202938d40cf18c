// What is known of the run, where it comes from, and who draws it. A report's data are complete; a dashboard's page asks for what it lacks.

const state = { now: null, away: "", steps: [], evaluations: [], staleness: [], result: {}, rollouts: [], dead: null, lost: false, edition: 0, revision: 0, epoch: "", ...data };

function take(news) {
  const steps = news.epoch === state.epoch ? new Map(state.steps.map((row) => [row.step, row])) : new Map();
  for (const row of news.steps || []) steps.set(row.step, row);
  const another = news.edition !== state.edition && news.rollouts;
  Object.assign(state, news, { steps: [...steps.values()].sort((a, b) => a.step - b.step), rollouts: news.rollouts || state.rollouts, result: news.result || {}, lost: false });
  if (another) fillList(state);
}

function show() {
  showHead(state);
  showPipeline(state);
  showCharts(state);
  showWorkers(state);
  showDead(state);
  byId("complaint").hidden = !state.complaint;
  write(byId("complaint"), state.complaint || "");
}

async function poll() {
  try {
    const response = await fetch(`state?${new URLSearchParams({ epoch: state.epoch, revision: state.revision, edition: state.edition })}`);
    if (!response.ok) throw new Error(response.statusText);
    take(await response.json());
  } catch {
    state.lost = true;
  }
  show();
}

/** One question at a time, and none while nobody looks. */
async function follow(pause) {
  for (;;) {
    if (!document.hidden || !state.epoch) await poll();
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

listenToTokens(state);
show();
fillList(state);
new ResizeObserver(() => show()).observe(byId("charts"));
if (state.live) follow(state.live.poll_ms);

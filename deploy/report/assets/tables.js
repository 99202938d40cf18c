// Head, tiles, workers and dead letters.

function showHead(state) {
  const now = state.now, done = state.result.steps, status = byId("status");
  document.title = `Reflux ${state.run}`;
  write(byId("title"), state.run);
  const about = [state.student && `${state.student} ← ${state.teachers.join(", ")}`, state.loss, state.bound != null && `staleness at most ${state.bound}`].filter(Boolean);
  write(byId("subtitle"), about.join(" · "));
  const [word, kind] = state.lost ? ["the dashboard does not answer", "lost"] : done && !now?.workers.length ? ["finished", "finished"] : !now ? [state.live ? "not running" : "as recorded", ""] : now.answers ? (now.workers.length ? ["running", "running"] : ["nobody at work", ""]) : ["its server does not answer", "lost"];
  write(status, word);
  status.className = `pill ${kind}`;
  status.title = !now && state.away ? state.away : "";
  showProgress(state);
  showTiles(state);
}

function showProgress(state) {
  const bar = byId("progress"), step = lastStep(state), total = state.total_steps;
  bar.hidden = !total;
  if (!total) return;
  bar.setAttribute("aria-valuemax", total);
  bar.setAttribute("aria-valuenow", step);
  if (!bar.firstChild) bar.append(element("i"));
  bar.firstChild.style.width = `${Math.min(100, (100 * step) / total).toFixed(1)}%`;
}

function showTiles(state) {
  const { now, result } = state, said = now ? now.learner : {}, last = state.steps.at(-1) || {}, accuracy = result.pass_at_1 || {};
  const evaluated = state.evaluations.at(-1), ledger = now?.ledger || result.ledger;
  const tiles = [
    ["step", `${lastStep(state).toLocaleString("en")}${state.total_steps ? ` of ${state.total_steps.toLocaleString("en")}` : ""}`],
    ["pass@1", accuracy.after != null ? `${(100 * accuracy.before).toFixed(1)} → ${percent(accuracy.after)}` : evaluated ? percent(evaluated.pass_at_1) : null],
    ["KL to the teacher", klNow(state)], ["mean staleness", now ? said.staleness_mean : meanOf(state.staleness)],
    ["samples trained", ledger?.applied ?? result.samples], ["wall seconds", result.wall_s], ["evaluating", said.evaluating ? `${said.evaluated || 0} of ${said.evaluation_size || "?"}` : null],
    ["dead letters", state.dead ? state.dead.count : null],
  ].filter(([, value]) => value != null);
  const box = byId("tiles");
  if (box.children.length !== tiles.length) box.replaceChildren(...tiles.map(() => element("div", { class: "card" }, element("dt"), element("dd"))));
  tiles.forEach(([label, value], i) => { write(box.children[i].children[0], label); write(box.children[i].children[1], typeof value === "number" ? tiny(value) : value); });
}

/** Of single steps it is noise: the mean of the last few. */
function klNow(state) {
  const last = state.steps.slice(-20).map((row) => row.kl).filter((kl) => kl != null);
  return last.length ? last.reduce((sum, kl) => sum + kl, 0) / last.length : state.now?.learner.kl;
}

const HEAD = [["worker", ""], ["state", ""], ["weights", ""], ["tokens/s", "n"], ["samples", "n"], ["CPU", "n"], ["heartbeat", "n"], ["host", ""]];

function showWorkers(state) {
  const workers = state.now ? state.now.workers : [];
  byId("workers-part").hidden = !state.now;
  if (!state.now) return;
  const rows = workers.map((worker) => [
    [element("i", { class: `role ${HUES[worker.role]}` }), element("b", {}, worker.name.slice(0, worker.role.length + 9)), ...(worker.teacher ? [element("small", {}, ` ${worker.teacher}`)] : [])], [worker.state],
    [worker.version ? `(${worker.version.join(", ")})` : "–"], [number(Math.round(worker.tokens_s))], [Math.round(worker.samples).toLocaleString("en")], [`${Math.round(100 * worker.cpu)} %`], [`${seconds(worker.heard_s)} ago`], [`${worker.host} · ${worker.pid}`],
  ]);
  fillTable("workers", HEAD, rows, workers.map((worker) => (worker.well ? "" : "ill")), "Nobody is at work.");
}

function showDead(state) {
  const dead = state.dead || { count: 0, letters: [] };
  const rows = dead.letters.map((letter) => [[`#${letter.seq}`], [letter.attempt == null ? "" : String(letter.attempt)], [letter.reason]]);
  const more = dead.count - dead.letters.length;
  if (more > 0) rows.push([["…"], [""], [`and ${more} more: \`reflux dead list\` has them all`]]);
  fillTable("dead", [["sample", ""], ["attempt", "n"], ["reason", ""]], rows, [], "None: no sample was given up.");
}

function fillTable(id, head, rows, classes, empty) {
  const box = byId(id);
  if (!rows.length) return void (box.firstElementChild?.tagName === "P" || box.replaceChildren(element("p", {}, empty)));
  let table = box.querySelector("table");
  if (!table) box.replaceChildren((table = element("table", {}, element("thead", {}, element("tr", {}, ...head.map(([name, kind]) => element("th", { class: kind, scope: "col" }, name)))), element("tbody"))));
  const body = table.tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, r) => {
    const row = body.rows[r] || body.insertRow();
    row.className = classes[r] || "";
    cells.forEach((content, c) => {
      const cell = row.cells[c] || row.insertCell(), text = content.map((part) => (typeof part === "string" ? part : part.textContent)).join("");
      cell.className = head[c][1];
      if (cell.textContent !== text || !cell.childNodes.length) cell.replaceChildren(...content);
    });
  });
}

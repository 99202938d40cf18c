// One token: what both said of it, and what each would rather have said.

function showDetail(rollout, version, index) {
  const gap = rollout.gap[index], token = rollout.tokens[index];
  const facts = [["token", element("code", { class: "spoken" }, short(token))], ["student", logp(rollout.student[index])]];
  for (const teacher of rollout.teachers) facts.push([rollout.teachers.length > 1 ? `teacher ${teacher.name}` : "teacher", logp(teacher.logp[index])]);
  facts.push(["gap", element("span", { class: gap > 0.05 ? "hot" : gap < -0.05 ? "cool" : "" }, logp(gap))], ["weights", version], ["trained at step", rollout.step], ["position", `${index + 1} of ${rollout.tokens.length}`]);
  const list = element("dl", { class: "facts" }, ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, typeof value === "object" ? value : String(value)))));
  const tops = element("div", { class: "tops" }, topList("The student would say", "h-student", rollout.student_top?.[index], token, rollout.student[index], "Its other candidates are not on record (producer.record_top_k)."));
  for (const teacher of rollout.teachers) tops.append(topList(`${rollout.teachers.length > 1 ? teacher.name : "The teacher"} would say`, "h-teacher", teacher.top[index], token, teacher.logp[index], "This teacher sends no candidates (top_k = 0)."));
  byId("detail").replaceChildren(list, tops);
}

function topList(title, hue, top, said, saidLogp, without) {
  const rows = top ? top.slice(0, 6) : [[said, saidLogp]], there = rows.some(([text]) => text === said);
  if (!there) rows.push([said, saidLogp]);
  rows.sort((a, b) => b[1] - a[1]);
  const items = rows.map(([text, value]) => element("li", { class: text === said ? "said" : "" }, element("code", {}, short(text)), element("i", { style: `width:${(100 * Math.exp(value)).toFixed(1)}%` }), element("span", {}, chance(value)), element("span", {}, logp(value))));
  return element("section", { class: hue }, element("h3", {}, title), element("ol", {}, ...items), ...(top ? [] : [element("p", {}, without)]));
}

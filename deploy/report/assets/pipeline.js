// The run as a picture: places and shapes. What is written into them is flow.js's.
// Wide, the stream runs from left to right and the new weights flow back below; narrow, from top to bottom with the way back on the left.

const NODE = { width: 196, height: 128 }, TUBE = { width: 142, height: 46 };
const HUES = { producer: "h-student", scorer: "h-teacher", learner: "h-learner", tickets: "h-learner", rollouts: "h-student", scored: "h-teacher" };

function places(wide, lanes) {
  if (wide) {
    const node = (x) => ({ x, y: 30, ...NODE }), tube = (x) => ({ x, y: 71, ...TUBE });
    return {
      box: "0 0 1180 284", tickets: tube(8), producer: node(180), rollouts: laneBoxes(tube(406), lanes), scorer: node(578), scored: tube(804), learner: node(976),
      weights: { d: "M1056 158V198Q1056 210 1044 210H290Q278 210 278 198V170", label: [667, 202], tip: [278, 160, -90] },
      admission: { d: "M1092 158V246Q1092 258 1080 258H38Q26 258 26 246V130", label: [586, 276], tip: [26, 120, -90] },
    };
  }
  const node = (y) => ({ x: 62, y, width: 300, height: NODE.height }), tube = (y) => ({ x: 62, y, width: 300, height: 38, inside: true });
  const extra = 46 * (lanes - 1);
  return {
    box: `0 0 372 ${676 + extra}`, tickets: tube(18), producer: node(84), rollouts: Array.from({ length: lanes }, (_, i) => tube(240 + 46 * i)), scorer: node(306 + extra), scored: tube(462 + extra),
    learner: node(528 + extra), weights: { d: `M62 ${574 + extra}H58Q46 ${574 + extra} 46 ${562 + extra}V158Q46 148 50 148H51`, label: [40, 360 + extra / 2], turn: true, tip: [60, 148, 0] },
    admission: { d: `M62 ${604 + extra}H32Q20 ${604 + extra} 20 ${592 + extra}V49Q20 37 28 37H51`, label: [14, 360 + extra / 2], turn: true, tip: [60, 37, 0] },
  };
}

/** One teacher's rollouts have the middle to themselves, several share it. */
function laneBoxes(whole, lanes) {
  if (lanes === 1) return [whole];
  const height = Math.min(40, (NODE.height - 8 * (lanes - 1)) / lanes), top = 30 + (NODE.height - lanes * height - 8 * (lanes - 1)) / 2;
  return Array.from({ length: lanes }, (_, i) => ({ ...whole, y: top + i * (height + 8), height, inside: true }));
}

function drawNode(role, box) {
  const { x, y, width, height } = box, text = (name, dx, dy) => svg("text", { class: name, x: x + dx, y: y + dy });
  const parts = { name: text("name", 14, 25), big: text("big", 14, 55), state: text("state", 14, 77), small: text("small", 14, 95) };
  parts.spark = svg("polyline", { points: "" });
  parts.sparkBox = { x: x + 14, y: y + 102, width: width - 28, height: 18 };
  parts.group = svg("g", { class: `node ${HUES[role]}`, "data-place": role },
    svg("rect", { class: "halo", x, y, width, height, rx: 14 }), svg("rect", { class: "body", x, y, width, height, rx: 12 }), svg("rect", { class: "tint", x, y, width, height, rx: 12 }),
    parts.spark, parts.name, parts.big, parts.state, parts.small,
    svg("g", { class: "mark" }, svg("rect", { class: "tag", x: x + width - 92, y: y - 11, width: 82, height: 21, rx: 10.5 }), svg("text", { class: "tag-text", x: x + width - 51, y: y + 3.5, "text-anchor": "middle" }, "bottleneck")));
  return parts;
}

function drawTube(name, box) {
  const { x, y, width, height, inside } = box, middle = y + height / 2;
  const parts = { box, fill: svg("rect", { class: "fill", x, y, width: 0, height, rx: 9 }) };
  parts.label = inside ? svg("text", { class: "label", x: x + 12, y: middle + 4 }) : svg("text", { class: "label", x: x + width / 2, y: y - 9, "text-anchor": "middle" });
  parts.count = inside ? svg("text", { class: "count", x: x + width - 12, y: middle + 5, "text-anchor": "end" }) : svg("text", { class: "count", x: x + width / 2, y: middle + 5, "text-anchor": "middle" });
  parts.age = inside ? svg("text", { x: x + width - 74, y: middle + 4, "text-anchor": "end" }) : svg("text", { x: x + width / 2, y: y + height + 17, "text-anchor": "middle" });
  if (inside && width < 200) parts.age.remove();
  parts.title = svg("title");
  parts.group = svg("g", { class: `tube ${HUES[name]}`, "data-place": name }, svg("rect", { class: "shell", x, y, width, height, rx: 9 }), parts.fill, parts.label, parts.count, ...(inside && width < 200 ? [] : [parts.age]), parts.title);
  return parts;
}

/** From one shape to the next, with an arrow's head; `dots` move at the pace of the samples. */
function drawLink(from, to, hue, wide) {
  const d = wide ? `M${from.x + from.width + 3} ${from.y + from.height / 2}L${to.x - 9} ${to.y + to.height / 2}` : `M${from.x + from.width / 2} ${from.y + from.height + 2}L${to.x + to.width / 2} ${to.y - 8}`;
  const tip = wide ? [to.x - 1, to.y + to.height / 2, 0] : [to.x + to.width / 2, to.y - 1, 90];
  return drawRoute({ d, tip }, hue);
}

function drawRoute({ d, tip: [x, y, turn] }, hue, more = "") {
  const dots = svg("path", { class: "flow dots idle", d });
  const group = svg("g", { class: hue }, svg("path", { class: `flow ${more}`, d, opacity: 0.35 }), dots, svg("path", { class: "arrow", d: "M0 0L-9 -5V5Z", transform: `translate(${x} ${y}) rotate(${turn})` }));
  return { group, dots };
}

function drawReturn(name, route, hue) {
  const drawn = drawRoute(route, hue, "return"), [x, y] = route.label;
  drawn.label = svg("text", { class: "route", x, y, "text-anchor": "middle", transform: route.turn ? `rotate(-90 ${x} ${y})` : null });
  drawn.group.append(drawn.label);
  drawn.group.setAttribute("data-place", name);
  return drawn;
}

/** The shapes of a run with these rollout topics. */
function drawPipeline(wide, topics) {
  const at = places(wide, topics.length);
  const picture = { topics, wide, nodes: {}, tubes: {}, links: {} };
  for (const role of ["producer", "scorer", "learner"]) picture.nodes[role] = drawNode(role, at[role]);
  picture.tubes.tickets = drawTube("tickets", at.tickets);
  picture.tubes.scored = drawTube("scored", at.scored);
  topics.forEach((topic, i) => { picture.tubes[topic] = drawTube("rollouts", at.rollouts[i]); });
  const middle = (i) => at.rollouts[i], links = [["tickets", at.tickets, at.producer], ["scored", at.scored, at.learner], ["to-scored", at.scorer, at.scored]];
  topics.forEach((topic, i) => links.push(["to-rollouts", wide ? level(at.producer, middle(i)) : at.producer, middle(i)], ["rollouts", middle(i), wide ? level(at.scorer, middle(i)) : at.scorer]));
  const hues = { tickets: "h-learner", scored: "h-teacher", "to-scored": "h-teacher", "to-rollouts": "h-student", rollouts: "h-student" };
  for (const [name, from, to] of wide ? links : links.filter(([name], i) => i < 5)) (picture.links[name] ??= []).push(drawLink(from, to, hues[name], wide));
  if (!wide && topics.length > 1) picture.links.rollouts = [drawLink(middle(topics.length - 1), at.scorer, hues.rollouts, false)];
  picture.weights = drawReturn("weights", at.weights, "h-learner");
  picture.admission = drawReturn("admission", at.admission, "h-plain");
  const groups = [picture.admission, picture.weights, ...Object.values(picture.links).flat(), ...Object.values(picture.tubes), ...Object.values(picture.nodes)].map((part) => part.group);
  picture.svg = svg("svg", { viewBox: at.box, role: "img" }, ...groups);
  return picture;
}

/** A node as seen from a lane: at the lane's height. */
const level = (node, lane) => ({ ...node, y: lane.y, height: lane.height });

// Nodes of the document. Text given here is always text, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const node = name.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const svg = (name, attributes, ...children) => element(`svg:${name}`, attributes, ...children);

/** Only where it changes: a reader's selection and a screen reader's place stay. */
function write(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

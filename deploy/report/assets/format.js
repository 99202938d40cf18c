// Numbers for people.

const number = (value) => value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 10 ? 3 : 0, signDisplay: "negative" });
const percent = (value) => (100 * value).toFixed(1) + " %";
const logp = (value) => value.toFixed(value <= -100 ? 0 : Math.abs(value) < 0.0995 ? 3 : 2).replace("-", "−");
const chance = (value) => { const p = Math.exp(value); return p >= 0.9995 ? "100 %" : p >= 0.001 ? (100 * p).toFixed(1) + " %" : "< 0.1 %"; };
const tiny = (value) => (Math.abs(value) >= 0.001 || value === 0 ? number(value) : value.toExponential(1));

function seconds(value) {
  if (value < 0.95) return `${Math.round(value * 100) / 100} s`;
  if (value < 120) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

/** How much a gap stands out, from 0 to 1: 4 nats are as red as it gets. */
const strength = (gap) => Math.min(1, Math.abs(gap) / 4) ** 0.6;

function colour(gap) {
  const much = strength(gap);
  return much < 0.06 ? "" : `rgb(var(${gap > 0 ? "--hot" : "--cool"}) / ${(0.72 * much).toFixed(2)})`;
}

const visible = (token) => (token.trim() ? token : token.replace(/\n/g, "⏎\n") || "∅");
const short = (token) => (token.trim() ? token : token.replace(/\n/g, "⏎").replace(/ /g, "␣") || "∅");

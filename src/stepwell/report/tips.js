"use strict";
// What every figure's script shares: numbers as the page writes them, and one tooltip.

const tip = document.getElementById("tip");

/** Text of a number with four significant digits, like stepwell.report.numerals.number. */
function numberText(value, digits = 4) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size && (size < 1e-4 || size >= 1e15)) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    const power = [...String(+exponent)].map((sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]);
    return `${+mantissa}×10${power.join("")}`.replace("-", "−");
  }
  const options = size >= 10 ** (digits - 1) ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: digits };
  return value.toLocaleString("en", options).replace("-", "−");
}

/** A new element with a class and text; text is never read as markup. */
function make(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

/** Show a heading and rows of {name, value, interval, look, actual} near a point of the window: beside
    it, or `under` it by so many pixels and over it where there is no room. */
function showTip(heading, rows, x, y, under = 0) {
  const list = make("dl");
  for (const row of rows) {
    const name = make("dt", row.look ? "hue" : row.actual ? "actual" : "", row.name);
    if (row.look) name.style.cssText = row.look;
    const value = make("dd", "", row.value);
    if (row.interval) value.append(" ", make("small", "", row.interval));
    list.append(name, value);
  }
  tip.replaceChildren(make("b", "", heading), list);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect(), { clientWidth } = document.documentElement;
  const within = (place, size, room) => Math.round(Math.max(8, Math.min(place, room - size - 8)));
  let left = x, top = y + under;
  if (under) {
    if (top + height > innerHeight - 8) top = y - height - 8;
  } else {
    left = x + 16 + width > clientWidth - 8 ? x - 16 - width : x + 16;
    top = y - height / 2;
  }
  tip.style.transform = `translate(${within(left, width, clientWidth)}px, ${within(top, height, innerHeight)}px)`;
  retell = null;
}

function hideTip() {
  tip.hidden = true;
  retell = null;
}

let retell = null; // how the tip finds its place again after a scroll; without it, it goes
addEventListener("scroll", () => (retell ? retell() : hideTip()), { passive: true, capture: true });

/** Tell of the item under the pointer or finger, or chosen with the keys: `next(key, at)` says which
    item a key leads to from number `at`, undefined where it leads nowhere. */
function watchItems(area, items, tell, next) {
  let current = -1;
  const mark = (at) => {
    items[current]?.classList.remove("on");
    items[at]?.classList.add("on");
    current = at;
  };
  const leave = () => {
    if (current < 0) return; // the tip may be another figure's
    mark(-1);
    hideTip();
  };
  const over = (event) => {
    const at = items.indexOf(event.target.closest(".item"));
    if (at < 0) return leave();
    mark(at);
    tell(items[at], at);
  };
  for (const item of items) item.classList.add("item");
  area.addEventListener("pointerover", over);
  area.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") leave(); });
  addEventListener("pointerover", (event) => { if (!area.contains(event.target)) leave(); }, true);
  area.addEventListener("blur", leave);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return leave();
    const at = current < 0 && event.key.startsWith("Arrow") ? 0 : next(event.key, current);
    if (!items[at]) return;
    event.preventDefault();
    mark(at);
    items[at].scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
    const retold = () => { tell(items[at], at); retell = retold; };
    retold();
  });
}

for (const figure of document.querySelectorAll("figure.heatmap")) {
  const cells = [...figure.querySelectorAll("tbody td")];
  const columns = [...figure.querySelectorAll("thead th")].map((head) => head.textContent);
  const { x: xName = "", y: yName = "", value, error } = figure.dataset;
  const tell = (cell, at) => {
    const heading = `${yName} ${cell.parentNode.cells[0].textContent}, ${xName} ${columns[at % columns.length]}`;
    const rows = [{ name: value, value: cell.dataset.v ?? "–" }];
    if (cell.dataset.e) rows.push({ name: error, value: `± ${cell.dataset.e}` });
    const box = cell.getBoundingClientRect();
    showTip(heading.trim(), rows, box.right - 8, box.top + box.height / 2);
  };
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns.length, ArrowDown: columns.length };
  watchItems(figure.querySelector(".scroll"), cells, tell, (key, at) => at + steps[key]);
}

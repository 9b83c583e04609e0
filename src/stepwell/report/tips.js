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

/** Show a heading and rows of {name, value, interval, look} near a point of the window. */
function showTip(heading, rows, x, y) {
  const list = make("dl");
  for (const row of rows) {
    const name = make("dt", row.look ? "hue" : "", row.name);
    if (row.look) name.style.cssText = row.look;
    const value = make("dd", "", row.value);
    if (row.interval) value.append(" ", make("small", "", row.interval));
    list.append(name, value);
  }
  tip.replaceChildren(make("b", "", heading), list);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const flip = x + 16 + box.width > innerWidth - 8;
  const left = flip ? x - 16 - box.width : x + 16;
  const top = Math.min(Math.max(8, y - box.height / 2), innerHeight - box.height - 8);
  tip.style.transform = `translate(${Math.round(Math.max(8, left))}px, ${Math.round(top)}px)`;
}

function hideTip() {
  tip.hidden = true;
}

addEventListener("scroll", hideTip, { passive: true, capture: true });

for (const figure of document.querySelectorAll("figure.heatmap")) {
  figure.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td[data-v]");
    if (!cell) return hideTip();
    const column = figure.querySelectorAll("thead tr > *")[cell.cellIndex].textContent;
    const row = cell.parentNode.cells[0].textContent;
    const { x: xName = "", y: yName = "", value } = figure.dataset;
    const box = cell.getBoundingClientRect();
    const heading = `${yName} ${row}, ${xName} ${column}`.trim();
    showTip(heading, [{ name: value, value: cell.dataset.v }], box.right - 8, box.top + box.height / 2);
  });
  figure.addEventListener("pointerleave", hideTip);
}

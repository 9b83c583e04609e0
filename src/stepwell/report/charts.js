// Values under the pointer, or under the arrow keys, on every chart of the page.

const NEAR = 8; // pixels within which points of several series count as one place

/** All points of a chart, each with its place (0 to 1, from the top left) and its series. */
function pointsOf(data) {
  const place = (axis, value) => axis.log
    ? Math.log(value / axis.low) / Math.log(axis.high / axis.low)
    : (value - axis.low) / (axis.high - axis.low);
  const points = [];
  for (const series of data.series) {
    series.x.forEach((x, index) => {
      const y = series.y[index];
      if (x === null || y === null) return;
      const left = place(data.x, x), top = 1 - place(data.y, y);
      if (Number.isFinite(left) && Number.isFinite(top)) points.push({ series, index, left, top });
    });
  }
  return points.sort((one, other) => one.left - other.left);
}

function axisText(axis, value) {
  if (axis.names && axis.names.length) return axis.names[Math.round(value)];
  return axis.percent ? `${numberText(100 * value)}%` : numberText(value);
}

function rowOf({ series, index }, data) {
  const interval = series.low && series.low[index] !== null
    ? `${axisText(data.y, series.low[index])} to ${axisText(data.y, series.high[index])}` : "";
  return { name: series.name, look: series.look, value: axisText(data.y, series.y[index]), interval };
}

function watchChart(figure) {
  const area = figure.querySelector(".area");
  const data = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
  const points = pointsOf(data);
  const scattered = data.series.some((series) => series.style === "points");
  const barred = data.series.some((series) => series.style === "bars");
  const overlay = make("div");
  area.append(overlay);
  let current = points.length - 1;

  /** The points shown together with one: the nearest of each series at the same x. */
  function together(chosen, width) {
    if (scattered) return [chosen];
    const nearest = new Map();
    for (const point of points) {
      const distance = Math.abs(point.left - chosen.left) * width;
      const best = nearest.get(point.series);
      if (distance <= NEAR && (!best || distance < best.distance)) nearest.set(point.series, { distance, point });
    }
    return data.series.filter((series) => nearest.has(series)).map((series) => nearest.get(series).point);
  }

  function show(number) {
    current = number;
    const box = area.getBoundingClientRect();
    const chosen = points[number];
    const shown = together(chosen, box.width);
    const marks = shown.filter(() => !barred).map((point) => {
      const dot = make("i", "dot hue");
      dot.style.cssText = `${point.series.look};left:${100 * point.left}%;top:${100 * point.top}%`;
      return dot;
    });
    if (!barred && !scattered) {
      const cursor = make("i", "cursor");
      cursor.style.left = `${100 * chosen.left}%`;
      marks.unshift(cursor);
    }
    overlay.replaceChildren(...marks);
    const label = chosen.series.labels && chosen.series.labels[chosen.index];
    const place = `${data.x.label} ${axisText(data.x, chosen.series.x[chosen.index])}`;
    const rows = shown.map((point) => rowOf(point, data));
    showTip(label ? `${label}: ${place}` : place, rows, box.left + chosen.left * box.width, box.top + chosen.top * box.height);
  }

  function nearestTo(x, y, box) {
    let best = -1, least = Infinity;
    points.forEach((point, number) => {
      const across = (point.left - x) * box.width, along = (point.top - y) * box.height;
      const distance = scattered ? Math.hypot(across, along) : Math.abs(across) + Math.abs(along) * 1e-4;
      if (distance < least) [best, least] = [number, distance];
    });
    return best;
  }

  function leave() {
    overlay.replaceChildren();
    hideTip();
  }

  /** The next point in a direction that lies at another place; with lines, at another x. */
  function step(direction) {
    let next = current + direction;
    while (!scattered && points[next] && points[next].left === points[current].left) next += direction;
    return points[next] ? next : current;
  }

  if (!points.length) return;
  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    show(nearestTo((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, box));
  });
  area.addEventListener("pointerleave", leave);
  area.addEventListener("blur", leave);
  area.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: () => step(1), ArrowLeft: () => step(-1), Home: () => 0, End: () => points.length - 1 };
    if (!moves[event.key]) return;
    event.preventDefault();
    show(moves[event.key]());
  });
}

for (const figure of document.querySelectorAll("figure.chart")) {
  // Read the data only when somebody looks: a page of many charts opens at once.
  const start = () => watchChart(figure);
  const area = figure.querySelector(".area");
  let started = false;
  for (const kind of ["pointerenter", "focus"]) {
    area.addEventListener(kind, () => { if (!started) { started = true; start(); } });
  }
}

// Grids of small maps: painted where they are on screen, read under the pointer, enlarged by a click.

const HEAD_WIDTH = 92; // pixels kept for the names of rows and of their tokens
const SMALLEST = 30, LARGEST = 236; // width of a small map, in pixels
const NEARBY = "50%"; // of the window's height: how far beyond it maps are painted

/** A break in which the page can answer. */
const pause = () => new Promise((done) => setTimeout(done));

/** The word that all of some numbered names begin with, and the names without it. */
function shortNames(names) {
  const word = names[0].replace(/\d+$/, "");
  if (!names.every((name) => name.startsWith(word) && name !== word)) return ["", names];
  return [word.trim(), names.map((name) => name.slice(word.length))];
}

/** One row of maps: a canvas for all of them, and over each a button. */
class Band {
  constructor(values, row) {
    this.first = row * values.numColumns;
    this.near = false; // the window
    this.look = null; // what the grid looked like when the canvas was painted
    this.canvas = make("canvas");
    this.buttons = Array.from({ length: values.numColumns }, (_, column) => this.button(values, this.first + column));
    this.element = make("div", "band");
    this.element.append(this.canvas, ...this.buttons);
  }

  button(values, map) {
    const button = make("button");
    button.type = "button";
    button.map = map;
    button.setAttribute("aria-label", `Enlarge ${values.name(map) || "the map"}`);
    return button;
  }

  clear() {
    this.look = null;
    this.canvas.width = this.canvas.height = 0;
  }
}

class Grid {
  constructor(figure, values) {
    Object.assign(this, { figure, values, own: false, observed: false, mark: make("i", "at"), scratch: make("canvas") });
    this.holder = figure.querySelector(".maps");
    this.bands = values.rows.map((_, row) => new Band(values, row));
    this.buttons = this.bands.flatMap((band) => band.buttons);
    this.addSwitch();
    this.holder.addEventListener("pointermove", (event) => this.read(event));
    this.holder.addEventListener("pointerleave", () => { this.mark.remove(); hideTip(); });
    this.holder.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) { hideTip(); new Enlarged(this, button.map); }
    });
    this.watch = new IntersectionObserver((entries) => this.moved(entries), { rootMargin: `${NEARBY} 0px` });
    for (const band of this.bands) this.watch.observe(band.element);
    new ResizeObserver(() => this.arrange()).observe(this.holder);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
    addEventListener("beforeprint", () => { for (const band of this.bands) if (!band.look) this.paint(band); });
  }

  addSwitch() {
    if (this.buttons.length < 2) return;
    const label = make("label");
    const box = make("input");
    box.type = "checkbox";
    box.addEventListener("change", () => { this.own = box.checked; this.repaint(); });
    label.append(box, "each map on its own scale");
    this.figure.querySelector(".color-scale").append(label);
    this.figure.querySelector(".color-scale").removeAttribute("role");
  }

  /** Lay the maps out in the width there is; only a change of size moves anything. */
  arrange() {
    const { values } = this;
    const gap = values.numColumns > 12 ? 3 : 10;
    const room = (this.holder.clientWidth - HEAD_WIDTH) / values.numColumns - gap;
    let side = Math.floor(Math.max(SMALLEST, Math.min(LARGEST, room)));
    if (values.area > MISSING) side = Math.max(side, Math.floor(Math.min(640, room)));
    if (side >= values.width) side -= side % values.width; // whole pixels a cell
    if (side === this.side) return;
    const height = Math.max(1, Math.round((side * values.height) / values.width));
    Object.assign(this, { side, height, gap });
    const cell = side / values.width;
    const tokens = cell >= TOKEN_HEIGHT && height / values.height >= TOKEN_HEIGHT;
    const grid = make("div");
    grid.style.cssText = `--side:${side}px;--height:${height}px;--gap:${gap}px`;
    grid.append(...this.heads(), ...values.rows.flatMap((name, row) => this.line(name, row, tokens && cell)));
    if (tokens) {
      const feet = make("div", "band");
      feet.append(...values.columns.map(() => tokenAxis("x", values.x, cell)));
      grid.append(make("span", "row"), feet);
    }
    this.holder.replaceChildren(grid);
    this.repaint();
  }

  /** The names of the columns; where maps are small, without the word that all begin with. */
  heads() {
    const { columns } = this.values;
    const [word, names] = this.side < 64 ? shortNames(columns) : ["", columns];
    const band = make("div", "band");
    band.append(...names.map((name) => make("span", "column", name)));
    return [make("span", "row", word), band];
  }

  /** The name of a row, with its tokens where a cell is large enough for them, and its maps. */
  line(name, row, cell) {
    const head = make("div", "row", name);
    if (cell) head.append(tokenAxis("y", this.values.y, cell));
    return [head, this.bands[row].element];
  }

  moved(entries) {
    for (const { target, isIntersecting } of entries) {
      const band = this.bands.find(({ element }) => element === target);
      band.near = isIntersecting;
      if (!isIntersecting) band.clear();
    }
    this.observed = true;
    this.paintNear();
  }

  repaint() {
    this.look = {};
    this.colors = colorTable(this.values.diverging);
    this.paintNear();
  }

  /** Paint the rows near the window that are not as they should be, with a break after each; then
      unpack the others, so that whoever scrolls or prints need not wait for them. */
  async paintNear() {
    delete this.figure.dataset.painted;
    if (this.painting || !this.side || !this.observed) return;
    this.painting = true;
    for (let band; (band = this.bands.find(({ near, look }) => near && look !== this.look)); await pause()) {
      await this.load(band);
      if (band.near) this.paint(band);
    }
    this.painting = false;
    this.figure.dataset.painted = "all";
    for (const band of this.bands) { await this.load(band); await pause(); }
  }

  load({ first }) {
    return this.values.load(first, first + this.values.numColumns);
  }

  /** Paint the maps of a row, as fine as the screen. */
  paint(band) {
    const { values, side, height, gap, scratch } = this, ratio = devicePixelRatio, { canvas } = band;
    const at = (column) => Math.round(column * (side + gap) * ratio), width = Math.round(side * ratio);
    Object.assign(canvas, { width: at(values.numColumns - 1) + width, height: Math.round(height * ratio) });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    for (let column = 0; column < values.numColumns; column++) {
      values.paint(scratch, band.first + column, Math.ceil(side * ratio), this.colors, this.own);
      context.drawImage(scratch, at(column), 0, width, canvas.height);
    }
    band.look = this.look;
  }

  read(event) {
    const button = event.target.closest("button");
    if (!button || event.pointerType === "touch") return;
    const [y, x] = cellUnder(event, button, this.values);
    markCell(this.mark, button, this.values, y, x);
    const { values } = this;
    const rows = [
      { name: values.yLabel, value: placed("", y, values.y).trim() },
      { name: values.xLabel, value: placed("", x, values.x).trim() },
      { name: values.valueLabel, value: values.text(button.map, y, x) },
    ];
    showTip(values.name(button.map), rows, event.clientX, event.clientY);
  }
}

for (const figure of document.querySelectorAll("figure.grid")) {
  const header = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
  new Grid(figure, new Values(header, [...figure.querySelectorAll("script.bytes")]));
}

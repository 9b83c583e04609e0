// Grids of small maps: painted a few at a time, read under the pointer, enlarged by a click.

const MISSING = 0xffff;
const HEAD_WIDTH = 92; // pixels kept for the names of rows and of their tokens
const SMALLEST = 30, LARGEST = 236; // width of a small map, in pixels
const TOKEN_HEIGHT = 11; // pixels a token needs beside a map

/** The bytes that a script element holds, deflated, in base64. */
async function inflate(element) {
  const text = atob(element.textContent), packed = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) packed[at] = text.charCodeAt(at);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** 256 colours, as pixels of a canvas, of the page's current scale. */
function colorTable(diverging) {
  const name = diverging ? "--diverging" : "--sequential";
  const stops = getComputedStyle(document.documentElement).getPropertyValue(name).split(",")
    .map((stop) => [1, 3, 5].map((at) => parseInt(stop.trim().slice(at, at + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, step) => {
    const place = (step / 255) * (stops.length - 1);
    const from = Math.min(Math.floor(place), stops.length - 2);
    const [red, green, blue] = stops[from].map((part, index) => Math.round(part + (stops[from + 1][index] - part) * (place - from)));
    return (255 << 24) | (blue << 16) | (green << 8) | red;
  });
}

/** White or black, whichever has the greater contrast to a colour (WCAG 2.2). */
function textColor(...color) {
  const [red, green, blue] = color.map((part) => (part <= 10 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 ? "#fff" : "#000";
}

/** The values of a grid: `code(map, y, x)` in steps of the scale, `value` and `text` as numbers. */
class Values {
  constructor(header, bytes) {
    Object.assign(this, header);
    [this.numRows, this.numColumns, this.height, this.width] = header.shape;
    this.area = this.height * this.width;
    const count = bytes.length / 2;
    this.codes = new Uint16Array(count);
    for (let at = 0; at < count; at++) this.codes[at] = (bytes[at] << 8) | bytes[count + at];
    const step = (this.high - this.low) / (MISSING - 1);
    this.decimals = Math.max(0, Math.floor(-Math.log10(step)));
  }
  code(map, y, x) { return this.codes[map * this.area + y * this.width + x]; }
  value(map, y, x) { return this.low + ((this.high - this.low) * this.code(map, y, x)) / (MISSING - 1); }
  text(map, y, x, decimals = this.decimals) {
    if (this.code(map, y, x) === MISSING) return "–";
    return this.value(map, y, x).toFixed(decimals).replace("-", "−");
  }
  name(map) {
    return [this.rows[Math.floor(map / this.numColumns)], this.columns[map % this.numColumns]].filter(Boolean).join(", ");
  }
  /** The ends of the codes to colour: of the whole scale, or of one map alone. */
  ends(map, own) {
    if (!own) return [0, MISSING - 1];
    let low = MISSING - 1, high = 0;
    for (let at = map * this.area; at < (map + 1) * this.area; at++) {
      const code = this.codes[at];
      if (code === MISSING) continue;
      if (code < low) low = code;
      if (code > high) high = code;
    }
    if (!this.diverging) return [low, Math.max(high, low + 1)];
    const middle = (MISSING - 1) / 2, reach = Math.max(high - middle, middle - low, 1);
    return [middle - reach, middle + reach];
  }
  /** Paint a map on a canvas of at most `limit` pixels a side. Where cells share a pixel, the one
      farthest from the middle of a diverging scale, or else the largest, is seen: peaks never vanish. */
  paint(canvas, map, limit, colors, own) {
    const width = Math.min(this.width, limit), height = Math.min(this.height, limit);
    const middle = this.diverging ? (MISSING - 1) / 2 : 0;
    const peaks = new Int32Array(width * height).fill(-1);
    for (let y = 0, at = map * this.area; y < this.height; y++) {
      const row = Math.floor((y * height) / this.height) * width;
      for (let x = 0; x < this.width; x++, at++) {
        const code = this.codes[at], cell = row + Math.floor((x * width) / this.width);
        if (code === MISSING) continue;
        if (peaks[cell] < 0 || Math.abs(code - middle) > Math.abs(peaks[cell] - middle)) peaks[cell] = code;
      }
    }
    const [low, high] = this.ends(map, own);
    const pixels = new Uint32Array(peaks.length);
    peaks.forEach((code, cell) => {
      if (code >= 0) pixels[cell] = colors[Math.round((255 * (code - low)) / (high - low))];
    });
    Object.assign(canvas, { width, height });
    canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
  }
}

/** The word that all of some numbered names begin with, and the names without it. */
function shortNames(names) {
  const word = names[0].replace(/\d+$/, "");
  if (!names.every((name) => name.startsWith(word) && name !== word)) return ["", names];
  return [word.trim(), names.map((name) => name.slice(word.length))];
}

/** The names along one side of a map, upright under it where they are wider than a cell. */
function tokenAxis(kind, names, cell) {
  const upright = kind === "x" && Math.max(...names.map((name) => name.length)) * 7 > cell;
  const axis = make("div", `tokens ${kind}${upright ? " upright" : ""}`);
  const spare = Math.max(1, Math.ceil(TOKEN_HEIGHT / cell));
  axis.append(...names.map((name, at) => make("span", at % spare ? "spare" : "", name)));
  return axis;
}

/** Put the frame `mark` around a cell of a box that shows a map of `width` x `height` cells. */
function markCell(mark, box, values, y, x) {
  const style = { left: x / values.width, top: y / values.height, width: 1 / values.width, height: 1 / values.height };
  for (const [side, share] of Object.entries(style)) mark.style[side] = `${100 * share}%`;
  box.append(mark);
}

function cellUnder(event, box, values) {
  const frame = box.getBoundingClientRect();
  const at = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
  return [at((event.clientY - frame.top) / frame.height, values.height), at((event.clientX - frame.left) / frame.width, values.width)];
}

const placed = (name, at, names) => (names[at] === String(at) ? `${name} ${at}` : `${name} ${at}: ${names[at]}`);

class Grid {
  constructor(figure, values) {
    this.figure = figure;
    this.values = values;
    this.own = false;
    this.mark = make("i", "at");
    this.holder = figure.querySelector(".maps");
    this.buttons = Array.from({ length: values.numRows * values.numColumns }, (_, map) => this.button(map));
    this.addSwitch();
    this.holder.addEventListener("pointermove", (event) => this.read(event));
    this.holder.addEventListener("pointerleave", () => { this.mark.remove(); hideTip(); });
    this.holder.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) { hideTip(); new Enlarged(this, button.map); }
    });
    new ResizeObserver(() => this.arrange()).observe(this.holder);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
  }

  button(map) {
    const button = make("button");
    button.type = "button";
    button.map = map;
    button.setAttribute("aria-label", `Enlarge ${this.values.name(map) || "the map"}`);
    button.append(make("canvas"));
    return button;
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
    if (values.width * values.height > MISSING) side = Math.max(side, Math.floor(Math.min(640, room)));
    if (side >= values.width) side -= side % values.width; // whole pixels a cell
    if (side === this.side) return;
    this.side = side;
    const height = Math.max(1, Math.round((side * values.height) / values.width));
    const cell = side / values.width;
    const tokens = cell >= TOKEN_HEIGHT && height / values.height >= TOKEN_HEIGHT;
    const grid = make("div");
    grid.style.cssText = `grid-template-columns:auto repeat(${values.numColumns},${side}px);--gap:${gap}px`;
    const [word, columns] = side < 64 ? shortNames(values.columns) : ["", values.columns];
    grid.append(make("span", "row", word), ...columns.map((name) => make("span", "column", name)));
    values.rows.forEach((name, row) => {
      const head = make("div", "row", name);
      if (tokens) { head.append(tokenAxis("y", values.y, cell)); head.lastChild.style.height = `${height}px`; }
      grid.append(head, ...this.buttons.slice(row * values.numColumns, (row + 1) * values.numColumns));
    });
    if (tokens) {
      grid.append(make("span", "row"));
      for (let column = 0; column < values.numColumns; column++) grid.append(tokenAxis("x", values.x, cell));
    }
    for (const button of this.buttons) button.style.cssText = `width:${side}px;height:${height}px`;
    this.holder.replaceChildren(grid);
    this.repaint();
  }

  /** Paint all maps, a few at a time, so that the page answers meanwhile. */
  repaint() {
    if (!this.side) return;
    this.colors = colorTable(this.values.diverging);
    const limit = Math.ceil(this.side * devicePixelRatio);
    const round = (this.round = {});
    const go = (next) => {
      if (this.round !== round) return;
      const until = performance.now() + 12;
      for (; next < this.buttons.length && performance.now() < until; next++) {
        this.values.paint(this.buttons[next].firstChild, next, limit, this.colors, this.own);
      }
      if (next < this.buttons.length) setTimeout(go, 0, next);
      else this.figure.dataset.painted = "all";
    };
    go(0);
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

/** A dialog with one map as large as the window allows, its tokens, and the value under the pointer. */
class Enlarged {
  constructor(grid, map) {
    Object.assign(this, { grid, values: grid.values, map, y: 0, x: 0 });
    this.dialog = make("dialog");
    this.title = make("h3");
    this.body = make("div", "large");
    this.readout = make("p", "readout");
    this.readout.setAttribute("role", "status");
    const header = make("header");
    header.append(this.title, ...this.controls());
    this.dialog.append(header, this.body, this.readout);
    this.dialog.addEventListener("close", () => { this.dialog.remove(); grid.buttons[this.map].focus({ preventScroll: false }); });
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.draw();
  }

  controls() {
    const control = (sign, name, action) => {
      const button = make("button", "", sign);
      button.setAttribute("aria-label", name);
      button.title = name;
      button.addEventListener("click", action);
      return button;
    };
    const close = control("×", "Close", () => this.dialog.close());
    if (this.grid.buttons.length < 2) return [close];
    return [control("‹", "Previous map (page up)", () => this.turn(-1)), control("›", "Next map (page down)", () => this.turn(1)), close];
  }

  turn(by) {
    const count = this.grid.buttons.length;
    this.map = (this.map + by + count) % count;
    this.draw();
  }

  draw() {
    const { values } = this;
    const longest = (names) => Math.min(130, 12 + 7 * Math.max(...names.map((name) => name.length)));
    const room = [innerWidth * 0.94 - longest(values.y) - 60, innerHeight * 0.92 - longest(values.x) - 150];
    const fit = Math.min(room[0] / values.width, room[1] / values.height, 46);
    const cell = fit >= 3 ? Math.floor(fit) : fit;
    const [width, height] = [Math.max(60, cell * values.width), Math.max(60, cell * values.height)];
    const canvas = make("canvas"), box = make("div", "map");
    this.title.textContent = values.name(this.map);
    box.style.cssText = `width:${width}px;height:${height}px`;
    box.tabIndex = 0;
    box.append(canvas);
    values.paint(canvas, this.map, Math.ceil(Math.max(width, height) * devicePixelRatio), this.grid.colors, this.grid.own);
    if (cell >= 34) this.writeValues(canvas, cell);
    this.axes = [tokenAxis("y", values.y, cell), tokenAxis("x", values.x, cell)];
    this.axes[0].style.height = `${height}px`;
    this.axes[1].style.width = `${width}px`;
    this.mark = make("i", "at");
    this.box = box;
    for (const kind of ["pointermove", "pointerdown"]) box.addEventListener(kind, (event) => this.select(...cellUnder(event, box, values)));
    this.body.replaceChildren(this.axes[0], box, this.axes[1]);
    this.readout.textContent = `Point at a cell, or move with the arrow keys. ${values.yLabel} down, ${values.xLabel} across.`;
  }

  /** Numbers in the cells, on a canvas as fine as the screen. */
  writeValues(canvas, cell) {
    const { values } = this;
    const small = make("canvas");
    this.values.paint(small, this.map, values.width + values.height, this.grid.colors, this.grid.own);
    const pixels = small.getContext("2d").getImageData(0, 0, small.width, small.height).data;
    const size = cell * devicePixelRatio;
    Object.assign(canvas, { width: values.width * size, height: values.height * size });
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    Object.assign(context, { textAlign: "center", textBaseline: "middle", font: `${11 * devicePixelRatio}px ui-sans-serif, system-ui, sans-serif` });
    const decimals = Math.min(2, values.decimals);
    for (let y = 0; y < values.height; y++) for (let x = 0; x < values.width; x++) {
      if (values.code(this.map, y, x) === MISSING) continue;
      const [red, green, blue] = pixels.subarray(4 * (y * values.width + x));
      context.fillStyle = textColor(red, green, blue);
      context.fillText(values.text(this.map, y, x, decimals), (x + 0.5) * size, (y + 0.5) * size);
    }
  }

  select(y, x) {
    const { values } = this;
    this.axes[0].children[this.y]?.classList.remove("on");
    this.axes[1].children[this.x]?.classList.remove("on");
    Object.assign(this, { y, x });
    this.axes[0].children[y].classList.add("on");
    this.axes[1].children[x].classList.add("on");
    markCell(this.mark, this.box, values, y, x);
    this.readout.replaceChildren(
      make("b", "", placed(values.yLabel, y, values.y)), " → ", make("b", "", placed(values.xLabel, x, values.x)),
      ` · ${values.valueLabel} `, make("b", "", values.text(this.map, y, x)));
  }

  key(event) {
    const { values, y, x } = this;
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "PageUp" || event.key === "PageDown") this.turn(event.key === "PageUp" ? -1 : 1);
    else if (moves[event.key]) {
      const [down, right] = moves[event.key];
      this.select(Math.min(values.height - 1, Math.max(0, y + down)), Math.min(values.width - 1, Math.max(0, x + right)));
    } else return;
    event.preventDefault();
  }
}

for (const figure of document.querySelectorAll("figure.grid")) {
  const header = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
  inflate(figure.querySelector("script.bytes")).then((bytes) => new Grid(figure, new Values(header, bytes)));
}

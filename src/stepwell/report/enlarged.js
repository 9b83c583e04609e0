// A map enlarged: its tokens by name, the value under the pointer or the arrow keys, and a zoom.

const LARGEST_CELL = 46; // pixels
const NUMBERS_FROM = 34; // pixels a cell needs for its number
const MOST_PIXELS = 2 ** 24; // of a canvas that holds numbers
const ZOOM_STEP = 1.5;

/** A dialog with one map, at first as large as the window allows. */
class Enlarged {
  constructor(grid, map) {
    Object.assign(this, { grid, values: grid.values, map, y: 0, x: 0, cell: 0 });
    this.dialog = make("dialog");
    this.title = make("h3");
    this.view = make("div", "large");
    this.view.tabIndex = 0;
    this.readout = make("p", "readout");
    this.readout.setAttribute("role", "status");
    const header = make("header");
    header.append(this.title, ...this.controls());
    this.dialog.append(header, this.view, this.readout);
    this.dialog.addEventListener("close", () => { this.dialog.remove(); grid.buttons[this.map].focus(); });
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    this.view.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.view.focus();
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
    const shown = [control("−", "Smaller (−)", () => this.zoom(1 / ZOOM_STEP)), control("+", "Larger (+)", () => this.zoom(ZOOM_STEP))];
    if (this.grid.buttons.length > 1) {
      shown.push(control("‹", "Previous map (page up)", () => this.turn(-1)), control("›", "Next map (page down)", () => this.turn(1)));
    }
    return [...shown, control("×", "Close (escape)", () => this.dialog.close())];
  }

  turn(by) {
    const count = this.grid.buttons.length;
    this.map = (this.map + by + count) % count;
    this.draw();
  }

  /** The side of a cell at which the whole map fits the window. */
  fit() {
    const { values } = this;
    const room = [innerWidth * 0.94 - nameWidth(values.y) - 72, innerHeight * 0.92 - nameWidth(values.x) - 162];
    const fit = Math.min(room[0] / values.width, room[1] / values.height, LARGEST_CELL);
    return fit >= 3 ? Math.floor(fit) : Math.max(fit, 60 / values.width, 60 / values.height);
  }

  draw() {
    const { values } = this;
    const cell = (this.cell = Math.max(this.cell, this.fit()));
    this.title.textContent = values.name(this.map);
    this.box = make("div", "map");
    this.box.style.cssText = `width:${cell * values.width}px;height:${cell * values.height}px`;
    this.axes = [tokenAxis("y", values.y, cell), tokenAxis("x", values.x, cell)];
    this.axes[0].style.height = this.box.style.height;
    this.axes[1].style.width = this.box.style.width;
    this.mark = make("i", "at");
    for (const kind of ["pointermove", "pointerdown"]) {
      this.box.addEventListener(kind, (event) => this.select(...cellUnder(event, this.box, values)));
    }
    this.view.replaceChildren(this.axes[0], this.box, make("i", "corner"), this.axes[1]);
    // The names along the edges always stay in sight; a cell is in sight between them.
    this.view.style.scrollPadding = `0 0 ${this.axes[1].offsetHeight}px ${this.axes[0].offsetWidth}px`;
    this.readout.textContent = `Point at a cell, or move with the arrow keys; + and − zoom. ${values.yLabel} down, ${values.xLabel} across.`;
    values.load(this.map, this.map + 1).then(() => this.paint());
  }

  paint() {
    const { values, grid, cell } = this;
    const canvas = make("canvas"), pixels = Math.ceil(Math.max(values.width, values.height) * cell * devicePixelRatio);
    values.paint(canvas, this.map, pixels, grid.colors, grid.own);
    if (cell >= NUMBERS_FROM && values.area * (cell * devicePixelRatio) ** 2 <= MOST_PIXELS) this.writeValues(canvas);
    this.box.replaceChildren(canvas);
  }

  /** Numbers in the cells, on a canvas as fine as the screen. */
  writeValues(canvas) {
    const { values } = this;
    const small = make("canvas");
    values.paint(small, this.map, values.width + values.height, this.grid.colors, this.grid.own);
    const pixels = small.getContext("2d").getImageData(0, 0, small.width, small.height).data;
    const size = this.cell * devicePixelRatio;
    Object.assign(canvas, { width: values.width * size, height: values.height * size });
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    Object.assign(context, { textAlign: "center", textBaseline: "middle", font: `${11 * devicePixelRatio}px ui-sans-serif, system-ui, sans-serif` });
    const decimals = Math.min(2, values.decimals);
    for (let y = 0; y < values.height; y++) for (let x = 0; x < values.width; x++) {
      if (values.code(this.map, y, x) === MISSING) continue;
      context.fillStyle = textColor(...pixels.subarray(4 * (y * values.width + x)).subarray(0, 3));
      context.fillText(values.text(this.map, y, x, decimals), (x + 0.5) * size, (y + 0.5) * size);
    }
  }

  /** Make cells larger or smaller; the place under the pointer, else the middle of the view, stays. */
  zoom(factor, event = null) {
    const old = this.cell, { view } = this;
    const step = factor > 1 ? Math.max(old + 1, Math.round(old * factor)) : Math.min(old - 1, Math.round(old * factor));
    this.cell = Math.max(this.fit(), Math.min(LARGEST_CELL, step));
    if (this.cell === old) return;
    const frame = this.box.getBoundingClientRect(), middle = view.getBoundingClientRect();
    const x = event ? event.clientX : middle.left + middle.width / 2, y = event ? event.clientY : middle.top + middle.height / 2;
    this.draw();
    const now = this.box.getBoundingClientRect(), ratio = this.cell / old;
    view.scrollBy(now.left + (x - frame.left) * ratio - x, now.top + (y - frame.top) * ratio - y);
  }

  /** A pinch, or the wheel with the control key; the wheel alone scrolls. */
  wheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    this.zoom(event.deltaY < 0 ? ZOOM_STEP : 1 / ZOOM_STEP, event);
  }

  select(y, x) {
    const { values } = this;
    this.axes[0].children[this.y].classList.remove("on");
    this.axes[1].children[this.x].classList.remove("on");
    Object.assign(this, { y, x });
    this.axes[0].children[y].classList.add("on");
    this.axes[1].children[x].classList.add("on");
    markCell(this.mark, this.box, values, y, x);
    this.readout.replaceChildren(
      make("b", "", placed(values.yLabel, y, values.y)), " → ", make("b", "", placed(values.xLabel, x, values.x)),
      ` · ${values.valueLabel} `, make("b", "", values.text(this.map, y, x)));
  }

  move(down, right) {
    const within = (at, count) => Math.min(count - 1, Math.max(0, at));
    this.select(within(this.y + down, this.values.height), within(this.x + right, this.values.width));
    this.mark.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  key(event) {
    const keys = {
      ArrowUp: () => this.move(-1, 0), ArrowDown: () => this.move(1, 0), ArrowLeft: () => this.move(0, -1), ArrowRight: () => this.move(0, 1),
      PageUp: () => this.turn(-1), PageDown: () => this.turn(1), "+": () => this.zoom(ZOOM_STEP), "-": () => this.zoom(1 / ZOOM_STEP),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  }
}

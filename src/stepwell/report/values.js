// The values of a grid of maps: unpacked a piece at a time, painted in colours, written as numbers.

const MISSING = 0xffff;

/** The bytes that a script element holds, deflated, in base64. */
async function inflate(element) {
  const text = atob(element.textContent), packed = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) packed[at] = text.charCodeAt(at);
  const stream = new DecompressionStream("deflate"), writer = stream.writable.getWriter();
  writer.write(packed);
  writer.close();
  return new Uint8Array(await new Response(stream.readable).arrayBuffer());
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
  constructor(header, elements) {
    Object.assign(this, header);
    [this.numRows, this.numColumns, this.height, this.width] = header.shape;
    this.area = this.height * this.width;
    this.pieces = elements.map((element) => ({ element, loading: null }));
    this.codes = new Uint16Array(this.numRows * this.numColumns * this.area).fill(MISSING);
    const step = (this.high - this.low) / (MISSING - 1);
    this.decimals = Math.max(0, Math.floor(-Math.log10(step)));
  }
  /** Wait until the values of the maps from `first` to before `end` are unpacked. */
  async load(first, end) {
    const last = Math.ceil((end * this.area) / this.piece);
    for (let at = Math.floor((first * this.area) / this.piece); at < last; at++) {
      await (this.pieces[at].loading ??= this.unpack(at));
    }
  }
  async unpack(at) {
    const bytes = await inflate(this.pieces[at].element);
    const count = bytes.length / 2, start = at * this.piece;
    for (let next = 0; next < count; next++) this.codes[start + next] = (bytes[next] << 8) | bytes[count + next];
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

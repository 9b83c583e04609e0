// Where the cells of a map lie, and the names of the tokens beside it.

const TOKEN_HEIGHT = 11; // pixels a name needs beside a map
const NAME_SIGN = 7; // pixels a sign of a name takes
const LONGEST_NAME = 18; // signs; the rest is told when the cell is

const shortened = (name) => (name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME - 1)}…` : name);

/** About how many pixels the longest of some names takes. */
const nameWidth = (names) => NAME_SIGN * Math.max(...names.map((name) => shortened(name).length));

/** The names along one side of a map, upright under it where they are wider than a cell. */
function tokenAxis(kind, names, cell) {
  const upright = kind === "x" && nameWidth(names) > cell;
  const axis = make("div", `tokens ${kind}${upright ? " upright" : ""}`);
  const spare = Math.max(1, Math.ceil(TOKEN_HEIGHT / cell));
  axis.append(...names.map((name, at) => make("span", at % spare ? "spare" : "", shortened(name))));
  return axis;
}

/** Put the frame `mark` around a cell of a box that shows a map of `width` x `height` cells. */
function markCell(mark, box, values, y, x) {
  const style = { left: x / values.width, top: y / values.height, width: 1 / values.width, height: 1 / values.height };
  for (const [side, share] of Object.entries(style)) mark.style[side] = `${100 * share}%`;
  box.append(mark);
}

/** Row and column of the cell under the pointer, in a box that shows a map. */
function cellUnder(event, box, values) {
  const frame = box.getBoundingClientRect();
  const at = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
  return [at((event.clientY - frame.top) / frame.height, values.height), at((event.clientX - frame.left) / frame.width, values.width)];
}

/** The number of a token after its kind, and its name where it has one. */
const placed = (name, at, names) => (names[at] === String(at) ? `${name} ${at}` : `${name} ${at}: ${names[at]}`);

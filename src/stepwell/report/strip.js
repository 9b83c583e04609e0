// What else could stand at a token of a strip, under the pointer or the arrow keys.

for (const figure of document.querySelectorAll("figure.strip")) {
  const area = figure.querySelector(".text");
  const tokens = [...area.querySelectorAll("span")];
  const { label, values, choices } = JSON.parse(figure.querySelector("script[type='application/json']").textContent);

  const tell = (token, at) => {
    const rows = values[at] ? [{ name: label, value: values[at] }] : [];
    for (const [rank, text, share, actual] of choices[at] ?? []) {
      rows.push({ name: `${rank}  ${text}${actual ? " ✓" : ""}`, value: share, actual });
    }
    const box = token.getBoundingClientRect();
    showTip(`token ${at}: ${token.textContent}`, rows, box.left, box.bottom, box.height / 2);
  };

  /** The token of the nearest line above or below that lies closest to number `at`. */
  const beside = (at, direction) => {
    const from = tokens[at].getBoundingClientRect();
    let best, least = Infinity, line = null;
    for (let other = at + direction; tokens[other]; other += direction) {
      const box = tokens[other].getBoundingClientRect();
      if (Math.abs(box.top - from.top) < 2) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) >= 2) break;
      if (Math.abs(box.left - from.left) < least) [best, least] = [other, Math.abs(box.left - from.left)];
    }
    return best;
  };
  const moves = {
    ArrowLeft: (at) => at - 1, ArrowRight: (at) => at + 1, Home: () => 0, End: () => tokens.length - 1,
    ArrowUp: (at) => beside(at, -1), ArrowDown: (at) => beside(at, 1),
  };
  watchItems(area, tokens, tell, (key, at) => moves[key]?.(at));
}

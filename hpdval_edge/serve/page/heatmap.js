// A grid of patch cosines as colours over a picture, as `hpedge infer --overlay` draws it.

const STOPS = [[18, 8, 48], [106, 24, 110], [188, 55, 84], [240, 120, 24], [252, 248, 160]];
const STRENGTH = 0.6;
const LONGEST = 320;

// Keys' cubic with a = -1/2, which Pillow calls bicubic.
function cubic(x) {
  const d = Math.abs(x);
  if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
  return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
}

// For each of `length` places, the four nearest of `count` cells with their weights.
function taps(count, length) {
  return Array.from({ length }, (_, place) => {
    const centre = ((place + 0.5) * count) / length - 0.5;
    const near = [-1, 0, 1, 2].map((step) => Math.floor(centre) + step).filter((cell) => cell >= 0 && cell < count);
    const weights = near.map((cell) => cubic(centre - cell));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return near.map((cell, i) => [cell, weights[i] / sum]);
  });
}

function enlarge(grid, width, height) {
  const across = taps(grid[0].length, width);
  const wide = grid.map((row) => across.map((near) => near.reduce((sum, [cell, weight]) => sum + weight * row[cell], 0)));
  return taps(grid.length, height).map((near) =>
    across.map((_, x) => near.reduce((sum, [cell, weight]) => sum + weight * wide[cell][x], 0)),
  );
}

// Spans the picture's own lowest to highest patch: it says where, not how much.
export function drawHeatMap(canvas, grid, ratio) {
  const [width, height] = ratio > 1 ? [LONGEST, Math.round(LONGEST / ratio)] : [Math.round(LONGEST * ratio), LONGEST];
  [canvas.width, canvas.height] = [Math.max(1, width), Math.max(1, height)];
  const flat = grid.flat();
  const low = Math.min(...flat);
  const spread = Math.max(...flat) - low || 1;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  enlarge(grid, canvas.width, canvas.height).flat().forEach((value, i) => {
    const level = Math.min(1, Math.max(0, (value - low) / spread));
    const stop = Math.min(STOPS.length - 2, Math.floor(level * (STOPS.length - 1)));
    const part = level * (STOPS.length - 1) - stop;
    STOPS[stop].forEach((from, channel) => {
      pixels.data[4 * i + channel] = from + (STOPS[stop + 1][channel] - from) * part;
    });
    pixels.data[4 * i + 3] = 255 * STRENGTH * level;
  });
  context.putImageData(pixels, 0, 0);
}

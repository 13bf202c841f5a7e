"""What the demo scenes are painted with: a vector pen for objects, textured backgrounds, and the effects of a camera.

Pictures are float32 [SIZE, SIZE, 3] in 0..1 until the camera turns them into uint8. Every random choice comes from the
generator handed in, so a picture is a function of its seed alone.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 112
# Objects are drawn this many times too large and then averaged down.
OVERSAMPLE = 3
# Half the canvas of an object, in object units: above 1, so that a turned object keeps its corners.
MARGIN = 1.35
ROWS = np.arange(SIZE, dtype=np.float32)[:, None]
COLUMNS = np.arange(SIZE, dtype=np.float32)[None, :]

Colour = tuple[int, int, int]
Surface = Callable[[np.random.Generator], np.ndarray]

# Names that stand for any of their colours wherever a colour is picked.
PALETTES = {
    "paint": ("#b8262b", "#1f4f9c", "#e0b21c", "#2d7d46", "#d8d8d8", "#3a4250", "#d9702a", "#6fa8c9", "#e8e4da"),
    "wood": ("#6b4226", "#8a5a34", "#a9784a", "#4a2f20", "#c29a6b"),
    "fur": ("#3f2d22", "#8a5b35", "#b98a55", "#d9b98a", "#e9e2d6", "#2b2b30", "#7b7b80", "#c6783c"),
    "skin": ("#f1c7a3", "#d9a27a", "#a8714a", "#6d442c"),
    "leaf": ("#2f6b2f", "#4c8a35", "#6f9f3c", "#3d5f2a", "#8a9a3a"),
    "petal": ("#d9304a", "#f0c42c", "#e87fb0", "#f4f1ea", "#8a5ac0", "#f08a2c", "#5a7fd6"),
    "glass": ("#8fb5c9", "#5d7f93", "#b9d3de"),
    "metal": ("#9a9da1", "#c4c6c8"),
}
RUBBER, LIGHT = "#1c1c1f", "#ffe9a0"


@functools.lru_cache(maxsize=4096)
def _points(path: str) -> np.ndarray:
    """Parse "x y x y ..." into float64 [n, 2]."""
    return np.array(path.split(), dtype=np.float64).reshape(-1, 2)


@functools.cache
def _circle(corners: int) -> np.ndarray:
    """Return the unit circle as float64 [corners, 2]."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@functools.lru_cache(maxsize=4096)
def _rounded(path: str, steps: int = 6) -> np.ndarray:
    """Run a closed Catmull-Rom curve through the n points of ``path``; float64 [n * steps, 2]."""
    points = _points(path)
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = (np.roll(points, shift, 0)[:, None, :] for shift in (1, 0, -1, -2))
    curve = p1 + t / 2 * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return curve.reshape(-1, 2)


def tone(rng: np.random.Generator, *choices: str, spread: int = 14) -> Colour:
    """Pick one of the hex colours and palettes named and jitter its channels by up to ``spread`` of 255."""
    pick, *shifts = rng.random(4).tolist()
    colours = [colour for name in choices for colour in PALETTES.get(name, (name,))]
    value = int(colours[int(pick * len(colours))][1:], 16)
    channels = (value >> 16, value >> 8 & 255, value & 255)
    moved = (channel + round((2 * shift - 1) * spread) for channel, shift in zip(channels, shifts, strict=True))
    return tuple(min(255, max(0, channel)) for channel in moved)


def darker(colour: Colour, factor: float = 0.72) -> Colour:
    """Scale an RGB colour of 0..255; a factor above 1 lightens, clipped at white."""
    return tuple(min(255, int(channel * factor)) for channel in colour)


class Pen:
    """Fills shapes given in object coordinates, x right and y down in [-1, 1], on a transparent canvas."""

    def __init__(
        self, *, pixels: int, rng: np.random.Generator, turn: float = 0.0, shear: float = 0.0, flip: bool = False
    ) -> None:
        """Fix the placement: ``turn`` in radians, ``shear`` of x along y, ``flip`` mirrors; ``rng`` varies looks."""
        self.rng = rng
        self.image = Image.new("RGBA", (pixels, pixels))
        self._draw = ImageDraw.Draw(self.image)
        self._scale = pixels / 2 / MARGIN
        self._centre = pixels / 2
        cos, sin = math.cos(turn), math.sin(turn)
        mirror = np.diag([-1.0 if flip else 1.0, 1.0])
        self._matrix = self._scale * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, shear], [0.0, 1.0]]) @ mirror

    def tone(self, *choices: str, spread: int = 14) -> Colour:
        """Pick and jitter a colour, see ``tone``."""
        return tone(self.rng, *choices, spread=spread)

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return bool(self.rng.random() < probability)

    def between(self, low: float, high: float) -> float:
        """Return a number of this range, to three decimals, so that it can be written into a path."""
        return round(float(self.rng.uniform(low, high)), 3)

    def _fill(self, colour: Colour | str, points: np.ndarray) -> None:
        placed = points @ self._matrix.T + self._centre
        self._draw.polygon(placed.ravel().tolist(), fill=colour)

    def poly(self, colour: Colour | str, path: str) -> None:
        """Fill the polygon "x y x y ..."."""
        self._fill(colour, _points(path))

    def blob(self, colour: Colour | str, path: str) -> None:
        """Fill the smooth closed curve through "x y x y ..."."""
        self._fill(colour, _rounded(path))

    def box(self, colour: Colour | str, left: float, top: float, right: float, bottom: float) -> None:
        """Fill an upright rectangle."""
        self._fill(colour, np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))

    def oval(self, colour: Colour | str, x: float, y: float, across: float, down: float, turn: float = 0.0) -> None:
        """Fill an ellipse of half-axes ``across`` and ``down``, turned by ``turn`` radians."""
        cos, sin = math.cos(turn), math.sin(turn)
        self._fill(colour, _circle(28) * (across, down) @ np.array([[cos, sin], [-sin, cos]]) + (x, y))

    def disc(self, colour: Colour | str, x: float, y: float, radius: float) -> None:
        """Fill a circle."""
        self._fill(colour, _circle(28) * radius + (x, y))

    def ring(self, colour: Colour | str, x: float, y: float, radius: float, width: float) -> None:
        """Draw a circle's line; ``radius`` runs to its middle."""
        closed = np.concatenate([_circle(28), _circle(28)[:1]])
        outline = np.concatenate([closed * (radius + width / 2), closed[::-1] * (radius - width / 2)])
        self._fill(colour, outline + np.array([x, y]))

    def line(self, colour: Colour | str, width: float, path: str) -> None:
        """Draw an open line with rounded joints."""
        placed = _points(path) @ self._matrix.T + self._centre
        thick = max(2, round(width * self._scale))
        self._draw.line(placed.ravel().tolist(), fill=colour, width=thick, joint="curve")

    def wheel(self, x: float, y: float, radius: float) -> None:
        """Draw a tyre with its hub."""
        self.disc(RUBBER, x, y, radius)
        self.disc(self.tone("metal"), x, y, radius * 0.55)
        self.disc("#55585c", x, y, radius * 0.2)


def sitting(pen: Pen, coat: Colour, chest: Colour) -> None:
    """Fill the body of a sitting animal seen from the front, below its head."""
    pen.blob(coat, "-0.26 -0.2 0.26 -0.2 0.46 0.4 0.56 0.86 0.3 0.98 -0.3 0.98 -0.56 0.86 -0.46 0.4")
    pen.blob(chest, "-0.14 -0.02 0.14 -0.02 0.2 0.4 0 0.62 -0.2 0.4")
    for x in (-0.15, 0.15):
        pen.line(darker(coat, 0.8), 0.03, f"{x * 0.2} 0.5 {x * 0.2} 0.95")
        pen.oval(darker(coat, 1.12), x, 0.92, 0.14, 0.08)


def walking(pen: Pen, coat: Colour, slim: float) -> None:
    """Fill body and legs of an animal that walks to the right; ``slim`` 1 has thin legs, 0 thick ones."""
    leg = 0.2 - 0.06 * slim
    for x, shade, stride in ((-0.5, 0.72, 0.1), (0.3, 0.72, -0.1), (-0.6, 1, -0.08), (0.42, 1, 0.1)):
        pen.line(darker(coat, shade), leg, f"{x} 0.2 {x + stride * 0.4} 0.55 {x + stride} 0.96")
    belly = f"{0.48 - 0.06 * slim} -0.1 {0.4 - 0.08 * slim}"
    pen.blob(coat, f"-0.76 0.08 -0.5 -0.14 0.1 -0.12 0.5 -0.2 0.62 0.16 0.44 {belly} -0.62 0.42")


def face(pen: Pen, x: float, y: float, eye: str) -> None:
    """Dot two eyes around (x, y)."""
    for side in (-0.13, 0.13):
        pen.disc(eye, x + side, y, 0.065)
        pen.disc("#101010", x + side, y, 0.042)


def noise(rng: np.random.Generator, height: int, width: int, *, across: int, down: int, octaves: int = 3) -> np.ndarray:
    """Smooth noise, float32 [height, width], about in -1..1; its coarsest cells number ``down`` x ``across``."""
    # Each octave is added to the enlarged sum of the coarser ones, so that only the last resize is a large one.
    total = rng.uniform(-1, 1, size=(min(height, down), min(width, across))).astype(np.float32)
    for octave in range(1, octaves):
        cells = (min(width, across << octave), min(height, down << octave))
        total = np.asarray(Image.fromarray(total).resize(cells, Image.Resampling.BICUBIC))
        total = total + np.float32(0.6**octave) * rng.uniform(-1, 1, size=total.shape).astype(np.float32)
    return np.asarray(Image.fromarray(total).resize((width, height), Image.Resampling.BICUBIC))


def shaded(drawing: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Reduce an oversampled RGBA drawing and light it from one side.

    Returns:
        [h, w, 4] float32, RGB in 0..1 and alpha, cut to what is drawn.
    """
    small = drawing.crop(drawing.getbbox()).reduce(OVERSAMPLE)
    pixels = np.asarray(small, dtype=np.float32) / 255
    alpha = small.getchannel("A")
    # Blurred alpha falls off towards the rim: its slope stands in for the slope of a rounded body.
    soft = alpha.filter(ImageFilter.GaussianBlur(max(1.0, 0.07 * max(small.size))))
    height = np.pad(np.asarray(soft, dtype=np.float32) / 255, 1, mode="edge")
    slope_x, slope_y = height[1:-1, 2:] - height[1:-1, :-2], height[2:, 1:-1] - height[:-2, 1:-1]
    side = rng.uniform(-0.9, 0.9)
    ramp = np.linspace(0.1, -0.14, pixels.shape[0], dtype=np.float32)[:, None]
    light = 1.0 + ramp + rng.uniform(0.5, 1.1) * (side * slope_x + 0.7 * slope_y)
    grain = noise(rng, *pixels.shape[:2], across=9, down=9, octaves=2)
    lit = pixels[..., :3] * (light + 0.06 * grain)[..., None]
    return np.concatenate([lit.clip(0, 1), pixels[..., 3:]], axis=2).astype(np.float32)


def stamp(canvas: np.ndarray, pixels: np.ndarray, left: int, top: int) -> np.ndarray:
    """Lay ``pixels`` [h, w, 4] over ``canvas`` in place, its corner at (left, top), which may lie outside.

    Returns:
        [SIZE, SIZE] float32: the alpha laid down within the frame.
    """
    y0, x0 = max(0, top), max(0, left)
    part = pixels[y0 - top : SIZE - top, x0 - left : SIZE - left]
    window = (slice(y0, y0 + part.shape[0]), slice(x0, x0 + part.shape[1]))
    canvas[window] += (part[..., :3] - canvas[window]) * part[..., 3:]
    alpha = np.zeros((SIZE, SIZE), dtype=np.float32)
    alpha[window] = part[..., 3]
    return alpha


def cast_shadow(canvas: np.ndarray, shape: tuple[int, ...], left: int, top: int) -> None:
    """Darken the ground of ``canvas``, in place, under an object of ``shape`` [h, w, 4], its corner at (left, top)."""
    height, width = shape[:2]
    across = (COLUMNS - left - 0.5 * width) / (0.5 * width)
    down = (ROWS - top - 0.97 * height) / (2 + 0.07 * width)
    canvas *= 1 - 0.45 * np.exp(-1.5 * (across**4 + down**2))[..., None]


def _paint(rng: np.random.Generator, *choices: str) -> np.ndarray:
    """Pick a colour as float32 [3] in 0..1."""
    return np.array(tone(rng, *choices), dtype=np.float32) / 255


def _blend(one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mix two colours [3] by ``weight`` [SIZE, SIZE], 1 meaning the second; float32 [SIZE, SIZE, 3]."""
    # Looked up in steps of 1/255: several times faster than arithmetic along an axis of three.
    steps = np.linspace(one, other, 256, dtype=np.float32)
    return steps.take((weight.clip(0, 1) * 255).astype(np.uint8), axis=0)


def _rough(rng: np.random.Generator, across: int, down: int, octaves: int = 3) -> np.ndarray:
    return noise(rng, SIZE, SIZE, across=across, down=down, octaves=octaves)


def _sky(rng: np.random.Generator) -> np.ndarray:
    high = _paint(rng, "#3f7fc4", "#6b9ed0", "#8fa3b5", "#c98a6a", "#4a5a86")
    low = _paint(rng, "#cfe3ee", "#dfe4e6", "#f0d2b0", "#c4ccd4")
    clouds = _rough(rng, 3, 6, 4) - rng.uniform(-0.1, 0.6)
    sky = _blend(high, low, np.broadcast_to(ROWS / (0.8 * SIZE), (SIZE, SIZE)))
    return sky + (_paint(rng, "#f4f4f2", "#e4e2e0") - sky) * (0.9 * clouds).clip(0, 0.8)[..., None]


def _grass(rng: np.random.Generator) -> np.ndarray:
    green, dry = _paint(rng, "#3f6b2a", "#5a8a3a", "#6f9040", "#4a6a3a"), _paint(rng, "#8aa04a", "#b0a860", "#2f5a28")
    return _blend(green, dry, 0.4 + 0.35 * _rough(rng, 4, 6) + 0.25 * _rough(rng, 90, 34, 1))


def _sand(rng: np.random.Generator) -> np.ndarray:
    pale, dark = _paint(rng, "#e0cc9a", "#d8c4a0", "#cbb08a"), _paint(rng, "#b0946a", "#a08a68")
    return _blend(pale, dark, 0.35 + 0.25 * _rough(rng, 3, 9) + 0.22 * _rough(rng, 112, 112, 1))


def _water(rng: np.random.Generator) -> np.ndarray:
    deep, crest = _paint(rng, "#2a5a7a", "#2f6f78", "#4a7a9a", "#3d5f6a"), _paint(rng, "#9cc4d0", "#c4d8dc", "#6fa0b0")
    return _blend(deep, crest, 0.25 + 0.3 * _rough(rng, 7, 40, 2) + 0.15 * _rough(rng, 2, 4))


def _asphalt(rng: np.random.Generator) -> np.ndarray:
    dark, pale = _paint(rng, "#5a5c60", "#6e6c6a", "#48494e"), _paint(rng, "#8a8884", "#7a7c80")
    ground = _blend(dark, pale, 0.3 + 0.2 * _rough(rng, 3, 5) + 0.2 * _rough(rng, 112, 112, 1))
    row, gap = rng.uniform(0.6, 0.95) * SIZE, rng.uniform(14, 30)
    stripe = (abs(ROWS - row) < 1.6) & ((COLUMNS + rng.uniform(0, 60)) % (2 * gap) < gap)
    return np.where(stripe[..., None], 0.35 * ground + 0.55, ground)


def _bricks(rng: np.random.Generator) -> np.ndarray:
    tall, wide = rng.uniform(5, 12), rng.uniform(12, 26)
    course = np.floor(ROWS / tall)
    along = COLUMNS + (course % 2) * wide / 2
    shade = rng.uniform(-0.5, 0.5, size=(32, 16))[course.astype(int), np.floor(along / wide).astype(int)]
    joint = (ROWS % tall < 1.2) | (along % wide < 1.2)
    one, other = _paint(rng, "#9a4a38", "#b06a4a", "#a8a098", "#7a5a4a"), _paint(rng, "#6a3428", "#c89a7a")
    brick = _blend(one, other, 0.35 + 0.5 * shade + 0.2 * _rough(rng, 30, 30, 2))
    return np.where(joint[..., None], _paint(rng, "#c8c0b4", "#8a847a"), brick)


def _tiles(rng: np.random.Generator) -> np.ndarray:
    side = rng.uniform(11, 28)
    odd = (np.floor(ROWS / side) + np.floor(COLUMNS / side)) % 2
    joint = (ROWS % side < 1.0) | (COLUMNS % side < 1.0)
    one, other = _paint(rng, "#d8d4c8", "#b8c8c8", "#c8b0a0"), _paint(rng, "#a8a498", "#d8d4c8", "#7a8a90")
    tile = _blend(one, other, odd + 0.2 * _rough(rng, 5, 5))
    return np.where(joint[..., None], 0.6 * tile, tile)


def _planks(rng: np.random.Generator) -> np.ndarray:
    tall = rng.uniform(9, 24)
    shade = rng.uniform(-0.5, 0.5, size=32)[np.floor(ROWS / tall).astype(int)]
    grain = 0.25 * _rough(rng, 5, 80, 2) + 0.12 * _rough(rng, 3, 3)
    dark, pale = _paint(rng, "#8a5a34", "#b08050", "#6b4630", "#c8a070"), _paint(rng, "#5a3820", "#d0a878")
    wood = _blend(dark, pale, 0.4 + 0.5 * shade + grain)
    return np.where((ROWS % tall < 1.0)[..., None], 0.5 * wood, wood)


def _wallpaper(rng: np.random.Generator) -> np.ndarray:
    plain = _paint(rng, "#d8cfc0", "#b8c4b0", "#c8b8a8", "#a8b8c8", "#d8b8a0", "#8a9a8a", "#b09ab0")
    period = rng.uniform(5, 20)
    stripes = 0.5 * (COLUMNS % period < period / 2) * (rng.random() < 0.5)
    weave = 0.15 * _rough(rng, 3, 3) + 0.08 * _rough(rng, 112, 112, 1)
    return _blend(plain, plain * rng.uniform(0.75, 1.15), stripes + weave)


def _hedge(rng: np.random.Generator) -> np.ndarray:
    dark, pale = _paint(rng, "#23401f", "#2f4a28", "#4a4a24"), _paint(rng, "#6a8a4a", "#8a9a50", "#a08040")
    return _blend(dark, pale, 0.35 + 0.3 * _rough(rng, 9, 9) + 0.3 * _rough(rng, 40, 40, 2))


def _town(rng: np.random.Generator) -> np.ndarray:
    """Paint fronts with rows of windows against the sky."""
    street, left = _sky(rng), 0
    while left < SIZE:
        right, top = left + int(rng.integers(16, 40)), int(rng.integers(0, 40))
        front = _paint(rng, "#a89888", "#8a7a70", "#b8b0a4", "#98706a", "#70808a")
        street[top:, left:right] = front
        pane = _paint(rng, "#4a5a68", "#38424c", "#e0d090")
        for x in range(left + 3, right - 5, 8):
            for y in range(top + 4, SIZE, 10):
                street[y : y + 5, x : x + 4] = pane * np.float32(rng.uniform(0.7, 1.2))
        left = right
    return street + 0.03 * _rough(rng, 60, 60, 1)[..., None]


# Upper part, lower part, and the range of the horizon as a fraction of the height.
PLACES: dict[str, tuple[Surface, Surface, float, float]] = {
    "meadow": (_sky, _grass, 0.25, 0.6),
    "beach": (_sky, _sand, 0.25, 0.5),
    "lake": (_sky, _water, 0.2, 0.5),
    "street": (_town, _asphalt, 0.4, 0.6),
    "yard": (_bricks, _asphalt, 0.4, 0.65),
    "garden": (_hedge, _grass, 0.3, 0.55),
    "room": (_wallpaper, _planks, 0.5, 0.75),
    "kitchen": (_tiles, _planks, 0.3, 0.6),
    "table": (_planks, _planks, 0.0, 0.0),
    "air": (_sky, _sky, 1.0, 1.0),
}


def backdrop(rng: np.random.Generator, place: str) -> tuple[np.ndarray, float]:
    """Paint a textured place.

    Returns:
        float32 [SIZE, SIZE, 3] in 0..1, and the horizon in pixels from the top (0: all ground; SIZE: all sky).
    """
    upper, lower, low, high = PLACES[place]
    horizon = SIZE * rng.uniform(low, high)
    line = horizon + rng.uniform(0, 2) * _rough(rng, 4, 2, 1)[:1]
    ground = lower(rng) * np.linspace(0.86, 1.08, SIZE, dtype=np.float32)[:, None, None]
    if upper is not lower:
        top = upper(rng)
        ground = top + (ground - top) * (ROWS - line).clip(0, 1)[..., None]
    return ground.clip(0, 1).astype(np.float32), horizon


def studio(rng: np.random.Generator) -> np.ndarray:
    """Paint a plain, softly lit background, float32 [SIZE, SIZE, 3]."""
    one = _paint(rng, "#e8e8e6", "#d8e4ec", "#ece4d4", "#c8d4c4", "#f4f4f4", "#b8c4d0", "#d8c8c8", "#8a949c")
    ramp = np.broadcast_to(ROWS / SIZE, (SIZE, SIZE)) + 0.05 * _rough(rng, 2, 2, 1)
    picture = _blend(one, one * rng.uniform(0.7, 0.95), ramp)
    return picture.astype(np.float32)


def photograph(picture: np.ndarray, rng: np.random.Generator, *, rough: bool) -> np.ndarray:
    """Turn a painting into a photo: light, tint, lens, sensor noise and soft colours; ``rough`` says how bad a camera.

    Args:
        picture: [SIZE, SIZE, 3] float32 in 0..1.

    Returns:
        [SIZE, SIZE, 3] uint8.
    """
    bad = 1.0 if rough else 0.2
    across, down = (rng.uniform(-0.22, 0.22, size=2) * bad).tolist()
    x, y = COLUMNS / SIZE * 2 - 1, ROWS / SIZE * 2 - 1
    light = 1 + across * x + down * y - bad * rng.uniform(0, 0.16) * (x * x + y * y)
    exposed = (picture * (255 * light)[..., None]).clip(0, 255).astype(np.uint8)
    tint = 1 + bad * rng.uniform(-0.14, 0.14, size=(3, 1))
    curve = (tint * np.linspace(0, 1, 256)).clip(0, 1) ** rng.uniform(1 - 0.25 * bad, 1 + 0.25 * bad)
    image = Image.fromarray(exposed).point(np.rint(255 * curve).astype(int).ravel().tolist())
    # As in a JPEG, colour is kept at half the resolution of brightness, and the sensor's noise with it.
    bands = image.filter(ImageFilter.BoxBlur(rng.uniform(0, 0.9 * bad))).convert("YCbCr").split()
    level = rng.uniform(1, 8) * bad
    luma, *chroma = (_grainy(band, level, rng) for band in (bands[0], bands[1].reduce(2), bands[2].reduce(2)))
    chroma = [band.resize((SIZE, SIZE), Image.Resampling.BILINEAR) for band in chroma]
    return np.asarray(Image.merge("YCbCr", (luma, *chroma)).convert("RGB"))


def _grainy(band: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """Add Gaussian noise of standard deviation ``level`` grey values to one band."""
    grain = level * rng.standard_normal(size=band.size[::-1], dtype=np.float32)
    return Image.fromarray((np.asarray(band) + grain).clip(0, 255).astype(np.uint8))

"""The twenty kinds of objects of the demo set, as drawings.

A drawing fills the box x in [-1, 1] (right), y in [-1, 1] (down); what stands, stands near y = 1. The pen turns, shears
and mirrors, so no drawing needs to. Some pairs are easy to confuse when small: bus and truck, cat and dog, lamp and
mushroom, bird and plane.
"""

import math
from collections.abc import Callable

from hpdval_edge.training.scene_painting import LIGHT, RUBBER, Pen, darker, face, sitting, walking


def _bicycle(pen: Pen) -> None:
    paint, rim = pen.tone("paint"), pen.tone(RUBBER, "#30343a")
    for x in (-0.56, 0.56):
        for step in range(4):
            dx, dy = 0.38 * math.cos(step * math.pi / 4), 0.38 * math.sin(step * math.pi / 4)
            pen.line("#b5b8bb", 0.015, f"{x - dx} {0.45 - dy} {x + dx} {0.45 + dy}")
        pen.ring(rim, x, 0.45, 0.39, 0.1)
    pen.line(paint, 0.1, "-0.06 0.45 0.34 -0.2 -0.24 -0.2 -0.56 0.45 -0.06 0.45 -0.3 -0.36")
    pen.line(paint, 0.1, "0.3 -0.34 0.38 -0.1 0.56 0.45")
    pen.line("#3a3d42", 0.09, "0.3 -0.34 0.28 -0.44 0.52 -0.5 0.6 -0.4")
    pen.blob("#2a2120", "-0.52 -0.42 -0.3 -0.46 -0.1 -0.38 -0.3 -0.32")
    pen.ring("#55585c", -0.06, 0.45, 0.1, 0.06)
    if pen.chance(0.3):
        pen.poly(pen.tone("wood"), "0.5 -0.42 0.92 -0.42 0.86 -0.08 0.56 -0.08")


def _bird(pen: Pen) -> None:
    coat = pen.tone("#7a4b2e", "#3d6ea8", "#b5342c", "#4a4d55", "#d7b23a", "#ece8df", "#2b2b30", "#5f8a4a", spread=22)
    belly, beak = pen.tone("#e8d8b8", "#f2efe8", "#d98b4a"), pen.tone("#e8a020", "#3a3d42")
    if pen.chance(0.45):
        pen.blob(coat, "-0.9 0.12 -0.45 0 0.05 -0.08 0.5 -0.1 0.62 0.08 0.3 0.26 -0.2 0.26")
        pen.poly(coat, "-0.5 0.05 -1 -0.06 -0.92 0.1 -1 0.26 -0.5 0.22")
        pen.blob(belly, "-0.2 0.2 0.2 0.1 0.5 0.08 0.3 0.25")
        pen.blob(darker(coat), "-0.3 0.06 -0.42 -0.5 -0.75 -0.95 -0.1 -0.7 0.25 0.02")
        pen.blob(darker(coat, 0.85), "-0.2 0.1 -0.2 0.5 -0.5 0.9 0.15 0.62 0.24 0.12")
        head_x, head_y = 0.6, -0.08
    else:
        pen.line("#5a4632", 0.05, "-0.02 0.6 -0.04 0.95 0.32 0.95 0.14 0.95 0.14 0.6")
        pen.poly(darker(coat), "-0.5 0.3 -1 0.72 -0.82 0.86 -0.3 0.6")
        pen.blob(coat, "-0.62 0.34 -0.3 -0.14 0.2 -0.46 0.52 -0.3 0.52 0.2 0.24 0.6 -0.25 0.66")
        pen.blob(belly, "0.1 0.1 0.46 -0.04 0.44 0.3 0.2 0.56 -0.1 0.6")
        pen.blob(darker(coat), "-0.7 0.5 -0.42 0.02 0 -0.1 0.14 0.2 -0.24 0.46")
        head_x, head_y = 0.4, -0.46
    pen.poly(beak, f"{head_x + 0.18} {head_y - 0.1} {head_x + 0.54} {head_y + 0.04} {head_x + 0.18} {head_y + 0.14}")
    pen.disc(coat, head_x, head_y, 0.26)
    pen.disc("#f4f4f0", head_x + 0.1, head_y - 0.05, 0.075)
    pen.disc("#141414", head_x + 0.12, head_y - 0.05, 0.05)


def _boat(pen: Pen) -> None:
    hull, deck = pen.tone("paint", "wood"), pen.tone("#e9e2d6", "#c29a6b")
    if pen.chance(0.6):
        cloth = pen.tone("#f4f1ea", "#f4f1ea", "#d9c7a0", "#c0392b", "#3d6ea8")
        pen.box(pen.tone("wood"), -0.06, -1, 0.01, 0.5)
        pen.blob(cloth, "0.06 -0.92 0.4 -0.3 0.72 0.3 0.4 0.37 0.06 0.36")
        pen.poly(darker(cloth, 0.86), "-0.12 -0.75 -0.12 0.36 -0.66 0.36")
        if pen.chance(0.5):
            pen.poly(pen.tone("petal"), "-0.06 -1 -0.06 -0.84 -0.3 -0.92")
    else:
        cabin = pen.tone("#f4f1ea", "#d8d8d8", "paint")
        pen.poly(cabin, "-0.55 0.45 -0.5 -0.1 0.22 -0.1 0.4 0.45")
        pen.box(darker(cabin), -0.58, -0.18, 0.3, -0.08)
        for x in (-0.4, -0.1):
            pen.box(pen.tone("glass"), x, 0.02, x + 0.2, 0.24)
        pen.box(pen.tone("#b8262b", "#3a3d42"), -0.34, -0.5, -0.14, -0.16)
        pen.line("#6b6e72", 0.04, "0.1 -0.15 0.1 -0.62")
    pen.poly(hull, "-0.95 0.4 1 0.34 0.66 0.88 -0.72 0.88")
    pen.poly(deck, "-0.96 0.38 1.02 0.32 0.97 0.44 -0.92 0.5")


def _bus(pen: Pen) -> None:
    paint, glass = pen.tone("#b8262b", "#e0b21c", "#1f4f9c", "#2d7d46", "#d9702a", "#e8e6df"), pen.tone("glass")
    if pen.chance(0.25):
        pen.box(paint, -0.95, -0.98, 0.94, -0.45)
        for x in range(6):
            pen.box(glass, -0.88 + 0.3 * x, -0.88, -0.64 + 0.3 * x, -0.58)
    pen.blob(paint, "-1 -0.42 -0.9 -0.52 0 -0.52 0.9 -0.52 1 -0.32 1.02 0.3 1 0.62 0 0.62 -1 0.62 -1.02 0.2")
    pen.box(darker(paint, 0.8), -1, 0.44, 1, 0.62)
    for x in range(5):
        pen.box(glass, -0.92 + 0.3 * x, -0.38, -0.66 + 0.3 * x, 0.06)
    pen.box(glass, 0.8, -0.38, 1, 0.14)
    pen.box(darker(paint, 0.6), 0.59, -0.4, 0.77, 0.56)
    pen.box(glass, 0.62, -0.34, 0.74, 0.4)
    pen.box(pen.tone("#f0efe9", "petal"), -1, 0.16, 0.56, 0.26)
    pen.box(LIGHT, 0.93, 0.34, 1.02, 0.44)
    for x in (-0.58, 0.36):
        pen.wheel(x, 0.62, 0.22)


def _car(pen: Pen) -> None:
    paint, glass = pen.tone("paint"), pen.tone("glass")
    back = pen.between(-0.85, -0.55)
    roof = pen.between(-0.42, -0.3)
    pen.blob(darker(paint, 0.9), f"{back} 0.12 {back + 0.22} {roof} 0 {roof - 0.04} 0.26 {roof + 0.04} 0.6 0.12 0 0.2")
    pen.poly(glass, f"{back + 0.14} 0.06 {back + 0.28} {roof + 0.1} -0.12 {roof + 0.08} -0.12 0.06")
    pen.poly(glass, f"-0.05 0.06 -0.05 {roof + 0.08} 0.2 {roof + 0.12} 0.45 0.06")
    pen.blob(paint, "-1 0.2 -0.92 0.04 -0.4 0.04 0.5 0.04 0.9 0.14 1 0.3 0.98 0.52 0.5 0.56 -0.5 0.56 -0.98 0.52")
    pen.box(darker(paint), -0.96, 0.46, 0.96, 0.56)
    pen.line(darker(paint, 0.6), 0.02, "-0.09 0.1 -0.12 0.5 0.42 0.5 0.46 0.1")
    pen.oval(LIGHT, 0.92, 0.24, 0.07, 0.06)
    for x in (-0.56, 0.56):
        pen.disc("#26262a", x, 0.54, 0.27)
        pen.wheel(x, 0.58, 0.23)


def _cat(pen: Pen) -> None:
    coat, pale = pen.tone("fur"), pen.tone("#f2e8da", "#d9c2a0")
    if pen.chance(0.55):
        pen.line(coat, 0.15, "0.3 0.86 0.74 0.84 0.84 0.5 0.68 0.2")
        sitting(pen, coat, pale)
        x, y = 0.0, -0.42
    else:
        pen.line(coat, 0.12, "-0.66 0.1 -0.9 -0.2 -0.84 -0.6 -0.62 -0.74")
        walking(pen, coat, 1)
        x, y = 0.62, -0.26
    for side in (-1, 1):
        pen.poly(coat, f"{x + side * 0.38} {y - 0.02} {x + side * 0.36} {y - 0.58} {x + side * 0.02} {y - 0.26}")
        pen.poly("#c98a86", f"{x + side * 0.31} {y - 0.14} {x + side * 0.31} {y - 0.43} {x + side * 0.12} {y - 0.24}")
    pen.oval(coat, x, y, 0.4, 0.33)
    if pen.chance(0.5):
        for step in (-0.12, 0, 0.12):
            pen.line(darker(coat, 0.55), 0.04, f"{x + step} {y - 0.32} {x + step * 0.7} {y - 0.16}")
    pen.oval(pale, x, y + 0.15, 0.17, 0.11)
    pen.poly("#c0606a", f"{x - 0.05} {y + 0.06} {x + 0.05} {y + 0.06} {x} {y + 0.13}")
    face(pen, x, y - 0.05, "#b8d048")
    for side in (-1, 1):
        pen.line("#efefef", 0.012, f"{x + side * 0.12} {y + 0.13} {x + side * 0.5} {y + 0.08}")


def _chair(pen: Pen) -> None:
    wood = pen.tone("wood", "#3a3d42", "#e8e6df", "#b8262b")
    cloth = pen.tone("paint") if pen.chance(0.5) else darker(wood, 1.15)
    dark = darker(wood)
    pen.box(dark, -0.24, 0.2, -0.12, 0.78)
    pen.box(dark, 0.44, 0.2, 0.54, 0.78)
    pen.poly(wood, "-0.56 -1 -0.42 -1 -0.4 1 -0.54 1")
    pen.poly(dark, "-0.1 -0.92 0 -0.92 0 0.2 -0.1 0.2")
    if pen.chance(0.5):
        pen.poly(cloth, "-0.5 -0.95 -0.05 -0.88 -0.05 -0.2 -0.48 -0.14")
    else:
        for y in (-0.94, -0.62, -0.3):
            pen.poly(cloth, f"-0.5 {y} -0.04 {y + 0.05} -0.04 {y + 0.2} -0.5 {y + 0.16}")
    pen.box(wood, 0.3, 0.3, 0.43, 1)
    pen.poly(cloth, "-0.58 0.2 -0.12 0.06 0.58 0.08 0.44 0.28")
    pen.poly(dark, "-0.58 0.2 0.44 0.28 0.44 0.42 -0.58 0.34")
    pen.poly(dark, "0.44 0.28 0.58 0.08 0.58 0.2 0.44 0.42")


def _clock(pen: Pen) -> None:
    rim, face = pen.tone("paint", "wood"), pen.tone("#f4f1ea", "#f4f1ea", "#e8dcc0", "#2b2b30")
    mark = "#f0efe9" if sum(face) < 240 else "#1c1c1f"
    style = pen.rng.integers(3)
    if style == 0:
        for side in (-1, 1):
            pen.line(darker(rim), 0.14, f"{side * 0.4} 0.6 {side * 0.62} 0.98")
            pen.oval(darker(rim, 1.1), side * 0.46, -0.78, 0.3, 0.18, side * 0.7)
        pen.line(darker(rim), 0.1, "0 -0.9 0 -0.6")
    if style == 1:
        pen.box(rim, -0.88, -0.88, 0.88, 0.88)
        pen.box(darker(rim), -0.8, -0.8, 0.8, 0.8)
    else:
        pen.disc(rim, 0, 0, 0.86)
    pen.disc(face, 0, 0, 0.7)
    for hour in range(12):
        x, y = math.sin(hour * math.pi / 6), math.cos(hour * math.pi / 6)
        pen.line(mark, 0.07 if hour % 3 == 0 else 0.03, f"{0.52 * x} {0.52 * y} {0.64 * x} {0.64 * y}")
    for reach, width in ((0.36, 0.1), (0.52, 0.07)):
        angle = pen.between(0, 2 * math.pi)
        pen.line(mark, width, f"0 0 {reach * math.sin(angle)} {-reach * math.cos(angle)}")
    pen.disc("#b8262b", 0, 0, 0.07)


def _cup(pen: Pen) -> None:
    paint, low = pen.tone("paint"), pen.between(0.36, 0.6)
    if pen.chance(0.4):
        pen.oval(darker(paint, 0.8), -0.05, 0.82, 0.92, 0.2)
        pen.oval(paint, -0.05, 0.78, 0.88, 0.17)
    pen.ring(darker(paint, 0.85), 0.62, 0.02, 0.28, 0.13)
    pen.poly(paint, f"-0.72 -0.45 0.62 -0.45 {low} 0.72 {low - 0.16} 0.82 {-low - 0.02} 0.82 {-low - 0.12} 0.72")
    if pen.chance(0.5):
        pen.poly(pen.tone("petal"), "-0.68 -0.14 0.58 -0.14 0.54 0.16 -0.64 0.16")
    pen.oval(darker(paint, 1.2), -0.05, -0.45, 0.67, 0.2)
    pen.oval(pen.tone("#4a2a18", "#6b3c20", "#a8682c"), -0.05, -0.42, 0.57, 0.14)


def _dog(pen: Pen) -> None:
    coat, pale = pen.tone("fur"), pen.tone("#f2e8da", "#d9c2a0")
    ear = darker(coat, 0.6)
    if pen.chance(0.45):
        pen.line(coat, 0.16, "0.36 0.86 0.7 0.72 0.82 0.46")
        sitting(pen, coat, pale)
        pen.blob(coat, "-0.34 -0.66 0 -0.82 0.34 -0.66 0.36 -0.3 0.2 0.04 -0.2 0.04 -0.36 -0.3")
        pen.oval(pale, 0, -0.12, 0.19, 0.24)
        pen.oval("#1a1414", 0, -0.24, 0.1, 0.07)
        pen.oval("#c8505a", 0, 0.06, 0.07, 0.11)
        pen.blob(ear, "-0.22 -0.76 -0.46 -0.68 -0.56 -0.2 -0.4 -0.08 -0.32 -0.4")
        pen.blob(ear, "0.22 -0.76 0.46 -0.68 0.56 -0.2 0.4 -0.08 0.32 -0.4")
        face(pen, 0, -0.45, "#e8e0d0")
        return
    pen.line(coat, 0.13, "-0.66 0.06 -0.88 -0.24 -0.96 -0.46")
    walking(pen, coat, 0)
    pen.blob(coat, "0.3 -0.5 0.5 -0.68 0.74 -0.62 0.98 -0.4 1.02 -0.2 0.8 -0.14 0.56 0.02 0.34 -0.06")
    pen.line(pen.tone("paint"), 0.1, "0.34 -0.1 0.6 0.06")
    pen.oval("#1a1414", 0.98, -0.38, 0.07, 0.06)
    pen.blob(ear, "0.38 -0.6 0.56 -0.58 0.54 -0.2 0.42 0 0.3 -0.16")
    pen.disc("#141010", 0.7, -0.46, 0.05)


def _flower(pen: Pen) -> None:
    stem, petal = pen.tone("leaf"), pen.tone("petal", spread=20)
    pen.line(stem, 0.1, "0 -0.3 0.05 0.3 0 1")
    pen.blob(stem, "0.02 0.8 0.3 0.3 0.62 0.2 0.4 0.6")
    pen.blob(darker(stem), "0.02 0.92 -0.26 0.5 -0.56 0.42 -0.36 0.78")
    if pen.chance(0.25):
        pen.blob(darker(petal), "-0.4 -0.9 -0.1 -0.7 0.1 -0.7 0.4 -0.9 0.44 -0.3 0 0.02 -0.44 -0.3")
        pen.blob(petal, "0 -1 0.26 -0.5 0.12 -0.02 -0.12 -0.02 -0.26 -0.5")
        return
    petals, reach = int(pen.rng.integers(5, 10)), pen.between(0.34, 0.42)
    start = pen.between(0, 1)
    for step in range(petals):
        angle = start + step * 2 * math.pi / petals
        x, y = reach * math.cos(angle), reach * math.sin(angle) - 0.4
        pen.oval(darker(petal, 0.86 + 0.14 * (step % 2)), x, y, 0.32, 1.1 / petals + 0.04, angle)
    pen.disc(pen.tone("#f0c42c", "#6b4226", "#f4e8a0"), 0, -0.4, 0.22)


def _house(pen: Pen) -> None:
    wall = pen.tone("#e8dcc0", "#f2efe8", "#c98f6a", "#b5cdd6", "#d9b98a", "#a8574a", "#e0c95c")
    roof = pen.tone("#8a3b2c", "#5a3a2c", "#4a4d55", "#a8502c", "#3d5f6a")
    eave = pen.between(-0.3, -0.1)
    pen.box(pen.tone("#8a3b2c", "#6b6460"), 0.34, pen.between(-0.95, -0.75), 0.56, eave)
    pen.box(wall, -0.82, eave - 0.05, 0.82, 1)
    peak = "0 -0.95" if pen.chance(0.6) else "-0.5 -0.85 0.5 -0.85"
    pen.poly(roof, f"-1 {eave} {peak} 1 {eave}")
    pen.poly(darker(roof), f"-1 {eave} 1 {eave} 0.98 {eave + 0.07} -0.98 {eave + 0.07}")
    door = pen.between(-0.2, 0.02)
    pen.box(pen.tone("wood", "paint"), door, 0.38, door + 0.32, 1)
    for x in (-0.62, 0.36):
        pen.box("#f4f1ea", x - 0.04, 0.16, x + 0.32, 0.6)
        pen.box(pen.tone("#5d7f93", "#3a4a58", LIGHT), x, 0.2, x + 0.28, 0.56)
        pen.box("#f4f1ea", x + 0.12, 0.16, x + 0.16, 0.6)
    pen.box(darker(wall, 0.75), -0.82, 0.93, 0.82, 1)


def _lamp(pen: Pen) -> None:
    shade = pen.tone("#f4e2b0", "#e8c878", "#d98b5a", "#b8d0c8", "#c0606a")
    metal = pen.tone("metal", "wood", "#2b2b30", "#b08a3a")
    if pen.chance(0.4):
        pen.box(metal, -0.045, -0.4, 0.045, 0.95)
        pen.oval(metal, 0, 0.93, 0.3, 0.07)
        pen.poly(shade, "-0.2 -1 0.2 -1 0.42 -0.42 -0.42 -0.42")
        pen.poly(LIGHT, "-0.38 -0.52 0.38 -0.52 0.42 -0.42 -0.42 -0.42")
        return
    if pen.chance(0.5):
        pen.blob(metal, "-0.1 -0.1 0.1 -0.1 0.14 0.1 0.36 0.5 0.2 0.86 -0.2 0.86 -0.36 0.5 -0.14 0.1")
    else:
        pen.box(metal, -0.07, -0.2, 0.07, 0.9)
    pen.oval(darker(metal), 0, 0.88, 0.42, 0.11)
    pen.poly(shade, "-0.34 -0.95 0.34 -0.95 0.72 -0.06 -0.72 -0.06")
    pen.poly(darker(shade, 1.15), "-0.2 -0.95 0.1 -0.95 0.2 -0.06 -0.34 -0.06")
    pen.poly(LIGHT, "-0.69 -0.14 0.69 -0.14 0.72 -0.06 -0.72 -0.06")


def _mushroom(pen: Pen) -> None:
    stem, cap = pen.tone("#efe6d2", "#e0d0b0"), pen.tone("#c0281c", "#c0281c", "#8a5a34", "#b5793c", "#d9a050")
    pen.blob(stem, "-0.18 -0.1 0.18 -0.1 0.22 0.4 0.34 0.88 0 0.98 -0.34 0.88 -0.22 0.4")
    pen.oval(darker(stem, 0.78), 0, 0.02, 0.66, 0.14)
    top = pen.between(-0.9, -0.6)
    rim = round(top * 0.6, 3)
    pen.blob(cap, f"-0.88 0.02 -0.7 {rim} -0.3 {top} 0.3 {top} 0.7 {rim} 0.88 0.02 0.4 -0.08 -0.4 -0.08")
    if cap[0] > 160 and cap[1] < 80:
        for x, y, radius in ((-0.5, -0.26, 0.1), (-0.12, -0.5, 0.13), (0.3, -0.24, 0.12), (0.62, -0.14, 0.07)):
            pen.oval("#f4f1ea", x, y, radius, radius * 0.8)
    pen.blob(darker(stem, 0.9), "-0.3 0.2 0.3 0.2 0.24 0.34 -0.24 0.34")


def _pear(pen: Pen) -> None:
    skin = pen.tone("#b8c23a", "#d8c84a", "#8aa83a", "#c98a3a", "#a8502c", spread=18)
    pen.line("#4a2f20", 0.09, "0 -0.6 0.06 -0.8 0.14 -0.98")
    if pen.chance(0.6):
        pen.blob(pen.tone("leaf"), "0.06 -0.74 0.3 -0.98 0.66 -0.92 0.4 -0.7")
    wide, neck = pen.between(0.58, 0.72), pen.between(0.2, 0.28)
    right = f"{neck} -0.56 {neck + 0.08} -0.2 {wide} 0.3 {wide - 0.08} 0.76"
    left = f"{0.08 - wide} 0.76 {-wide} 0.3 {-neck - 0.08} -0.2 {-neck} -0.56"
    pen.blob(skin, f"0 -0.7 {right} 0.2 0.95 -0.2 0.95 {left}")
    pen.blob(darker(skin, 1.18), "-0.16 -0.46 -0.02 -0.2 -0.1 0.3 -0.34 0.5 -0.4 0.2")
    for _ in range(6):
        pen.disc(darker(skin, 0.75), pen.between(-0.4, 0.45), pen.between(0, 0.7), 0.03)


def _person(pen: Pen) -> None:
    skin, hair, top = pen.tone("skin"), pen.tone("fur"), pen.tone("paint")
    trousers = pen.tone("#2c3e5c", "#3a3d42", "paint")
    stride, reach = pen.between(0, 0.2), pen.between(0, 0.26)
    for side in (-1, 1):
        pen.line(darker(skin, 0.95), 0.1, f"{side * 0.18} 0.2 {side * (0.1 + stride)} 0.92")
    if pen.chance(0.3):
        pen.poly(top, "-0.16 0 0.16 0 0.36 0.62 -0.36 0.62")
    else:
        pen.line(trousers, 0.17, f"-0.09 0.1 {-0.1 - stride} 0.88")
        pen.line(darker(trousers, 0.85), 0.17, f"0.09 0.1 {0.1 + stride} 0.88")
    for side in (-1, 1):
        pen.oval("#2a2120", side * (0.1 + stride) + 0.04, 0.94, 0.13, 0.06)
        hand = reach if side < 0 or pen.chance(0.7) else 0.32
        lift = 0.22 if hand < 0.3 else -0.5
        pen.line(darker(top, 0.85), 0.12, f"{side * 0.2} -0.42 {side * (0.28 + hand / 2)} -0.12")
        pen.line(skin, 0.09, f"{side * (0.28 + hand / 2)} -0.12 {side * (0.26 + hand)} {lift}")
    pen.blob(top, "-0.22 -0.5 0 -0.56 0.22 -0.5 0.22 -0.1 0.19 0.2 -0.19 0.2 -0.22 -0.1")
    pen.box(skin, -0.06, -0.62, 0.06, -0.48)
    if pen.chance(0.4):
        pen.blob(hair, "-0.22 -0.8 0 -1 0.22 -0.8 0.24 -0.44 -0.24 -0.44")
    pen.oval(hair, 0, -0.82, 0.19, 0.18)
    pen.oval(skin, 0.02, -0.76, 0.15, 0.18)
    pen.blob(hair, "-0.18 -0.78 -0.1 -1 0.14 -0.99 0.19 -0.82 0 -0.88")


def _plane(pen: Pen) -> None:
    body, trim = pen.tone("#eceef0", "#d0d5da", "#e8e6df"), pen.tone("#b8262b", "#1f4f9c", "#2d7d46", "#d9702a")
    if pen.chance(0.4):
        pen.poly(darker(body, 0.85), "-0.12 -0.1 -0.5 -0.95 -0.28 -0.95 0.3 -0.1")
        pen.poly(darker(body, 0.78), "-0.12 0.1 -0.5 0.95 -0.28 0.95 0.3 0.1")
        pen.poly(trim, "-0.72 0 -1 -0.38 -0.86 -0.38 -0.5 0 -0.86 0.38 -1 0.38")
        pen.blob(body, "-0.98 0 -0.6 -0.12 0.5 -0.14 0.86 -0.09 1 0 0.86 0.09 0.5 0.14 -0.6 0.12")
        for side in (-0.45, 0.45):
            pen.oval("#6b7076", 0, side, 0.12, 0.05)
        pen.poly("#3a4a58", "0.78 -0.08 0.88 -0.06 0.88 0.06 0.78 0.08")
        return
    pen.poly(trim, "-0.94 -0.06 -1 -0.66 -0.78 -0.66 -0.46 -0.08")
    pen.poly(darker(body, 0.7), "0.1 -0.1 -0.14 -0.42 0.02 -0.42 0.36 -0.1")
    pen.blob(body, "-1 -0.08 -0.6 -0.17 0.6 -0.18 0.9 -0.08 1 0.04 0.85 0.15 0.4 0.18 -0.5 0.14")
    pen.box(trim, -0.86, 0.06, 0.9, 0.1)
    for step in range(8):
        pen.disc("#3a4a58", -0.5 + 0.14 * step, -0.05, 0.032)
    pen.poly("#3a4a58", "0.74 -0.11 0.9 -0.06 0.88 -0.01 0.74 -0.02")
    pen.poly(darker(body, 0.8), "-0.74 -0.02 -1.02 0.16 -0.88 0.18 -0.44 0.02")
    pen.oval("#6b7076", 0.1, 0.26, 0.15, 0.07)
    pen.poly(darker(body, 0.82), "0.26 0.06 -0.46 0.56 -0.26 0.58 0.46 0.1")


def _traffic_light(pen: Pen) -> None:
    case, lit = pen.tone("#26282c", "#3a3d42", "#c79a1e", "#2c4034"), int(pen.rng.integers(3))
    if pen.chance(0.75):
        pen.box(pen.tone("#6b6e72", "#3a3d42"), -0.07, 0.2, 0.07, 1)
    pen.blob(case, "-0.3 -0.96 0 -1 0.3 -0.96 0.33 -0.4 0.3 0.4 0 0.44 -0.3 0.4 -0.33 -0.4")
    for place, (on, off) in enumerate((("#ff3020", "#5a1a16"), ("#ffc020", "#5a4814"), ("#30e070", "#164a28"))):
        y = -0.72 + 0.43 * place
        pen.poly(darker(case, 0.6), f"-0.26 {y - 0.1} -0.2 {y - 0.24} 0.2 {y - 0.24} 0.26 {y - 0.1}")
        pen.disc(on if place == lit else off, 0, y, 0.18)
        if place == lit:
            pen.disc("#fff4d8", -0.03, y - 0.03, 0.07)


def _tree(pen: Pen) -> None:
    leaf, bark = pen.tone("leaf", "leaf", "#c0772a", spread=20), pen.tone("#5a3d28", "#6b4a32", "#7a6a5a")
    if pen.chance(0.3):
        pen.box(bark, -0.1, 0.6, 0.1, 1)
        for step, wide in enumerate((0.68, 0.56, 0.44, 0.3)):
            low = 0.72 - 0.42 * step
            pen.poly(darker(leaf, 0.75 + 0.1 * step), f"{-wide} {low} 0 {low - 0.62} {wide} {low} 0 {low + 0.06}")
        return
    pen.poly(bark, "-0.1 0 0.1 0 0.18 1 -0.18 1")
    pen.line(bark, 0.08, "0 0.4 0.34 -0.04")
    for shade in (0.68, 0.86, 1.04, 1.2):
        for _ in range(7):
            angle, far = pen.between(0, 2 * math.pi), pen.between(0.1, 0.5)
            x, y = far * math.cos(angle) * 1.1 - 0.1 * shade, far * math.sin(angle) * 0.8 - 0.24 - 0.12 * shade
            pen.oval(darker(leaf, shade), x, y, (1.42 - shade) * 0.5, (1.42 - shade) * 0.42)


def _truck(pen: Pen) -> None:
    paint, cargo = pen.tone("paint"), pen.tone("#e8e6df", "#c9ccd0", "#d8d0c0", "paint")
    pen.box("#3a3d42", -0.98, 0.42, 0.96, 0.6)
    style = pen.rng.integers(3)
    if style == 0:
        pen.box(cargo, -1, -0.72, 0.34, 0.46)
        for x in range(1, 6):
            pen.line(darker(cargo, 0.85), 0.02, f"{-1 + 0.225 * x} -0.7 {-1 + 0.225 * x} 0.44")
        pen.box(darker(cargo), -1, 0.36, 0.34, 0.46)
    elif style == 1:
        pen.blob(cargo, "-1 0.1 -0.94 -0.34 -0.33 -0.4 0.28 -0.34 0.34 0.1 0.28 0.42 -0.33 0.46 -0.94 0.42")
        pen.box(darker(cargo, 0.8), -0.96, 0.02, 0.32, 0.12)
    else:
        pen.blob(pen.tone("wood", "#8a8070"), "-0.96 0.1 -0.6 -0.34 -0.3 -0.44 0 -0.3 0.3 0.1 -0.3 0.2")
        pen.poly(cargo, "-1.02 0 0.36 0 0.28 0.46 -0.94 0.46")
    pen.poly(paint, "0.4 -0.4 0.76 -0.4 0.9 0.02 1 0.1 1 0.56 0.4 0.56")
    pen.poly(pen.tone("glass"), "0.5 -0.3 0.72 -0.3 0.84 0.04 0.5 0.04")
    pen.box(darker(paint), 0.4, 0.46, 1, 0.56)
    pen.oval(LIGHT, 0.95, 0.3, 0.05, 0.07)
    for x in (-0.74, -0.3, 0.68):
        pen.wheel(x, 0.62, 0.22)


_ALL = (_bicycle, _bird, _boat, _bus, _car, _cat, _chair, _clock, _cup, _dog, _flower)
_ALL += (_house, _lamp, _mushroom, _pear, _person, _plane, _traffic_light, _tree, _truck)
# The order of the labels is alphabetical, so that nothing may lean on it being the order of frequency.
DRAWINGS: dict[str, Callable[[Pen], None]] = {draw.__name__[1:].replace("_", " "): draw for draw in _ALL}

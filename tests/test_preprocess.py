"""The preprocess kernel gives Pillow's pixels to the last bit, on every instruction set.

Planted mistakes that these tests were seen to catch: a = -0.75 and weights of 21 bits (random pictures), one fixed
order of the passes (squash, tall), the crop's corner left out (crop), BGR taken for RGB with and without a table, rows
read without their stride, a ring without room for the next rows (random pictures), copied row ends that start one
pixel late (random pictures), chroma of the next row and U for V (nv12), weights split at 14 bits in AVX2, no clipping
in the generic file, a buffer shared by threads, a float32 table made of float16, one row missing in a band.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hpdval_edge.images import find_images, model_input, normalise, open_rgb, resize_squash
from hpdval_edge.kernels import preprocess
from hpdval_edge.kernels.preprocess import DTYPES, MODES, resize, resize_normalize
from hpdval_edge.kernels.preprocess_spec import numpy_nv12_to_rgb, plan_geometry

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ISAS = preprocess._cpu.preprocess_isas()


@pytest.fixture(params=["avx2", "generic"])
def isa(request, monkeypatch):
    if request.param not in ISAS:
        pytest.skip(f"this machine runs {', '.join(ISAS)}, not {request.param}")
    monkeypatch.setenv("HPEDGE_ISA", request.param)
    return request.param


def random_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise with runs of black and white, where the filter overshoots and is clipped."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[rng.random((height, width)) < 0.3] = 0
    pixels[rng.random((height, width)) < 0.3] = 255
    return pixels


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype and got.flags.c_contiguous and got.flags.writeable
    np.testing.assert_array_equal(got, expected)


def assert_as_pillow(pixels, size, **options) -> None:
    assert_same(resize(pixels, size, backend="cpu", **options), resize(pixels, size, backend="pillow", **options))


SHAPES = [
    (375, 500),
    (500, 333),
    (1, 1),
    (1, 37),
    (41, 1),
    (2, 3),
    (7, 600),
    (300, 5),
    (224, 224),
    (224, 90),
    (90, 224),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [224, 1, (3, 500), (63, 64), (224, 90)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_random_pictures(isa, shape, size, mode):
    pixels = random_pixels(*shape)
    assert_as_pillow(pixels, size, mode=mode)
    assert_as_pillow(Image.fromarray(pixels), size, mode=mode)


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (100, 900), (1080, 1920), (640, 480), (900, 400)], ids=str)
def test_squash_is_one_call_of_pillows_resize(isa, shape):
    if shape == (900, 400) and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip(f"Pillow {PIL.__version__} begins with the other pass, see preprocess_spec.plan_geometry")
    image = Image.fromarray(random_pixels(*shape))
    assert_same(resize(image, 224), np.array(image.resize((224, 224), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize(("height", "first"), [(526, False), (527, True), (224, False)])
def test_tall_pictures_begin_with_the_vertical_pass(isa, height, first):
    pixels = random_pixels(height, 375)
    assert plan_geometry(375, height, (224, 224), "squash").vertical_first == first
    image = Image.fromarray(pixels).resize((375, 224) if first else (224, height), Image.Resampling.BICUBIC)
    assert_same(resize(pixels, 224), np.array(image.resize((224, 224), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize(("shape", "resized", "corner"), [
    ((375, 500), (298, 224), (37, 0)),
    ((500, 333), (224, 336), (0, 56)),
    ((224, 224), (224, 224), (0, 0)),
    ((100, 151), (338, 224), (57, 0)),
])  # fmt: skip
def test_crop_is_short_side_and_centre(isa, shape, resized, corner):
    image = Image.fromarray(random_pixels(*shape))
    whole = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = corner
    assert_same(resize(image, 224, mode="crop"), np.array(whole.crop((left, top, left + 224, top + 224))))


@pytest.mark.parametrize("shape", [(375, 500), (501, 333), (64, 47)], ids=str)
def test_crop_is_torchvisions(shape):
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(random_pixels(*shape))
    steps = [transforms.Resize(60, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(60)]
    if plan_geometry(*image.size, (60, 60), "crop").vertical_first:
        pytest.skip("Pillow's order of passes depends on its version here")
    assert_same(resize(image, 60, mode="crop"), np.array(transforms.Compose(steps)(image)))


def test_real_photos(isa, shared_data):
    photos = list(find_images([shared_data / "photos"]))
    assert len({open_rgb(path).size for path in photos}) > 3
    for path in photos:
        image = open_rgb(path)
        for size in (224, 336, 127):
            assert_as_pillow(image, size)
            assert_as_pillow(image, size, mode="crop")
        expected = normalise(resize(image, 224, backend="pillow"), MEAN, STD)
        assert_same(resize_normalize(image, 224, mean=MEAN, std=STD), expected)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
@pytest.mark.parametrize("name", ISAS)
def test_any_size(name, data):
    side = st.integers(1, 40) | st.integers(1, 400)
    height, width, out_height, out_width = (data.draw(side) for _ in range(4))
    mode = data.draw(st.sampled_from(MODES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPEDGE_ISA", name)
        assert_as_pillow(random_pixels(height, width, data.draw(st.integers(0, 9))), (out_height, out_width), mode=mode)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_normalised(isa, dtype, mode):
    pixels = random_pixels(75, 101)
    levels = resize(pixels, (40, 30), mode=mode, backend="pillow")
    got = resize_normalize(pixels, (40, 30), mean=MEAN, std=STD, mode=mode, dtype=dtype)
    assert_same(got, normalise(levels, MEAN, STD).astype(dtype))
    exact = np.moveaxis((levels / 255 - np.array(MEAN)) / np.array(STD), -1, 0)
    np.testing.assert_allclose(got, exact, atol=1e-6 if dtype == "float32" else 2e-3)


@pytest.mark.parametrize("backend", ["cpu", "pillow"])
def test_out_is_written_and_checked(backend):
    pixels, batch = random_pixels(30, 40), np.full((3, 3, 20, 20), np.nan, np.float32)
    options = {"mean": MEAN, "std": STD, "backend": backend}
    got = resize_normalize(pixels, 20, out=batch[1], **options)
    assert np.shares_memory(got, batch) and np.isnan(batch[[0, 2]]).all()
    assert_same(got, resize_normalize(pixels, 20, **options))
    frozen = np.zeros((3, 20, 20), np.float32)
    frozen.flags.writeable = False
    for out in (batch, batch[0, :, :19], batch[0].astype(np.float64), batch[0].transpose(0, 2, 1), frozen):
        with pytest.raises(ValueError, match=r"out must be float32 \[3, 20, 20\], C-contiguous and writable, got"):
            resize_normalize(pixels, 20, out=out, **options)
    with pytest.raises(TypeError, match="out must be a numpy array, got list"):
        resize_normalize(pixels, 20, out=[], **options)


@pytest.mark.parametrize("mode", MODES)
def test_bgr_is_rgb_flipped(isa, mode):
    pixels = random_pixels(75, 101)
    flipped = np.ascontiguousarray(pixels[..., ::-1])
    assert_same(resize(flipped, 40, mode=mode, layout="bgr"), resize(pixels, 40, mode=mode))
    options = {"mean": MEAN, "std": STD, "mode": mode}
    assert_same(resize_normalize(flipped, 40, layout="bgr", **options), resize_normalize(pixels, 40, **options))


def test_strides_and_read_only(isa):
    whole = random_pixels(90, 120)
    whole.flags.writeable = False
    for view in (whole[::2], whole[::-1], whole[:, 10:50], whole[5:80:3, 1:], whole[:, ::2], whole[..., ::-1], whole):
        assert_same(resize(view, 33), resize(np.array(view), 33, backend="pillow"))


def test_pictures_in_several_pieces(isa, monkeypatch):
    image = Image.fromarray(random_pixels(2160, 3840))
    for size, mode in ((64, "squash"), ((30, 90), "crop")):
        assert_as_pillow(image, size, mode=mode)
    with monkeypatch.context() as patch:
        # Pillow before 11.2.
        patch.delattr(Image.Image, "__arrow_c_array__", raising=False)
        assert_as_pillow(image, 64)


@pytest.mark.parametrize("shape", [(2, 2), (66, 130), (360, 642), (64, 128)], ids=str)
def test_nv12(isa, shape):
    rng = np.random.default_rng(1)
    luma = rng.integers(0, 256, shape, dtype=np.uint8)
    chroma = rng.integers(0, 256, (shape[0] // 2, shape[1]), dtype=np.uint8)
    rgb = numpy_nv12_to_rgb(luma, chroma)
    # The same size: the conversion alone.
    assert_same(resize((luma, chroma), shape, layout="nv12"), rgb)
    assert_same(resize((luma, chroma), 50, layout="nv12"), resize(rgb, 50, backend="pillow"))
    # Views of one buffer with padded rows, as decoders give them.
    padded = np.zeros((shape[0] * 3 // 2, shape[1] + 32), np.uint8)
    padded[: shape[0], : shape[1]], padded[shape[0] :, : shape[1]] = luma, chroma
    planes = (padded[: shape[0], : shape[1]], padded[shape[0] :, : shape[1]])
    assert_same(resize_normalize(planes, 9, mean=MEAN, std=STD, layout="nv12"),
                resize_normalize(rgb, 9, mean=MEAN, std=STD))  # fmt: skip


def test_nv12_has_the_colours_of_bt601():
    """Pure colours in limited range, rounded: white, black, red, green and blue."""
    colours = {(235, 128, 128): (255, 255, 255), (16, 128, 128): (0, 0, 0), (81, 90, 240): (254, 0, 0),
               (145, 54, 34): (0, 255, 1), (41, 240, 110): (0, 0, 255)}  # fmt: skip
    for (y, u, v), rgb in colours.items():
        got = numpy_nv12_to_rgb(np.full((2, 2), y, np.uint8), np.array([[u, v]], np.uint8))
        assert got.shape == (2, 2, 3) and np.abs(got.astype(int) - rgb).max() <= 1, (got[0, 0], rgb)


def test_threads_do_not_disturb_each_other(isa):
    pictures = [random_pixels(100 + 17 * i, 300 - 23 * i, i) for i in range(8)]
    expected = [resize_normalize(p, 96, mean=MEAN, std=STD, backend="pillow") for p in pictures]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            results = pool.map(lambda p: resize_normalize(p, 96, mean=MEAN, std=STD), pictures * 4)
            for i, got in enumerate(results):
                assert_same(got, expected[i % 8])


def test_images_module_uses_it(monkeypatch):
    """One choice for training and runtime: both end in the kernel, and both give what Pillow gives."""
    image = Image.fromarray(random_pixels(60, 80))
    expected = np.array(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert_same(resize_squash(image, 32), expected)
    pair = np.stack([expected, expected])
    assert_same(model_input([image, np.array(image)], 32, MEAN, STD, "float32"), normalise(pair, MEAN, STD))
    assert_same(model_input([image, np.array(image)], 32, MEAN, STD, "uint8"), pair)
    monkeypatch.setattr("hpdval_edge.kernels.compiled.MISSING", "no module")
    assert_same(resize_squash(image, 32), expected)
    with pytest.raises(ValueError, match="backend 'cpu' cannot take this picture: no module"):
        resize(image, 32, backend="cpu")


GOOD = np.zeros((4, 6, 3), np.uint8)
PLANES = (np.zeros((4, 6), np.uint8), np.zeros((2, 6), np.uint8))


@pytest.mark.parametrize(("pixels", "size", "options", "message"), [
    (GOOD.astype(np.float32), 2, {}, r"pixels must be uint8 \[H, W, 3\], got float32 \[4, 6, 3\]"),
    (GOOD[..., :2], 2, {}, r"got uint8 \[4, 6, 2\]"),
    (GOOD[0], 2, {}, r"got uint8 \[6, 3\]"),
    (GOOD[:0], 2, {}, "at least one pixel, got 0 rows of 6"),
    (Image.new("L", (4, 4)), 2, {}, "must have mode RGB and layout 'rgb', got L"),
    (Image.new("RGB", (4, 4)), 2, {"layout": "bgr"}, "got RGB and 'bgr'"),
    (GOOD, 0, {}, "size must be .* at least 1 and at most 8192, got 0"),
    (GOOD, -3, {}, "got -3"),
    (GOOD, 8193, {}, "got 8193"),
    (GOOD, 2**31, {}, "got 2147483648"),
    (GOOD, 2.0, {}, "got 2.0"),
    (GOOD, (2, True), {}, "got"),
    (GOOD, (1, 2, 3), {}, "got"),
    (GOOD, 2, {"mode": "fill"}, "mode must be one of squash, crop, got 'fill'"),
    (GOOD, 2, {"layout": "yuv"}, "layout must be one of rgb, bgr, nv12, got 'yuv'"),
    (GOOD, 2, {"backend": "gpu"}, "backend must be one of auto, cpu, pillow, got 'gpu'"),
    (np.zeros((1, 65536, 3), np.uint8), 2, {"backend": "cpu"}, "sides of at most 65535 pixels, not 65536"),
    (np.zeros((1, 9000, 3), np.uint8), 224, {"mode": "crop"}, "too long for mode 'crop': .* use mode 'squash'"),
    ((PLANES[0][:3], PLANES[1]), 2, {"layout": "nv12"}, r"luma must be uint8 \[H, W\], H and W even"),
    ((PLANES[0], PLANES[1][:1]), 2, {"layout": "nv12"}, r"chroma must be uint8 \[H / 2, W\] = \[2, 6\]"),
    ((PLANES[0], PLANES[1].astype(int)), 2, {"layout": "nv12"}, "got int64"),
])  # fmt: skip
def test_refuses(pixels, size, options, message):
    with pytest.raises(ValueError, match=message):
        resize(pixels, size, **options)


@pytest.mark.parametrize(("options", "message"), [
    ({"mean": (0, 0)}, "mean and std must hold 3 finite numbers"),
    ({"mean": (0, 0, np.nan)}, "finite"),
    ({"std": (1, 0, 1)}, "std positive"),
    ({"std": "ab"}, "must hold 3"),
    ({"dtype": "float64"}, "dtype must be one of float32, float16, got float64"),
    ({"dtype": "nonsense"}, "got 'nonsense'"),
])  # fmt: skip
def test_refuses_normalisation(options, message):
    with pytest.raises(ValueError, match=message):
        resize_normalize(GOOD, 2, **{"mean": MEAN, "std": STD, **options})


@pytest.mark.parametrize(("pixels", "layout"), [([[1]], "rgb"), (GOOD, "nv12"), ((GOOD,), "nv12")])
def test_refuses_other_types(pixels, layout):
    with pytest.raises(TypeError, match="numpy array"):
        resize(pixels, 2, layout=layout)


def test_longer_sides_than_the_kernel_takes_go_to_pillow():
    pixels = random_pixels(1, 65536)
    assert_same(resize(pixels, (2, 300)), resize(pixels, (2, 300), backend="pillow"))


def test_compiled_module_checks_what_it_is_given():
    cpu = preprocess._cpu
    plan = cpu.PreprocessPlan(6, 4, 2, 2, 0, 0, 2, 2, False)
    out, table = np.empty((2, 2, 3), np.uint8), np.empty((3, 256), np.float32)
    with pytest.raises(ValueError, match="sides are 1 to 65535"):
        cpu.PreprocessPlan(0, 4, 2, 2, 0, 0, 2, 2, False)
    with pytest.raises(ValueError, match="crop is wider"):
        cpu.PreprocessPlan(6, 4, 2, 2, 1, 0, 2, 2, False)
    for arguments, message in [
        (("avx2048", out, None), "does not run the instruction set avx2048"),
        (("generic", out[:, ::-1], None), "writable C-contiguous"),
        (("generic", np.empty((2, 3, 3), np.uint8), None), "without a table"),
        (("generic", np.empty((3, 2, 2), np.float16), table), "of the dtype of out"),
    ]:
        with pytest.raises(ValueError, match=message):
            cpu.PreprocessPicture(plan, *arguments, False)
    picture = cpu.PreprocessPicture(plan, "generic", out, None, False)
    with pytest.raises(ValueError, match="more rows than the picture has"):
        picture.push(np.zeros((5, 6, 3), np.uint8))
    picture.push(np.zeros((2, 6, 3), np.uint8))
    assert picture.rows_left == 2
    with pytest.raises(ValueError, match="pixels of another width"):
        picture.push(np.zeros((2, 6, 4), np.uint8))
    with pytest.raises(TypeError):
        picture.push(np.zeros((2, 6, 3), np.int8))

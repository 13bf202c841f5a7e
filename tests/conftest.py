"""Test what is installed: keep the checkout itself off ``sys.path``."""

import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# An editable install adds the checkout's parent as well, see scikit-build-core's mapped packages.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT.parent)]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets what it starts in the background ignore Ctrl-C, and so would the processes that tests send it to.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real photos and label lists, which lies beside a checkout and is not part of it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: the real photos are not part of the repository")
    return folder


@pytest.fixture
def run_hpedge(monkeypatch, capsys):
    """Run the command line in the working folder; returns (exit code, stdout, stderr)."""
    from hpdval_edge import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hpedge", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def served():
    """Start servers, each on a port of the system's choice: ``with served(predictor, **settings) as client``."""
    import contextlib
    import threading

    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    from hpdval_edge.serve.run import make_server, open_socket, url_of
    from hpdval_edge.serve.settings import Settings

    @contextlib.contextmanager
    def start(predictor, **settings):
        server = make_server(predictor, Settings(**settings))
        listener = open_socket("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            # The socket listens already: the first request waits until the server is there.
            with httpx.Client(base_url=url_of(listener), timeout=60) as client:
                client.get("/healthz").raise_for_status()
                yield client
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
            listener.close()

    return start


@pytest.fixture
def opened():
    """Open sources that are closed at the end, and whose threads must be gone then."""
    from hpdval_edge.sources.open import open_source
    from hpdval_edge.sources.options import SourceOptions

    # Nothing takes as long as this; what does not come in time fails its test instead of hanging it.
    long, sources = 60.0, []

    def open_(address, **options):
        sources.append(open_source([address], SourceOptions(**{"duration": long, "stall": 20.0, **options})))
        return sources[-1]

    yield open_
    for source in sources:
        source.close()
        thread = source.parts[0]._thread
        thread.join(long)
        assert not thread.is_alive()


@pytest.fixture
def record(tmp_path):
    """Write files as a machine has them, below a root of their own; returns the root."""

    def write(files):
        root = tmp_path / "root"
        for name, content in {"proc/meminfo": "MemTotal:        7842136 kB\nMemFree: 1 kB\n", **files}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return root

    return write


@pytest.fixture
def two_labels():
    """What outputs know of a model with the labels red and "dark, green", thresholds 0.2."""
    import numpy as np

    from hpdval_edge.outputs.output import ModelInfo

    return ModelInfo(("red", "dark, green"), np.full(2, 0.2, np.float32), "ab" * 32, "fp16")


@pytest.fixture
def make_result(two_labels):
    """Results of that model: of a still picture, or of a film's frame where an index is given."""
    import numpy as np
    from PIL import Image

    from hpdval_edge.outputs.output import Result
    from hpdval_edge.predictor import Prediction
    from hpdval_edge.sources.frame import Frame

    def make(path="a b/photo.jpg", scores=(0.3, 0.1), index=None, time=None, size=(40, 30)):
        scores = np.array(scores, np.float32)
        chosen = tuple(two_labels.labels[i] for i in np.argsort(-scores) if scores[i] >= two_labels.thresholds[i])
        maps = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2) / 100
        picture = Image.new("RGB", size, (200, 40, 40))
        chances = (1 / (1 + np.exp(-20 * scores))).astype(np.float32)
        frame = Frame(path, lambda side: picture, index, time)
        return Result(frame, Prediction(chosen, scores, maps, chances), picture)

    return make


TINY_LABELS = ("red", "green", "blue", "bright square")
TINY_TEACHER = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A project of seconds: 48 / 16 / 16 pictures of 40 px with 4 labels, and a random teacher of its own, tiny CLIP.

    Holds train.csv, val.csv, test.csv, labels.txt, pictures, teacher.json and teacher.safetensors.
    """
    import json

    import numpy as np
    import open_clip
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    (folder / "labels.txt").write_text("\n".join(TINY_LABELS) + "\n")
    for split, count in {"train": 48, "val": 16, "test": 16}.items():
        (folder / split).mkdir()
        rows = ["path,labels"]
        for index in range(count):
            chosen = [index % 4] if rng.random() < 0.6 else [index % 4, (index + 1) % 4]
            pixels = rng.integers(0, 90, (40, 40, 3))
            for label in chosen:
                if label < 3:
                    pixels[:, :, label] += 120
                else:
                    pixels[10:24, 12:26] += 140
            name = f"{split}/{index:02}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            rows.append(f"{name},{';'.join(TINY_LABELS[label] for label in chosen)}")
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    state = {key: value.contiguous() for key, value in open_clip.CLIP(**TINY_TEACHER).state_dict().items()}
    save_file(state, folder / "teacher.safetensors")
    (folder / "teacher.json").write_text(json.dumps(TINY_TEACHER))
    return folder


@pytest.fixture(scope="session")
def tiny_values(tiny) -> dict[str, str]:
    """Configuration keys of a run on the tiny project."""
    return {
        "data.path": str(tiny),
        "teacher.spec": f"{tiny / 'teacher.json'}:{tiny / 'teacher.safetensors'}",
        "train.batch_size": "16",
        "train.stage1.epochs": "2",
        "train.stage1.lr": "1e-3",
        "train.stage2.epochs": "2",
        "eval.bootstrap": "20",
        "eval.report": "false",
        "train.threads": "1",
    }


@pytest.fixture(scope="session")
def tiny_run_values(tiny_values) -> dict[str, str]:
    """``tiny_values`` with a seed with which both stages learn something: epoch 0 is the same in all weights files."""
    return {**tiny_values, "seed": "2"}


@pytest.fixture(scope="session")
def tiny_run(tiny_run_values, tmp_path_factory) -> Path:
    """Working folder in which a run called ``tiny`` was trained."""
    from hpdval_edge.config import load_config
    from hpdval_edge.training.train import TrainOptions, train

    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        reports = train(load_config(values=tiny_run_values), TrainOptions(name="tiny"), {}).reports()
    assert reports["stage1"]["epoch"] > 0 < reports["stage2"]["epoch"], "choose another seed"
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run) -> Path:
    """The fp16 bundle of ``tiny_run``, with TorchScript and an exported program."""
    from hpdval_edge.export.export import export
    from hpdval_edge.training.run_folder import find_run

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_run)
        export(find_run("tiny"), precision="fp16", targets=("onnx", "torchscript", "pt2"), out=None)
    return tiny_run / "runs" / "tiny" / "model.hpedge"

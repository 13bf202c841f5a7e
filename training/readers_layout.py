"""Which reader a file or a folder wants, and which of its files are training, validation and test."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hpdval_edge.errors import UsageError
from hpdval_edge.images import walk_images
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.readers_coco import read_coco
from hpdval_edge.training.readers_csv import read_csv
from hpdval_edge.training.readers_folders import read_folders
from hpdval_edge.training.readers_list import read_label_names, read_list
from hpdval_edge.training.readers_voc import read_voc

Reader = Callable[..., LabelledImages]
FILE_READERS: dict[str, tuple[str, Reader]] = {
    ".txt": ("list", read_list),
    ".csv": ("csv", read_csv),
    ".json": ("coco", read_coco),
}
FORMATS = ("auto", "list", "csv", "coco", "voc", "folders")
LOOKED_FOR = (
    "train.csv, a '*train*.txt' list, annotations/instances_train*.json, VOCdevkit/VOC*/ImageSets/Main, "
    "train/<label>/ or at least two <label>/ folders with pictures"
)
VALIDATION_NAMES = ("val", "valid", "validation")
PART_WORD = re.compile(r"(?<![a-z])(train|val|test)", re.IGNORECASE)
PART_NAME = re.compile(r"(train|val|valid|validation|trainval|test)[\d_-]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a data set are: each is read by calling it with ``images=`` and ``labels=``."""

    train: partial
    val: Reader | None
    test: Reader | None
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        """Name of the reader, one of FORMATS."""
        readers = {**dict(FILE_READERS.values()), "voc": read_voc, "folders": read_folders}
        return next(name for name, read in readers.items() if read is self.train.func)


Given = dict[str, str | Path | None]


def file_layout(data: Path, format: str, given: Given) -> Layout:
    """Layout of a training file; validation and test are only what is ``given``."""
    if given["train"] is not None:
        raise UsageError(f"train is {str(given['train'])!r} although {data} is a file; give the folder, or no train")
    parts = {part: _given_file(data.parent, part, name) for part, name in given.items()}
    return _of_files({**parts, "train": data}, format)


def folder_layout(data: Path, format: str, given: Given) -> Layout:
    """Layout of a folder, found out when ``format`` is "auto"; what is ``given`` replaces what would be found.

    Raises:
        UsageError: nothing fits, or more than one thing does; all candidates are named.
    """
    if format == "auto":
        format = _detect(data, given["train"])
    if format == "voc":
        return _voc_layout(data, given)
    if format == "folders":
        return _label_folder_layout(data, given)
    parts = {part: _given_file(data, part, name) for part, name in given.items()}
    find = {"list": _list_candidates, "csv": _csv_candidates, "coco": _coco_candidates}[format]
    parts["train"] = parts["train"] or _only(data, "train", find(data, "train"))
    if parts["train"] is None:
        raise UsageError(f"{data}: no training file of the format {format!r} was found; give it itself as data")
    for part in ("val", "test"):
        twin = _twin(parts["train"], part if format != "coco" else "val")
        candidates = find(data, part)
        parts[part] = parts[part] or (twin if twin in candidates else _only(data, part, candidates))
    return _of_files(parts, format)


def _detect(data: Path, train: str | Path | None) -> str:
    suffix = Path(train or "").suffix.lower()
    if suffix in FILE_READERS:
        return FILE_READERS[suffix][0]
    fitting = [name for name, fits in DETECTORS.items() if fits(data)]
    if len(fitting) > 1:
        raise UsageError(f"{data}: fits the formats {' and '.join(fitting)}; choose one with format")
    if not fitting and not _holds_label_folders(data):
        raise UsageError(f"{data}: no data set was recognised; looked for {LOOKED_FOR}")
    return fitting[0] if fitting else "folders"


def _of_files(parts: dict[str, Path | None], format: str) -> Layout:
    if format in ("voc", "folders"):
        raise UsageError(f"{parts['train']}: is a file, but the format {format!r} is read from a folder")
    kinds = {part: _kind(file) if format == "auto" else format for part, file in parts.items() if file}
    if len(set(kinds.values())) > 1:
        mixed = ", ".join(f"{part} {kind}" for part, kind in kinds.items())
        raise UsageError(f"{parts['train']}: all parts must have one format, got {mixed}")
    read = dict(FILE_READERS.values())[kinds["train"]]
    readers = {part: partial(read, file) if file else None for part, file in parts.items()}
    label_file = parts["train"].with_name("labels.txt")
    labels = read_label_names(label_file) if read is read_csv and label_file.is_file() else None
    return Layout(**readers, labels=labels)


def _kind(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix not in FILE_READERS:
        raise UsageError(f"{file}: read the suffix {suffix!r}, expected .txt (list), .csv or .json (COCO)")
    return FILE_READERS[suffix][0]


def _given_file(folder: Path, part: str, name: str | Path | None) -> Path | None:
    """Find a file or folder that the caller named, below ``folder`` or else from the working folder."""
    if name is None:
        return None
    for candidate in (folder / name, Path(name)):
        if candidate.exists():
            return candidate
    raise UsageError(f"{part} is {str(name)!r}, but neither {folder / name} nor {name} exists")


def _only(data: Path, part: str, candidates: Sequence[Path]) -> Path | None:
    if len(candidates) > 1:
        names = ", ".join(str(candidate.relative_to(data)) for candidate in candidates)
        remedy = "give the right one itself as data" if part == "train" else f"name the right one as {part}"
        raise UsageError(f"{data}: several files fit {part} ({names}); {remedy}")
    return candidates[0] if candidates else None


def _twin(train: Path, part: str) -> Path:
    return train.with_name(re.sub(r"train(val)?", part, train.name, flags=re.IGNORECASE))


def _list_candidates(data: Path, part: str) -> list[Path]:
    lists = (file for file in sorted(data.glob("*.txt")) if "label" not in file.name.lower())
    # A name with "train" in it is a training list even when it also says "val".
    words = ((word, file) for file in lists if (word := PART_WORD.search(file.name)))
    return [file for word, file in words if word[0].lower() == part]


def _csv_candidates(data: Path, part: str) -> list[Path]:
    return [file for file in (data / f"{part}.csv",) if file.is_file()]


def _coco_candidates(data: Path, part: str) -> list[Path]:
    # The benchmark publishes no annotations of its test pictures, so its validation file is the test split.
    pattern = {"train": "instances_train*.json", "test": "instances_val*.json"}.get(part)
    return sorted(data.joinpath("annotations").glob(pattern)) if pattern else []


def _voc_years(data: Path) -> list[Path]:
    """Year folders with image sets and annotations: ``data`` itself, below it, or below its VOCdevkit."""
    below = sorted(folder for base in (data, data / "VOCdevkit") for folder in base.glob("VOC[0-9]*"))
    wanted = ("ImageSets/Main", "Annotations")
    return [folder for folder in (data, *below) if all((folder / name).is_dir() for name in wanted)]


def _voc_layout(data: Path, given: Given) -> Layout:
    years = _voc_years(data)
    if len(years) != 1:
        found = (
            f"several years fit ({', '.join(str(year) for year in years)}), give one of them"
            if years
            else ("no VOC<year> folder with ImageSets/Main and Annotations was found")
        )
        raise UsageError(f"{data}: {found}")
    home = years[0].resolve() if years[0].name in ("", ".") else years[0]
    if not home.name.startswith("VOC"):
        raise UsageError(f"{home}: a VOC year folder must be called VOC<year>")
    sets = {file.stem for file in (home / "ImageSets/Main").glob("*.txt")}
    notes: tuple[str, ...] = ()
    if given["test"] is None and "test" in sets and not _voc_annotated(home, "test"):
        sets.discard("test")
        notes = (f"{home.name} lists test pictures but has no annotations of them; there is no test split",)
    names = _voc_sets(sets, given)
    if names["train"] is None:
        raise UsageError(f"{home}: no image set 'train' in ImageSets/Main; give one as train, of {sorted(sets)}")
    read = partial(read_voc, home.parent, year=home.name.removeprefix("VOC"))
    parts = {part: partial(read, image_set=str(name)) if name else None for part, name in names.items()}
    return Layout(**parts, notes=notes)


def _voc_sets(sets: set[str], given: Given) -> Given:
    """Image set of each part: all of trainval is for training when there is a test set, unless ``val`` is given."""
    pooled = "trainval" in sets and given["val"] is None and ("test" in sets or "train" not in sets)
    names = dict(given)
    names["train"] = given["train"] or ("trainval" if pooled else "train" if "train" in sets else None)
    if names["val"] is None and names["train"] != "trainval" and "val" in sets:
        names["val"] = "val"
    if names["test"] is None and "test" in sets:
        names["test"] = "test"
    return names


def _voc_annotated(home: Path, image_set: str) -> bool:
    words = (home / "ImageSets/Main" / f"{image_set}.txt").read_bytes().split(maxsplit=1)
    return bool(words) and (home / "Annotations" / f"{words[0].decode('utf-8', 'replace')}.xml").is_file()


def _label_folder_layout(data: Path, given: Given) -> Layout:
    parts: dict[str, Path | None] = {part: _given_file(data, part, name) for part, name in given.items()}
    if parts["train"] is None and not _has_parts(data):
        parts["train"] = data
    else:
        for part, names in (("train", ("train",)), ("val", VALIDATION_NAMES), ("test", ("test",))):
            folders = [data / name for name in names if (data / name).is_dir()]
            parts[part] = parts[part] or _only(data, part, folders)
    return Layout(**{part: partial(read_folders, folder) if folder else None for part, folder in parts.items()})


def _picture_folders(folder: Path) -> list[Path]:
    below = sorted(entry for entry in folder.glob("*") if entry.is_dir() and not entry.name.startswith("."))
    return [entry for entry in below if next(walk_images(entry), None)]


def _has_parts(data: Path) -> bool:
    """Whether ``data/train`` holds label folders; a label that is itself called "train" holds pictures instead."""
    return bool(_picture_folders(data / "train"))


def _holds_label_folders(data: Path) -> bool:
    # Folders called train2017 or val are parts of some other layout, not labels.
    names = [folder.name for folder in _picture_folders(data) if not PART_NAME.fullmatch(folder.name)]
    return _has_parts(data) or len(names) >= 2


DETECTORS: dict[str, Callable[[Path], bool]] = {
    "csv": lambda data: bool(_csv_candidates(data, "train")),
    "list": lambda data: bool(_list_candidates(data, "train")),
    "coco": lambda data: bool(_coco_candidates(data, "train")),
    "voc": lambda data: bool(_voc_years(data)),
}

"""``hpedge data voc-lt`` and ``coco-lt``: does a folder hold the pictures of a published list?"""

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from hpdval_edge.images import walk_images
from hpdval_edge.training.metrics import GROUPS, class_groups
from hpdval_edge.training.protocols.longtail import SPLITS, find_protocol, picture_base
from hpdval_edge.training.readers_check import unreadable_lines, unreadable_pictures

SHOWN_MISSING = 10


def check_protocol(name: str, images: Path) -> dict:
    """Look for every listed picture below ``images`` and decode those that are there.

    Returns:
        Plain values: protocol, title, images (the folder the paths start from), pictures (what to download), labels,
        groups (classes in head, medium and tail by training counts), splits {split: listed, missing, unreadable,
        without_labels}, folders {folder: listed, missing, found_in {folder: pictures}}, missing (first 10
        paths), unreadable (``path: reason`` of all).

    Raises:
        UsageError: no such protocol or folder.
    """
    protocol = find_protocol(name)
    base = picture_base(protocol, images)
    parts = {split: protocol.read(split, base) for split in SPLITS}
    present = {split: [path for path in data.paths if (base / path).is_file()] for split, data in parts.items()}
    absent = {split: sorted(set(data.paths) - set(present[split])) for split, data in parts.items()}
    reasons = unreadable_pictures(base, [path for paths in present.values() for path in paths])
    groups = class_groups(parts["train"].class_counts)
    missing = [path for paths in absent.values() for path in paths]
    return {
        "protocol": name,
        "title": protocol.title,
        "images": str(base),
        "pictures": protocol.pictures,
        "labels": len(parts["train"].labels),
        "groups": {group: int(np.count_nonzero(groups == group)) for group in GROUPS},
        "splits": {
            split: {
                "listed": len(data),
                "missing": len(absent[split]),
                "unreadable": sum(path in reasons for path in present[split]),
                "without_labels": int(np.count_nonzero(data.targets.sum(axis=1) == 0)),
            }
            for split, data in parts.items()
        },
        "folders": _by_folder([path for data in parts.values() for path in data.paths], missing, Path(images)),
        "missing": missing[:SHOWN_MISSING],
        "unreadable": list(reasons.values()),
    }


def _by_folder(listed: list[str], missing: list[str], images: Path) -> dict[str, dict]:
    """Counts of every listed folder, and where else below ``images`` its missing pictures lie."""
    elsewhere = _found_elsewhere(missing, images)
    counts, gone = Counter(map(_folder, listed)), Counter(map(_folder, missing))
    return {
        folder: {
            "listed": counts[folder],
            "missing": gone[folder],
            "found_in": dict(Counter(found for path, found in elsewhere.items() if _folder(path) == folder)),
        }
        for folder in sorted(counts)
    }


def _folder(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _found_elsewhere(missing: list[str], images: Path) -> dict[str, str]:
    """Map missing paths to a folder below ``images`` that holds a picture of the same file name."""
    if not missing:
        return {}
    wanted = {PurePosixPath(path).name: path for path in missing}
    places = ((picture, wanted.get(picture.name)) for picture in walk_images(images))
    return {path: picture.parent.as_posix() for picture, path in places if path}


def describe(report: dict) -> list[str]:
    """Lines for the terminal of what ``check_protocol`` found."""
    groups = "/".join(str(report["groups"][group]) for group in GROUPS)
    lines = [f"{report['title']}: {report['labels']} labels, head/medium/tail {groups}, pictures in {report['images']}"]
    for split, count in report["splits"].items():
        bare = f", {count['without_labels']} without labels (they stay in)" if count["without_labels"] else ""
        lines.append(
            f"  {split}: {count['listed']} listed{bare}; {count['listed'] - count['missing']} there, "
            f"{count['missing']} missing, {count['unreadable']} unreadable"
        )
    for folder, count in report["folders"].items():
        if count["missing"]:
            lines.append(f"  {folder}: {count['missing']} of {count['listed']} missing")
            lines += [_remedy(report["images"], folder, *found) for found in count["found_in"].items()]
    lines += [f"  missing: {path}" for path in report["missing"]]
    surplus = sum(count["missing"] for count in report["splits"].values()) - len(report["missing"])
    lines += [f"  ... and {surplus} more missing"] if surplus else []
    return lines + unreadable_lines(report["unreadable"])


def _remedy(base: str, folder: str, found: str, pictures: int) -> str:
    target = Path(base, folder)
    if target.exists():
        return f"    {pictures} of them lie in {found}; move them to {target}"
    return f"    {pictures} of them lie in {found}; move that folder to {target}, or link it there"

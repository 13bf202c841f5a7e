"""Pictures in archives: what is read, what is refused, and that nothing is unpacked to disk."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.errors import BadData
from hpdval_edge.sources import archives
from hpdval_edge.sources.archives import Archive

NAMES = ("b.png", "inner/a.JPG", "inner/deeper/c.png")


def content(level, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.full((5, 7, 3), level, np.uint8)).save(file, kind)
    return file.getvalue()


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def write_tar(path, files):
    mode = "w:" + {"tar": "", "tgz": "gz"}.get(path.suffix[1:], path.suffix[1:])
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


WRITERS = {
    "a.zip": write_zip,
    **dict.fromkeys(("a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.bz2"), write_tar),
}


@pytest.fixture(params=WRITERS)
def archive(request, tmp_path, monkeypatch):
    """A function that writes files into an archive of each kind and returns its path; the folder holds nothing else."""
    monkeypatch.chdir(tmp_path)

    def write(files):
        WRITERS[request.param](tmp_path / request.param, files)
        return request.param

    return write


def outcome(frame):
    try:
        return np.asarray(frame.read(8))[0, 0, 0]
    except BadData as error:
        return str(error)


def test_pictures_in_the_archives_order_and_nothing_on_disk(archive):
    """Mistakes: hidden files and what macOS leaves taken for pictures, sorted names, the members unpacked."""
    files = {
        NAMES[0]: content(10),
        "notes.txt": b"words",
        NAMES[1]: content(20, "JPEG"),
        "__MACOSX/inner/._a.JPG": b"x",
        ".cache/d.png": content(1),
        NAMES[2]: content(30),
    }
    path = archive(files)
    frames = list(Archive(path))
    assert [frame.name for frame in frames] == [f"{path}/{name}" for name in NAMES]
    assert [frame.index for frame in frames] == [None] * 3
    assert [outcome(frame) for frame in frames] == pytest.approx([10, 20, 30], abs=1)
    assert os.listdir() == [path]


def test_a_bad_member_is_named_and_the_rest_goes_on(archive):
    path = archive({"a.png": content(10), "bad.png": b"no picture", "empty.png": b"", "c.png": content(30)})
    first, bad, empty, last = map(outcome, Archive(path))
    assert (first, last) == (10, 30)
    assert bad.startswith(f"{path}/bad.png: not a picture")
    assert empty == f"{path}/empty.png: an empty file (0 bytes)"


def test_members_above_the_limit_are_refused(archive, monkeypatch):
    """Mistakes: a member that unpacks to gigabytes held in memory."""
    monkeypatch.setattr(archives, "MAX_MEMBER", 1000)
    path = archive({"a.png": content(10), "bomb.png": bytes(100_000), "c.png": content(30)})
    assert [outcome(frame) for frame in Archive(path)] == [
        *(10, f"{path}/bomb.png: unpacks to more than the limit of 1000 bytes", 30)
    ]


def test_a_header_that_lies_about_the_size_does_not_help(tmp_path, monkeypatch):
    """Mistakes: the size in the header believed."""
    monkeypatch.setattr(archives, "MAX_MEMBER", 1000)
    path = tmp_path / "lies.zip"
    write_zip(path, {"bomb.png": bytes(100_000)})
    path.write_bytes(path.read_bytes().replace((100_000).to_bytes(4, "little"), (500).to_bytes(4, "little")))
    (found,) = map(outcome, Archive(str(path)))
    assert found.startswith(f"{path}/bomb.png: ")


def test_an_archive_cut_off_gives_what_there_is(archive):
    """Mistakes: an exception of zlib or lzma; silence about what is missing."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (200, 200, 3), dtype=np.uint8) for _ in range(6)]
    files = {}
    for index, pixels in enumerate(noise):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files[f"{index}.png"] = file.getvalue()
    path = archive(files)
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: int(len(whole) * 0.6)])
    found = [outcome(frame) for frame in Archive(path)]
    assert f"{path}: the archive is damaged or of an unknown kind (" in found[-1]
    # A zip archive's list of contents is at its end.
    assert path.endswith((".zip", ".bz2")) or not isinstance(found[0], str)


@pytest.mark.parametrize("data", [b"", b"no archive", bytes(10_000)])
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_what_is_no_archive_is_named(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    (found,) = map(outcome, Archive(str(path)))
    assert found.startswith(f"{path}: the archive ")


def test_an_archive_without_pictures_is_named(archive):
    path = archive({"notes.txt": b"words"})
    (found,) = map(outcome, Archive(path))
    assert found == f"{path}: the archive holds no pictures"


def test_encrypted_members_are_named(tmp_path):
    path = tmp_path / "secret.zip"
    write_zip(path, {"a.png": content(10)})
    data = bytearray(path.read_bytes())
    # The flag "encrypted" in the member's header and in the list of contents.
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)
    (found,) = map(outcome, Archive(str(path)))
    assert found == f"{path}/a.png: encrypted; unpack the archive with its password first"


def test_links_and_devices_in_a_tar_are_left_out(tmp_path):
    """Mistakes: a link out of the archive followed."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo("link.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("a.png")
        member.size = len(content(10))
        archive.addfile(member, io.BytesIO(content(10)))
    assert [outcome(frame) for frame in Archive(str(tmp_path / "a.tar"))] == [10]


def test_a_frame_may_be_read_after_the_archive_is_closed(archive):
    """Threads that decode are behind the one that lists."""
    source = Archive(archive({name: content(10) for name in NAMES}))
    frames = list(source)
    source.close()
    assert [outcome(frame) for frame in reversed(frames)] == [10] * 3


@pytest.mark.parametrize("exact", [False, True])
def test_large_jpegs_are_decoded_smaller_unless_exact(tmp_path, exact):
    file = io.BytesIO()
    Image.new("RGB", (200, 160)).save(file, "JPEG")
    write_zip(tmp_path / "a.zip", {"a.jpg": file.getvalue()})
    (frame,) = Archive(str(tmp_path / "a.zip"), exact=exact)
    assert frame.read(16).size == ((200, 160) if exact else (50, 40))

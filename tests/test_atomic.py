"""Whole or not at all, also when the disk is full or the writer dies."""

import errno
from pathlib import Path

import pytest

from hpdval_edge.atomic import new_folder, put_back, write_file, write_text
from hpdval_edge.errors import MissingDependency


def full(path):
    path.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(MissingDependency, match=r"no space left to write .*a\.txt"):
        write_file(target, full)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_replaces_the_old_one_as_a_whole(tmp_path):
    target = tmp_path / "b"
    for text in ("one", "two"):
        with new_folder(target) as folder:
            (folder / text).write_text(text)
    assert [path.name for path in target.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_whose_writer_fails_leaves_the_old_one(tmp_path):
    target = tmp_path / "b"
    with new_folder(target) as folder:
        (folder / "one").write_text("one")
    with pytest.raises(MissingDependency), new_folder(target) as folder:
        full(folder / "half")
    assert [path.name for path in target.iterdir()] == ["one"]


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    stale = tmp_path / ".b.xyz.partial"
    stale.mkdir()
    with new_folder(tmp_path / "b"):
        pass
    assert not stale.exists()


def test_a_writer_at_work_keeps_its_folder(tmp_path):
    """Planted mistake: whatever is unfinished is removed, so that two edits at once leave half a bundle."""
    with new_folder(tmp_path / "bundle") as first:
        (first / "model").write_text("first")
        with new_folder(tmp_path / "bundle") as second:
            (second / "model").write_text("second")
        (first / "labels").write_text("first")
    assert {path.name: path.read_text() for path in (tmp_path / "bundle").iterdir()} == {
        "model": "first",
        "labels": "first",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_moved_aside_comes_back(tmp_path, monkeypatch):
    """Ctrl-C between the two renames. Planted mistakes: the old folder removed with the new one, or left hidden."""
    target = tmp_path / "b"
    with new_folder(target) as folder:
        (folder / "one").write_text("one")
    original = Path.rename

    def interrupted(self, other):
        if self.name.endswith(".partial") and not self.name.endswith(".old.partial"):
            raise KeyboardInterrupt
        return original(self, other)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(target):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "one"]


def test_what_a_killed_writer_moved_aside_is_kept(tmp_path):
    """Planted mistake: cleared like the other siblings, so that a writer that fails leaves nothing."""
    aside = tmp_path / ".b.xyz.old.partial"
    aside.mkdir()
    (aside / "one").write_text("one")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "b"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "one"]


@pytest.mark.parametrize("name", ["b", "b[1]"])
def test_a_reader_between_the_renames_does_not_stop_the_writer(tmp_path, monkeypatch, name):
    """It takes the old folder for one left behind.

    Planted mistakes: the rename onto it is not tried again; [1] is a pattern, so that nothing is found.
    """
    target = tmp_path / name
    with new_folder(target) as folder:
        (folder / "one").write_text("one")
    original, seen = Path.rename, []

    def rename(self, other):
        moved = original(self, other)
        if self == target and not seen:
            put_back(target)
            seen.extend(path.name for path in target.iterdir())
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    with new_folder(target) as folder:
        (folder / "two").write_text("two")
    assert seen == ["one"]
    assert [path.name for path in tmp_path.rglob("*")] == [name, "two"]


def test_a_new_folder_is_not_replaced_by_the_old_one(tmp_path):
    """Planted mistake: put back whatever is there, which an empty folder lets happen."""
    (tmp_path / ".b.xyz.old.partial" / "one").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    put_back(tmp_path / "b")
    assert not list((tmp_path / "b").iterdir())


def test_a_writer_that_was_faster_is_no_mistake(tmp_path, monkeypatch):
    """Planted mistake: the reader's rename fails and it says so, though the new folder is there."""
    target, aside = tmp_path / "b", tmp_path / ".b.xyz.old.partial"
    aside.mkdir()

    def faster(self, other):
        target.mkdir()
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "rename", faster)
    put_back(target)
    assert target.is_dir()


def test_forbidden_folder_is_named(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(MissingDependency, match="cannot be written"):
        write_file(tmp_path / "c", denied)


def test_a_file_in_the_folders_place_is_named(tmp_path):
    """Planted mistake: FileExistsError let through."""
    (tmp_path / "c").write_text("a file")
    with pytest.raises(MissingDependency, match="choose another folder"):
        write_file(tmp_path / "c" / "d", lambda partial: None)

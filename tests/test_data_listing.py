"""The listing of a folder tree: once for a large one, again whenever it may have changed."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ddpm.data.decode import SUFFIXES
from ddpm.data.image_folder import ImageFolder
from ddpm.data.listing import listing
from ddpm.errors import Refused

FOLDERS, FILES = 30, 100  # of each folder
_watched: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.scandir" and _watched is not None:
        _watched.append(str(arguments[0]))


sys.addaudithook(_note)  # cannot be removed; it notes only while a test asks


@pytest.fixture
def scanned() -> Iterator[list[str]]:
    """The folders that Python lists while a test lasts."""
    global _watched
    _watched = []
    yield _watched
    _watched = None


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of some thousand files that has been left alone for a while; the cache is beside it."""
    monkeypatch.chdir(tmp_path)
    tree = tmp_path / "tree"
    for k in range(FOLDERS):
        folder = tree / f"{k:02}" / "deep"
        folder.mkdir(parents=True)
        for i in range(FILES):
            (folder / f"{i:03}.png").touch()
    settle(tree)
    return tree


def settle(tree: Path) -> None:
    """As if no folder had changed for an hour, nor twice at one time."""
    for folder, _, _ in os.walk(tree, followlinks=False):
        past = Path(folder).stat().st_mtime_ns - 3600 * 10**9
        os.utime(folder, ns=(past, past))


def kept() -> Path:
    (file,) = Path(".cache").iterdir()
    return file


def test_a_large_tree_is_listed_once(root: Path, scanned: list[str]) -> None:
    first = listing(root)
    assert len(first) == FOLDERS * FILES
    assert len(scanned) == 1 + 2 * FOLDERS
    scanned.clear()
    assert listing(root) == first
    arguments = {"image_size": 4, "channels": 3, "held_out": 7, "unreadable_is_fatal": False}
    loaders = {"batch_size": 4, "num_workers": 0, "flip": False, "seed": 0}
    data = ImageFolder(root=str(root), **arguments, **loaders)  # as the next process, or the next rank, does
    assert len(data.load("train")) == FOLDERS * FILES - 7
    assert data.facts.num_classes == FOLDERS
    assert scanned == []


def add(tree: Path) -> None:
    (tree / "03" / "deep" / "new.png").touch()


def remove(tree: Path) -> None:
    (tree / "03" / "deep" / "007.png").unlink()


def rename(tree: Path) -> None:
    (tree / "03" / "deep" / "007.png").rename(tree / "03" / "deep" / "aaa.png")


def move_away(tree: Path) -> None:
    (tree / "03").rename(tree.parent / "elsewhere")


def add_folder(tree: Path) -> None:
    (tree / "03" / "other").mkdir()
    (tree / "03" / "other" / "1.png").touch()


def exchange(tree: Path) -> None:
    """A folder of the same name and time that is another one."""
    old, new = tree / "03" / "deep", tree.parent / "new"
    time, time_above = old.stat().st_mtime_ns, old.parent.stat().st_mtime_ns
    new.mkdir()
    (new / "1.png").touch()
    old.rename(tree.parent / "old")
    new.rename(old)
    os.utime(old, ns=(time, time))
    os.utime(old.parent, ns=(time_above, time_above))


@pytest.mark.parametrize("change", [add, remove, rename, move_away, add_folder, exchange])
def test_a_tree_that_changed_is_listed_again(root: Path, change: Callable[[Path], None]) -> None:
    before = listing(root)
    assert kept().is_file()
    change(root)
    expected = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    assert listing(root) == expected != before
    settle(root)
    assert listing(root) == listing(root) == expected


def test_a_link_that_leads_elsewhere_is_listed_again(root: Path) -> None:
    for name in "ab":
        (root.parent / name).mkdir()
        (root.parent / name / f"{name}.png").touch()
        settle(root.parent / name)
    (root / "link").symlink_to(root.parent / "a")
    settle(root)
    assert "link/a.png" in listing(root)
    (root / "link").unlink()
    (root / "link").symlink_to(root.parent / "b")
    settle(root)
    assert "link/b.png" in listing(root)
    assert "link/a.png" not in listing(root)


def test_a_folder_that_has_just_changed_is_not_trusted(root: Path, scanned: list[str]) -> None:
    """A file that comes within one tick of the file system's clock would not show."""
    add(root)
    listing(root)
    assert not Path(".cache").exists()
    scanned.clear()
    listing(root)
    assert len(scanned) == 1 + 2 * FOLDERS


def test_a_small_tree_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "1.png").touch()
    settle(tmp_path / "tree")
    assert listing(tmp_path / "tree") == ["1.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def signed(content: Any) -> bytes:
    body = json.dumps(content).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def test_a_corrupt_listing_is_made_again(root: Path, scanned: list[str]) -> None:
    expected = listing(root)
    file, whole = kept(), kept().read_bytes()
    assert signed(json.loads(whole.partition(b"\n")[2])) == whole  # so that what follows is read to the end
    _, folders = json.loads(whole.partition(b"\n")[2])
    (prefix, stamp, names), *others = folders
    place = whole.index(b"007.png")
    wrong = {
        "empty": b"",
        "cut": whole[:-1000],
        "a flipped bit": whole[:place] + b"1" + whole[place + 1 :],
        "no digest": b"\n" + whole.partition(b"\n")[2],
        "no JSON": hashlib.sha256(b"{").hexdigest().encode() + b"\n{",
        "a number": signed(7),
        "no folders": signed([SUFFIXES, 7]),
        "no stamps": signed([SUFFIXES, [[prefix, names] for prefix, _, names in folders]]),
        "other suffixes": signed([SUFFIXES[1:], folders]),
        "a name that leads out": signed([SUFFIXES, [[prefix, stamp, ["../a.png"]], *others]]),
        "a folder that leads out": signed([SUFFIXES, [["../tree/", stamp, names], *others]]),
        "a folder elsewhere": signed([SUFFIXES, [[f"{root}/", stamp, names], *others]]),
    }
    for what, content in wrong.items():
        file.write_bytes(content)
        scanned.clear()
        assert listing(root) == expected, what
        assert len(scanned) == 1 + 2 * FOLDERS, what
        assert file.read_bytes() == whole, what
        assert list(file.parent.iterdir()) == [file], what


def test_a_cache_that_can_not_be_written_is_done_without(root: Path) -> None:
    Path(".cache").write_text("no folder")
    assert len(listing(root)) == len(listing(root)) == FOLDERS * FILES


def test_names_that_are_no_text_are_kept(root: Path) -> None:
    (root / "00" / os.fsdecode(b"\xff.png")).touch()
    settle(root)
    assert listing(root) == listing(root)
    assert listing(root)[100] == os.fsdecode(b"00/\xff.png")
    assert kept().is_file()


def test_a_folder_that_can_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1.png").touch()
    monkeypatch.chdir(tmp_path)
    for _ in range(20):  # deeper than any path can say
        Path("x" * 250).mkdir()
        os.chdir("x" * 250)
    with pytest.raises(Refused, match=r"the folder .* cannot be read: File name too long"):
        listing(tmp_path)

import multiprocessing
import os
from pathlib import Path

import pytest

from cdbench.errors import EnvironmentLacks, UserError
from cdbench.files import explained, printable, read_json, read_plain, write_atomic, write_json
from cdbench.store import Store, content_hash


def hello(folder: Path) -> None:
    (folder / "a.txt").write_text("hello")


def test_an_artefact_is_built_once_and_found_again(tmp_path: Path) -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        hello(folder)

    one = Store(tmp_path).artefact("things", {"a": 1}, build)
    two = Store(tmp_path).artefact("things", {"a": 1}, build)
    other = Store(tmp_path).artefact("things", {"a": 2}, build)
    assert one == two != other
    assert len(built) == 2
    assert (one / "a.txt").read_text() == "hello"
    assert content_hash(one) == content_hash(other)


@pytest.mark.parametrize(
    "damage", [lambda f: f.write_text("hullo"), lambda f: f.write_text("hel"), lambda f: f.unlink()]
)
def test_a_file_cut_short_or_altered_is_an_error_that_says_what_to_do(damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = Store(tmp_path).artefact("things", {}, hello)
    damage(folder / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt .*delete the folder") as caught:
        Store(tmp_path).artefact("things", {}, hello)
    assert str(folder) in str(caught.value)


def test_what_another_may_not_write_is_built_beside_it_and_found_in_either(tmp_path: Path) -> None:
    shared = Store(tmp_path / "shared").artefact("data", {"a": 1}, hello)
    both = Store(tmp_path / "shared", tmp_path / "own")
    assert both.artefact("data", {"a": 1}, hello) == shared
    new = both.artefact("data", {"a": 2}, hello)
    assert new.is_relative_to(tmp_path / "own")
    assert not (tmp_path / "shared" / "data" / new.name).exists()
    Store(tmp_path / "shared").adopt(tmp_path / "own")
    assert (tmp_path / "shared" / "data" / new.name / "a.txt").read_text() == "hello"
    assert Store(tmp_path / "shared").has([f"data/{new.name}", f"data/{shared.name}"])
    assert not Store(tmp_path / "shared").has(["data/0000"])
    assert not Store(tmp_path / "shared").has(["../etc/passwd"])


def test_only_the_stores_own_kinds_are_adopted(tmp_path: Path) -> None:
    Store(tmp_path / "own").artefact("tmp", {"a": 1}, hello)
    Store(tmp_path / "shared").adopt(tmp_path / "own")
    assert not (tmp_path / "shared").exists()


def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = Store(tmp_path).artefact("data", {}, hello)
    write_json(folder / "MANIFEST.json", {"key": {}, "files": {"../../../etc/passwd": "0"}})
    with pytest.raises(UserError, match="lies outside its folder"):
        Store(tmp_path).open(folder)


def test_an_artefact_can_be_read_by_others_whatever_its_writer_chose(tmp_path: Path) -> None:
    def private(folder: Path) -> None:
        hello(folder)
        (folder / "a.txt").chmod(0o600)

    folder = Store(tmp_path).artefact("data", {}, private)
    assert folder.stat().st_mode & 0o005 == 0o005
    assert (folder / "a.txt").stat().st_mode & 0o004


def test_a_file_that_may_be_hostile_is_read_without_following_or_waiting(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("hello")
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    os.mkfifo(tmp_path / "pipe")
    assert read_plain(tmp_path / "plain", 5) == b"hello"
    for name, limit in (("plain", 4), ("link", 5), ("pipe", 5), ("none", 5), (".", 5)):
        with pytest.raises(OSError):
            read_plain(tmp_path / name, limit)
    assert printable("\x1b[2Ja\tb\nc\x07") == " [2Ja b\nc "
    assert printable("x" * 9, 4) == "xxxx [...]"


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        hello(folder)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Store(tmp_path).artefact("things", {}, fail)
    assert not (tmp_path / "things").exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert Store(tmp_path).artefact("things", {}, hello).is_dir()


def slow_build(root: str, log: str) -> None:
    import time

    def build(folder: Path) -> None:
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        hello(folder)

    Store(Path(root)).artefact("things", {"shared": True}, build)


def test_four_processes_build_one_artefact_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    processes = [context.Process(target=slow_build, args=(str(tmp_path / "s"), str(log))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(log.read_text().splitlines()) == 1


def test_a_full_disk_is_a_sentence_not_a_traceback() -> None:
    with pytest.raises(EnvironmentLacks, match="the disk is full"), explained(Path("/dev/full"), "the record"):
        with open("/dev/full", "w") as full:
            full.write("x")
            full.flush()


def test_a_folder_that_cannot_be_written_is_a_sentence() -> None:
    # /sys refuses new folders to everybody, root included.
    with pytest.raises(EnvironmentLacks, match=r"/sys/.*(permission|read-only)"):
        write_atomic(Path("/sys/cdbench/x.json"), "{}", "the record")


def test_an_atomic_write_replaces_whole_files_and_can_be_read_by_colleagues(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path, "x") == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("text", ["", '{"a": ', "[1]", "\xff"])
def test_damaged_json_is_an_error_naming_the_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"x\.json"):
        read_json(path, "the thing")

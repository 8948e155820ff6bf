"""Files are written whole or not at all, on a full disk too; a lock keeps processes apart."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from runtime.errors import OutputError
from runtime.files import atomic_output, cache_folder, check_writable, locked, write_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def older(tmp_path) -> Path:
    path = tmp_path / "result.json"
    path.write_text("older")
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_file_takes_the_place_of_the_older(older):
    with atomic_output(older) as temporary:
        assert temporary.parent == older.parent
        assert temporary.suffix == ".json"
        temporary.write_text("newer")
        assert older.read_text() == "older"
    assert older.read_text() == "newer"
    assert files_in(older.parent) == ["result.json"]


def test_it_may_be_read_by_whom_the_umask_lets(tmp_path):
    mask = os.umask(0o027)
    try:
        with atomic_output(tmp_path / "a" / "b.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(mask)
    assert (tmp_path / "a" / "b.txt").stat().st_mode & 0o777 == 0o640


def fail_while_writing(path: Path, error: BaseException) -> None:
    with atomic_output(path) as temporary:
        temporary.write_text("half of it")
        raise error


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
def test_after_an_error_the_older_file_is_as_it_was(older, error):
    with pytest.raises(type(error)) as caught:
        fail_while_writing(older, error)
    assert caught.value is error
    assert older.read_text() == "older"
    assert files_in(older.parent) == ["result.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_sentence(older, number):
    with pytest.raises(OutputError) as caught:
        fail_while_writing(older, OSError(number, os.strerror(number)))
    expected = f"cannot write {older}: {os.strerror(number)}; free some space or choose another output path."
    assert str(caught.value) == expected
    assert older.read_text() == "older"
    assert files_in(older.parent) == ["result.json"]


def run_python(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_disk_that_is_really_full(older):
    """A limit on the size of files, which the kernel enforces in the middle of a write."""
    code = """
        import resource, sys
        from runtime.errors import OutputError
        from runtime.files import atomic_output
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with atomic_output(sys.argv[1]) as temporary:
                temporary.write_bytes(b"x" * 5000)
        except OutputError as error:
            print(error)
    """
    said, _ = run_python(code, older).communicate(timeout=60)
    assert said == f"cannot write {older}: File too large; free some space or choose another output path.\n"
    assert older.read_text() == "older"
    assert files_in(older.parent) == ["result.json"]


def test_a_path_that_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="it is a folder; give the name of a file"):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match="choose another output path"):
        check_writable(tmp_path / "file" / "result.json")
    assert check_writable(tmp_path / "new" / "result.json").parent.is_dir()
    assert files_in(tmp_path / "new") == []


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set EDGERCNN_CACHE to a folder that can be"):
        cache_folder()


def test_threads_wait_for_each_other(tmp_path):
    """Without the lock, both would be inside at once: each stays long enough for the other to come."""
    inside, most = [], []

    def work() -> None:
        for _ in range(3):
            with locked(tmp_path / "folder"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.02)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 9
    assert not (tmp_path / "folder").exists()


ADDING = """
    import sys, time
    from pathlib import Path
    from runtime.files import locked
    counter = Path(sys.argv[1]) / "counter"
    for _ in range(20):
        with locked(sys.argv[1]):
            number = int(counter.read_text())
            time.sleep(0.002)
            counter.write_text(str(number + 1))
"""


def test_processes_wait_for_each_other(tmp_path):
    """Each reads a number and writes it back one larger: none is lost."""
    (tmp_path / "counter").write_text("0")
    processes = [run_python(ADDING, tmp_path) for _ in range(3)]
    for process in processes:
        said, _ = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
    assert (tmp_path / "counter").read_text() == "60"


def test_locks_of_other_folders_do_not_wait(tmp_path):
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        pass


def test_a_process_that_was_killed_holds_no_lock(tmp_path):
    code = """
        import sys, time
        from runtime.files import locked
        with locked(sys.argv[1]):
            print("locked", flush=True)
            time.sleep(60)
    """
    process = run_python(code, tmp_path / "folder")
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    process.kill()
    process.wait(timeout=30)
    process.stdout.close()
    started = time.monotonic()
    with locked(tmp_path / "folder"):
        assert time.monotonic() - started < 30


def test_a_lock_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"), locked(tmp_path / "file" / "folder"):
        pass


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": [1, 0.5]})
    assert json.loads(path.read_text()) == {"a": [1, 0.5]}
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, 0.5]}
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]

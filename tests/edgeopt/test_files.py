"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess

import pytest

from edgeopt.files import write_whole


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "plan.yaml"
    write_whole(path, "one\n")
    write_whole(path, "zwei µ\n")
    assert path.read_text(encoding="utf-8") == "zwei µ\n"
    assert os.listdir(tmp_path) == ["plan.yaml"]


def test_keeps_permissions_and_links(tmp_path):
    path, link = tmp_path / "real", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    write_whole(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "plan.yaml"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.yaml"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device for 3 bytes; make room.*report\.json") as caught:
        write_whole(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.root
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        with pytest.raises(OSError, match="No space left on device"):
            write_whole(disk / "report.json", "x" * 20_000)
        assert os.listdir(disk) == []
        write_whole(disk / "report.json", "x" * 100)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_refuses_a_folder_and_a_missing_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match="name a file"):
        write_whole(tmp_path, "x")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_whole(tmp_path / "no" / "plan.yaml", "x")

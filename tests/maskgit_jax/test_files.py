import errno
import os
import stat

import pytest

from maskgit_jax.errors import InputError
from maskgit_jax.files import open_file, os_error


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device; free some space there, or choose another place"),
        (errno.EDQUOT, "Disk quota exceeded; free some space there, or choose another place"),
        (errno.EROFS, "Read-only file system; choose a place that you may write to"),
        (errno.ENAMETOOLONG, "File name too long; choose a shorter name"),
        (errno.EACCES, "Permission denied; give a folder"),
        (errno.EISDIR, "Is a directory; give a folder"),
    ],
)
def test_the_cause_is_named(number, words):
    error = os_error(OSError(number, os.strerror(number)), "cannot write 'a'", "give a folder")
    assert str(error) == f"cannot write 'a': {words}"


def test_words_of_other_libraries_stay_on_one_line():
    assert str(os_error(OSError("a\nb"), "x", "y")) == "x: a b; y"


def test_files_are_opened_and_others_named(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    with open_file(tmp_path / "a", "expected a file") as file:
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read() == b"123"
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "pipe", "is a pipe"),
        ("/dev/zero", "is a device"),
        (tmp_path, "is a folder; expected a file"),
        (tmp_path / "b", "does not exist; expected a file"),
        (tmp_path / ("x" * 300), "File name too long; choose a shorter name"),
        ("a\0b", "embedded null byte"),
    ):
        with pytest.raises(InputError, match=words):
            open_file(path, "expected a file")

"""What was found where a file of a data set should be, said truly: the words of every refusal.

A file is known by its first bytes, never by its name: what downloads, archives, editors and other
programs leave is named as what it is, with the command that makes of it what is wanted. Whatever
the converters read is opened by `opened`, every folder is looked through by `entries_of` or
`input_folder`, and every file that is refused for what it holds is refused by `refused` or `why`.
"""

import bz2
import errno
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ist_hpc.errors import InputError
from ist_hpc.names import entries, printable, quoted

HEAD_BYTES = 1024
UTF8_MARK = b"\xef\xbb\xbf"
"""What Windows editors write before UTF-8 text; it says nothing."""
PADDING = b" \t\r\n\0\x1a"
"""What may stand after the end of a text: blanks, zeros to fill up a block, the ^Z of DOS."""

_TAR_BYTES = 512
_SHOWN_BYTES = 40
_MOST_LOOKED_AT = 100  # entries of a folder, in search of what is wanted
_PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar.gz", ".tgz", ".tar", ".7z")


class UnusableError(Exception):
    """A file that cannot be used; the message says why, without its name."""


@dataclass(frozen=True)
class Kind:
    """What a file is. `key` names it in the program, `what` for people; `fix` says what to do."""

    key: str
    what: str
    fix: str = ""

    def sentence(self) -> str:
        """For a message, after the name of the file and a colon."""
        return f"{self.what}; {self.fix}" if self.fix else self.what


def opened(path: Path) -> BinaryIO:
    """The file, opened to be read. Raises `UnusableError` for anything but a readable file.

    Never waits: a pipe is not opened.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            return path.open("rb")
    except OSError as error:
        raise UnusableError(_unreadable(path, error)) from error
    raise UnusableError(_no_file(path, status.st_mode))


def head_of(file: BinaryIO) -> bytes:
    """The first bytes of an opened file, which is then where it was. Raises OSError."""
    place = file.tell()
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(place)
    return head


def refused(
    name: object, problem: str, head: bytes | None = None, line: int | None = None, own: str = ""
) -> InputError:
    """The answer to a file whose content or state is wrong; see `why`.

    head  its first bytes, where what the file is may be the reason
    line  where the problem is, from 1; left out where the whole file is of another kind
    """
    foreign = None if head is None else _foreign(head, str(name), own)
    if foreign:
        return InputError(f"{name}: {foreign}")
    place = "" if line is None else f", line {line}"
    return InputError(f"{name}{place}: {problem}")


def why(name: str, problem: str, head: bytes, own: str = "") -> str:
    """Why a file cannot be used: what it is, if it is no file of `own`'s kind, else `problem`.

    own  "text", "pickle" or "wav"
    """
    return _foreign(head, name, own) or problem


def _foreign(head: bytes, name: str, own: str) -> str | None:
    kind = kind_of(head, name)
    if kind is not None and kind.key != own:
        return kind.sentence()
    if kind is None and own in ("pickle", "wav") and (beginning := _plain_text(head)):
        return f"is text (it begins with {beginning}), must be a {own} file"
    return None


def _plain_text(head: bytes) -> str | None:
    """The beginning of a text, in quotes; None for anything else, and for text pickles."""
    if not head or head.startswith((b"(", b"RIFF")):
        return None
    try:
        text = head.decode("utf-8", "ignore" if len(head) == HEAD_BYTES else "strict")
    except UnicodeDecodeError:
        return None
    if any(ord(character) < ord(" ") and character not in "\t\r\n\x1a" for character in text):
        return None
    words = " ".join(text.split())
    more = "..." if len(words) > _SHOWN_BYTES else ""
    return f"'{printable(words[:_SHOWN_BYTES])}'{more}"


def kind_of(head: bytes, name: str = "FILE") -> Kind | None:
    """What a file with these first bytes is; None for plain text and what is not known.

    name  of the file, for the commands that are suggested
    """
    file = quoted(name)
    if not head:
        return Kind("empty", "is empty (0 bytes)", "copy or download it again")
    if not head.strip(b"\0"):
        return Kind(
            "zeros",
            f"has nothing but zeros in its first {len(head)} bytes, as a copy that was broken off "
            "leaves",
            "copy or download it again",
        )
    for known in (_packed, _zip, _known_begin, _known_text):
        kind = known(head, name, file)
        if kind is not None:
            return kind
    return None


def _packed(head: bytes, name: str, file: str) -> Kind | None:
    for key, magic, suffix, inside in (
        ("gzip", b"\x1f\x8b", ".gz", lambda: zlib.decompressobj(wbits=31)),
        ("bzip2", b"BZh", ".bz2", bz2.BZ2Decompressor),
        ("xz", b"\xfd7zXZ\0", ".xz", lambda: lzma.LZMADecompressor(memlimit=1 << 28)),
        ("zstd", b"\x28\xb5\x2f\xfd", ".zst", None),
        ("lz4", b"\x04\x22\x4d\x18", ".lz4", None),
    ):
        if not head.startswith(magic) or (key == "bzip2" and head[4:10] != b"1AY&SY"):
            continue
        archive = inside is not None and _is_tar(_unpacked(head, inside()))
        if archive or name.endswith((f".tar{suffix}", ".tgz")):
            return Kind(key, f"is a tar archive packed with {key}", f"unpack it: tar -xf {file}")
        tool = "gunzip" if key == "gzip" else f"{key} -d"
        unpack = f"{tool} {file}"
        if not name.endswith(suffix):
            unpack = f"{key} -dc < {file} > {quoted(name + '.unpacked')}"
        return Kind(key, f"is packed with {key}", f"unpack it: {unpack}")
    if head.startswith(b"\x1f\x9d"):
        unpack = f"gzip -dc < {file} > {quoted(name + '.unpacked')}"
        return Kind("compress", "is packed with compress", f"unpack it: {unpack}")
    if head.startswith(b"7z\xbc\xaf\x27\x1c"):
        return Kind("7z", "is a 7-Zip archive", f"unpack it: 7z x {file}")
    if head.startswith(b"Rar!\x1a\x07"):
        return Kind("rar", "is a RAR archive", f"unpack it: unrar x {file}")
    # Two bytes that text may begin with, too: so it is tried.
    if head[:1] == b"x" and _unpacked(head, zlib.decompressobj()):
        return Kind("zlib", "is packed with zlib, as joblib does", "save it again without packing")
    if _is_tar(head):
        return Kind("tar", "is a tar archive", f"unpack it: tar -xf {file}")
    return None


def _unpacked(head: bytes, packer: object) -> bytes:
    """What the first bytes of a packed file hold; nothing where that cannot be told."""
    try:
        if isinstance(packer, bz2.BZ2Decompressor | lzma.LZMADecompressor):
            return packer.decompress(head, _TAR_BYTES)
        return bytes(packer.decompress(head, _TAR_BYTES))  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        return b""


def _is_tar(head: bytes) -> bool:
    if len(head) < _TAR_BYTES:
        return False
    try:
        tarfile.TarInfo.frombuf(head[:_TAR_BYTES], "utf-8", "surrogateescape")
        return True
    except (tarfile.HeaderError, ValueError):
        return False


def _zip(head: bytes, name: str, file: str) -> Kind | None:
    if not head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return None
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if first.endswith(b".npy"):
        return Kind("npz", "is an archive of NumPy arrays (.npz)", _ANOTHER)
    if first.endswith((b"/data.pkl", b"/.format_version")):
        return Kind("torch", "is a file that torch.save wrote", _ANOTHER)
    if first.startswith((b"[Content_Types]", b"_rels/", b"xl/", b"docProps/", b"mimetype")):
        return Kind("office", "is an office document, such as .xlsx", _ANOTHER)
    return Kind("zip", "is a zip archive", f"unpack it: unzip {file}")


_ANOTHER = "the data set's own files are wanted"
_AGAIN = "it is most likely what a download that failed has saved; download it again"
_CONVERT_SOUND = "convert it to a wav file of 16 bit, mono, 16 kHz"

_BEGINS: tuple[tuple[bytes, str, str, str], ...] = (
    (b"\x93NUMPY", "npy", "is a NumPy array (.npy)", _ANOTHER),
    (b"MATLAB 5.0 MAT-file", "mat", "is a MATLAB file (.mat)", _ANOTHER),
    (b"MATLAB 7.3 MAT-file", "mat", "is a MATLAB file (.mat)", _ANOTHER),
    (b"\x89HDF\r\n\x1a\n", "hdf5", "is an HDF5 file", _ANOTHER),
    (b"PAR1", "parquet", "is a Parquet file", _ANOTHER),
    (b"ARROW1", "arrow", "is an Arrow (Feather) file", _ANOTHER),
    (b"SQLite format 3\0", "sqlite", "is an SQLite database", _ANOTHER),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "office", "is an old office document", _ANOTHER),
    (b"%PDF-", "pdf", "is a PDF document", _ANOTHER),
    (b"\x89PNG\r\n", "png", "is a PNG picture", _ANOTHER),
    (b"\xff\xd8\xff", "jpeg", "is a JPEG picture", _ANOTHER),
    (b"\x7fELF", "elf", "is a program", _ANOTHER),
    (
        b"\0\x05\x16\x07",
        "appledouble",
        "is an AppleDouble file, which macOS writes beside another file",
        "give that one, whose name lacks the ._ at its beginning",
    ),
    (b"fLaC", "flac", "is a FLAC file", _CONVERT_SOUND),
    (b"OggS", "ogg", "is an Ogg file", _CONVERT_SOUND),
    (b"ID3", "mp3", "is an MP3 file", _CONVERT_SOUND),
    (b"RF64", "rf64", "is an RF64 file, the wav format of large files", _CONVERT_SOUND),
    (b"BW64", "rf64", "is a BW64 file, the wav format of large files", _CONVERT_SOUND),
    (b"RIFX", "rifx", "is a RIFX file, a wav file of the other byte order", _CONVERT_SOUND),
    (b"riff\x2e\x91\xcf\x11", "w64", "is a Wave64 file", _CONVERT_SOUND),
    (b".snd", "au", "is an AU file", _CONVERT_SOUND),
    (b"NIST_1A", "sphere", "is a NIST SPHERE file", _CONVERT_SOUND),
    (b"caff", "caf", "is a CAF file", _CONVERT_SOUND),
    (b"#!AMR", "amr", "is an AMR file", _CONVERT_SOUND),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf", "is a WMA (ASF) file", _CONVERT_SOUND),
    (b"\x1a\x45\xdf\xa3", "webm", "is a Matroska or WebM file", _CONVERT_SOUND),
    (
        b"version https://git-lfs.github.com/spec/",
        "lfs",
        "is a pointer of Git LFS, not the file itself",
        "fetch it: git lfs pull",
    ),
    (
        b"/annex/objects/",
        "annex",
        "is a pointer of git-annex, not the file itself",
        "fetch it: git annex get",
    ),
)


def _known_begin(head: bytes, name: str, file: str) -> Kind | None:
    for magic, key, what, fix in _BEGINS:
        if head.startswith(magic):
            return Kind(key, what, fix)
    if head[:4] == b"RIFF" and len(head) >= 12:
        if head[8:12] == b"WAVE":
            return Kind("wav", "is a wav file, a recording", _ANOTHER)
        return Kind("riff", f"is a RIFF file of type {ascii(head[8:12])[1:]}", _ANOTHER)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return Kind("aiff", "is an AIFF file", _CONVERT_SOUND)
    if head[4:8] == b"ftyp":
        return Kind("mp4", "is an MP4 file, such as .m4a", _CONVERT_SOUND)
    if head[:2] in (b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3"):
        return Kind("mp3", "is an MP3 file", _CONVERT_SOUND)
    if head[0] == 0x80 and len(head) > 1 and head[1] in range(2, 6):
        if b"joblib.numpy_pickle" in head or b"joblib\x94\x8c" in head:
            return Kind("joblib", "is a file that joblib wrote", "save it with pickle instead")
        if head.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."):
            return Kind("torch", "is a file that torch.save wrote", _ANOTHER)
        return Kind("pickle", "is a pickle, a file of Python's objects", _ANOTHER)
    return None


def _known_text(head: bytes, name: str, file: str) -> Kind | None:
    new = quoted(name + ".utf8")
    for mark, encoding in (
        (b"\xff\xfe\0\0", "UTF-32"),
        (b"\0\0\xfe\xff", "UTF-32"),
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
    ):
        if head.startswith(mark):
            return _wide(encoding, file, new)
    even, odd = head[0:64:2], head[1:64:2]
    if len(head) >= 8:
        if not odd.strip(b"\0") and _ascii(even):
            return _wide("UTF-16LE", file, new)
        if not even.strip(b"\0") and _ascii(odd):
            return _wide("UTF-16BE", file, new)
    begin = head.removeprefix(UTF8_MARK).lstrip()[:100].lower()
    if begin.startswith((b"<!doctype html", b"<html", b"<head", b"<!--", b"<script")):
        return Kind("html", "is an HTML page", _AGAIN)
    if begin.startswith(b"<?xml"):
        return Kind("xml", "is an XML document", _AGAIN)
    return None


def _wide(encoding: str, file: str, new: str) -> Kind:
    return Kind(
        "utf-16",
        f"is text in {encoding}, as Notepad and PowerShell may write it",
        f"make it UTF-8: iconv -f {encoding} -t UTF-8 {file} > {new}",
    )


def _ascii(content: bytes) -> bool:
    return all(byte in b"\t\r\n" or 0x20 <= byte < 0x7F for byte in content)


def _unreadable(path: Path, error: OSError) -> str:
    """In words why the system gives no file."""
    if error.errno == errno.ENOENT:
        if dangling := _dangling(path):
            return dangling
        for suffix in _PACKED_SUFFIXES:
            other = Path(f"{path}{suffix}")
            if _is_regular(other):
                return f"cannot be read ({error.strerror}), but there is {other}: unpack that first"
    return f"cannot be read ({error.strerror})"


def _dangling(path: Path) -> str | None:
    try:
        return f"is a symbolic link to {os.readlink(path)}, which is not there"
    except OSError:
        return None


def _special(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _no_file(path: Path, mode: int) -> str:
    if stat.S_ISDIR(mode):
        inner = path / path.name
        hint = f"; give the file in it, {inner}" if path.name and _is_regular(inner) else ""
        return f"is a folder, must be a file{hint}"
    special = _special(mode)
    hint = "; write what comes out of it to a file, and give that" if special == "pipe" else ""
    return f"is a {special}, must be a file{hint}"


def _is_regular(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_missing(path: Path) -> bool:
    """Whether there is nothing of this name; what cannot be looked at may be there."""
    try:
        path.lstat()
        return False
    except FileNotFoundError:
        return True
    except OSError:
        return False


def entries_of(
    folder: Path,
    left_out: Callable[[Path, str], None],
    wanted: Callable[[Path], bool] = lambda path: True,
) -> list[Path]:
    """See `names.entries`: the one way in which converters look through a folder."""
    return entries(folder, left_out, wanted)


def input_folder(option: str, folder: Path, wanted: str) -> None:
    """Raise `InputError` unless `folder` is one that can be looked into.

    option  that names it
    wanted  what to give, for the message
    """
    try:
        mode = folder.stat().st_mode
        if stat.S_ISDIR(mode):
            os.listdir(folder)
            return
        if stat.S_ISREG(mode):
            problem = f"is a file, must be a folder{_of_file(folder)}"
        else:
            problem = f"is a {_special(mode)}, must be a folder"
    except FileNotFoundError:
        problem = _dangling(folder) or "no such folder"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise InputError(f"{option} {folder}: {problem}; {wanted}")


def _of_file(path: Path) -> str:
    try:
        with opened(path) as file:
            kind = kind_of(file.read(HEAD_BYTES), str(path))
    except (UnusableError, OSError):
        return ""
    if kind is None:
        return ""
    return f"; it {kind.what if kind.fix == _ANOTHER else kind.sentence()}"


def folder_refused(
    option: str,
    folder: Path,
    problem: str,
    wanted: str,
    is_it: Callable[[Path], bool] = lambda folder: False,
) -> InputError:
    """The answer to a folder that does not hold the data set: where it is, if that can be told.

    is_it  whether a folder is the right one; folders below and above are tried, and then files that
           are packed are named
    """
    for place in _around(folder):
        if is_it(place):
            return InputError(f"{option} {folder}: {problem}; give {place}, which has them")
    for path in _looked_at(folder):
        if _is_regular(path) and (found := _of_file(path)) and "unpack" in found:
            return InputError(
                f"{option} {folder}: {problem}; {path.name} in it {found.removeprefix('; it ')}"
            )
    return InputError(f"{option} {folder}: {problem}; {wanted}")


def _around(folder: Path) -> Iterator[Path]:
    inner = [path for path in _looked_at(folder) if _is_folder(path)]
    yield from inner
    for path in inner:
        yield from (below for below in _looked_at(path) if _is_folder(below))
    yield Path(os.path.abspath(folder)).parent


def _looked_at(folder: Path) -> list[Path]:
    return entries(folder, lambda path, reason: None)[:_MOST_LOOKED_AT]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False

"""The kind of a file, by its first bytes and never by its name, and how to convert it."""

import bz2
import lzma
import tarfile
import zlib
from dataclasses import dataclass

from ist_hpc.common.disk.names import quoted

HEAD_BYTES = 1024
UTF8_MARK = b"\xef\xbb\xbf"
"""Windows editors write it before UTF-8 text; it has no meaning."""

_TAR_BYTES = 512


@dataclass(frozen=True)
class Kind:
    """The kind of a file. `key` is for the program, `what` for people; `fix` says what to do."""

    key: str
    what: str
    fix: str = ""

    def sentence(self) -> str:
        """The words of a message after the name of the file and a colon."""
        return f"{self.what}; {self.fix}" if self.fix else self.what


def kind_of(head: bytes, name: str = "FILE") -> Kind | None:
    """The kind of a file with these first bytes; None for plain text and unknown kinds.

    name  the file's name, for the suggested commands
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
    """The first bytes of a packed file's contents; empty if they cannot be unpacked."""
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
        return Kind("npz", "is an archive of NumPy arrays (.npz)", ANOTHER)
    if first.endswith((b"/data.pkl", b"/.format_version")):
        return Kind("torch", "is a file that torch.save wrote", ANOTHER)
    if first.startswith((b"[Content_Types]", b"_rels/", b"xl/", b"docProps/", b"mimetype")):
        return Kind("office", "is an office document, such as .xlsx", ANOTHER)
    return Kind("zip", "is a zip archive", f"unpack it: unzip {file}")


ANOTHER = "the data set's own files are wanted"
_AGAIN = "it is most likely what a download that failed has saved; download it again"
_CONVERT_SOUND = "convert it to a wav file of 16 bit, mono, 16 kHz"

_BEGINS: tuple[tuple[bytes, str, str, str], ...] = (
    (b"\x93NUMPY", "npy", "is a NumPy array (.npy)", ANOTHER),
    (b"MATLAB 5.0 MAT-file", "mat", "is a MATLAB file (.mat)", ANOTHER),
    (b"MATLAB 7.3 MAT-file", "mat", "is a MATLAB file (.mat)", ANOTHER),
    (b"\x89HDF\r\n\x1a\n", "hdf5", "is an HDF5 file", ANOTHER),
    (b"PAR1", "parquet", "is a Parquet file", ANOTHER),
    (b"ARROW1", "arrow", "is an Arrow (Feather) file", ANOTHER),
    (b"SQLite format 3\0", "sqlite", "is an SQLite database", ANOTHER),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "office", "is an old office document", ANOTHER),
    (b"%PDF-", "pdf", "is a PDF document", ANOTHER),
    (b"\x89PNG\r\n", "png", "is a PNG picture", ANOTHER),
    (b"\xff\xd8\xff", "jpeg", "is a JPEG picture", ANOTHER),
    (b"\x7fELF", "elf", "is a program", ANOTHER),
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
            return Kind("wav", "is a wav file, a recording", ANOTHER)
        return Kind("riff", f"is a RIFF file of type {ascii(head[8:12])[1:]}", ANOTHER)
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
            return Kind("torch", "is a file that torch.save wrote", ANOTHER)
        return Kind("pickle", "is a pickle, a file of Python's objects", ANOTHER)
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

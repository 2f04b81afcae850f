"""Makes programs and libraries take their libraries from where they were made to, whatever is set.

    python tools/look_beside_first.py FILE...

A file's RUNPATH counts after LD_LIBRARY_PATH, by which a site's module brings another MPI of the
same library names; as RPATH, the older word for the same list, it counts before. Only that word is
changed, in copies that then take the files' places. What is no 64-bit ELF file is left alone.
"""

import os
import shutil
import struct
import sys
from pathlib import Path

_RPATH, _RUNPATH, _DYNAMIC = 15, 29, 2
_ELF64_LITTLE = b"\x7fELF\x02\x01"


def with_rpath(image: bytes) -> bytes | None:
    """The ELF file with its RUNPATH as RPATH; None if there is nothing to change."""
    if not image.startswith(_ELF64_LITTLE):
        return None
    (start,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    changed = bytearray(image)
    for header in range(start, start + size * count, size):
        (kind,) = struct.unpack_from("<I", image, header)
        offset, length = (struct.unpack_from("<Q", image, header + at)[0] for at in (8, 32))
        if kind != _DYNAMIC:
            continue
        for entry in range(offset, offset + length, 16):
            if struct.unpack_from("<Q", image, entry) == (_RUNPATH,):
                struct.pack_into("<Q", changed, entry, _RPATH)
    return None if changed == image else bytes(changed)


def main(names: list[str]) -> None:
    """Change the files of these names."""
    for path in map(Path, names):
        image = with_rpath(path.read_bytes())
        if image is None:
            continue
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(image)
        shutil.copymode(path, new)
        os.replace(new, path)
        print(f"RPATH: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])

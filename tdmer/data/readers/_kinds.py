"""Files that are taken for a pickle by mistake."""

import os
import re
from typing import BinaryIO

# First bytes, what the file is, and how to mend it.
_OTHERS = {
    rb"PK\x03\x04.{26}[^/]{1,100}/data\.pkl": "a file of torch.save: torch.load reads it",
    rb"\x93NUMPY|PK\x03\x04.{26}[^\0]{1,100}\.npy": "a file of numpy.save: numpy.load reads it",
    rb"\x89HDF\r\n": "an HDF5 file (.h5, .csd): h5py reads it",
    rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf": "an archive, or compressed: unpack it first",
    rb"version https://git-lfs": "a pointer of git-LFS: fetch the file with git lfs pull",
    rb"(?i:\s*<(!doctype|html|\?xml))": "a web page: open it to see what the download asks for",
    rb"\Z": "an empty file: copy or download it again",
}


def check_kind(path: str | os.PathLike[str], file: BinaryIO) -> None:
    """Raise if the first bytes are those of another kind of file; the file is at its start."""
    head = file.read(512)
    file.seek(0)
    for first, what in _OTHERS.items():
        if re.match(first, head, re.DOTALL):
            raise ValueError(f"{path} must be a pickle, got {what}")

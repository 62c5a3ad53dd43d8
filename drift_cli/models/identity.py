"""What a model folder is called by: a digest of its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

_WHOLE = 64 << 20
"""Weight files up to this size are hashed whole; of larger ones the header and evenly spread blocks are."""
_BLOCKS, _BLOCK = 64, 1 << 20


def folder_digest(folder: Path) -> str:
    """SHA-256 over a model folder's configuration, tokenizer and weights; of large weight files, size, header and 64 spread blocks of 1 MiB."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in {".json", ".jinja", ".model", ".txt", ".safetensors"}):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for block in range(_BLOCKS):
                file.seek(block * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()

"""Unpacks the source package in a folder beside it, whole or not at all.

    python unpack.py FOLDER
"""

import os
import shutil
import sys
import tarfile
from pathlib import Path

for package in Path(sys.argv[1]).glob("*.tar.gz"):
    part = package.with_name("part")
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(package) as archive:
        archive.extractall(part / "x", filter="data")
    # `unpacked` in crates/cli looks one level deep: what is not moved is not found.
    for folder in (part / "x").iterdir():
        os.replace(folder, package.with_name(folder.name))
    shutil.rmtree(part)

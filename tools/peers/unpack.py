"""Unpacks the source package in a folder, beside it.

    python unpack.py FOLDER
"""

import glob
import sys
import tarfile

for package in glob.glob(sys.argv[1] + "/*.tar.gz"):
    with tarfile.open(package) as archive:
        archive.extractall(sys.argv[1], filter="data")

"""Makes an ONNX Runtime GenAI folder for the CPU from a Hugging Face folder.

    python make_oga.py HF_FOLDER OUT_FOLDER

The library's own model builder, int4 in groups of 32 and 8-bit arithmetic: its fastest.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    source, out = sys.argv[1], Path(sys.argv[2])
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", source, "-o", str(part), "-p", "int4", "-e", "cpu", "-c", cache]
        command += ["--extra_options", "int4_block_size=32", "int4_accuracy_level=4"]
        subprocess.run(command, check=True)
    os.replace(part, out)


if __name__ == "__main__":
    main()

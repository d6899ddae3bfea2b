"""Runs the commands of docs/tutorial.md, and writes what they print into it.

python tests/docs/tutorial.py          # two minutes, on a quiet machine; rewrites the page
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "== command "


def commands(text: str) -> list[str]:
    """The lines after prompts, in order."""
    lines = [line for block in _BLOCK.findall(text) for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def run(lines: list[str], folder: Path) -> list[str]:
    """What each command prints, in one shell. CalledProcessError: one of them failed."""
    script = "\n".join(f"printf '\\n{_MARK}{i}\\n'\n{line}" for i, line in enumerate(lines))
    tools = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "COLUMNS": "120"}
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail -m\n{script}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode} after\n{done.stdout}")
    return re.split(rf"^{_MARK}\d+\n", done.stdout, flags=re.MULTILINE)[1:]


def rewritten(text: str, outputs: list[str]) -> str:
    """The page with these outputs below its commands."""
    left = iter(outputs)

    def block(found: re.Match[str]) -> str:
        prompts = [line for line in found[1].splitlines() if line.startswith("$ ")]
        told = "".join(f"{line}\n{_told(next(left))}" for line in prompts)
        return f"```console\n{told}```"

    return _BLOCK.sub(block, text)


def _told(output: str) -> str:
    """Without blank lines around it and at the ends of lines; of the shell's own, nothing."""
    lines = [line.rstrip() for line in output.splitlines() if not re.match(r"\[\d\]", line)]
    text = "\n".join(lines).strip("\n")
    return f"{text}\n" if text else ""


def main(show: Callable[[str], object] = sys.stderr.write) -> None:
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(rewritten(text, run(commands(text), Path(folder))), encoding="utf-8")
    show(f"{PAGE} is written\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Checks each source file: length, #pragma once (but in *-inl.h, which Highway includes once per
instruction set), no tabs or trailing blanks, and the format; and that
the READMEs link to files that exist.

The format is .clang-format as clang-format 14 (Debian 12) applies it; another version formats
differently, so without that one the format is not checked, and the last line says so.
"""

import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("kernels", "kvcache", "engine", "server", "tests")
SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".py"}
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")
MAX_LINES = 800
CLANG_FORMAT_VERSION = "version 14."


def check(path, text):
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        yield f"{path}: {len(lines)} lines; split it below {MAX_LINES}"
    guarded = path.endswith((".h", ".cuh")) and not path.endswith("-inl.h")
    if guarded and "#pragma once" not in lines:
        yield f"{path}: a header without #pragma once"
    if text and not text.endswith("\n"):
        yield f"{path}: no newline at the end"
    for number, line in enumerate(lines, 1):
        if "\t" in line:
            yield f"{path}:{number}: a tab; indent with spaces"
        if line != line.rstrip():
            yield f"{path}:{number}: blanks at the end of the line"


def check_links(path, text, exists):
    for number, line in enumerate(text.splitlines(), 1):
        for match in LINK.finditer(line):
            if not exists(pathlib.PurePosixPath(path).parent / match.group(1)):
                yield f"{path}:{number}: links to {match.group(1)}, which is not there"


def find_clang_format():
    for name in ("clang-format-14", "clang-format"):
        if shutil.which(name):
            version = subprocess.run([name, "--version"], capture_output=True, text=True).stdout
            if CLANG_FORMAT_VERSION in version:
                return name
    return None


def check_format(clang_format, files):
    command = [clang_format, "--dry-run", "--Werror", "--ferror-limit=1", *files]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return [line.replace("[-Wclang-format-violations]", "") + f"(run {clang_format} -i)"
            for line in result.stderr.splitlines() if ": error:" in line]


def main():
    files = sorted(
        file.relative_to(ROOT)
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*")
        if file.suffix in SUFFIXES
    )
    issues = []
    for file in files:
        issues += check(str(file), (ROOT / file).read_text(encoding="utf-8"))
    readmes = [ROOT / "README.md"]
    for folder in (*FOLDERS, "docker", "configs", "proto"):
        readmes += sorted((ROOT / folder).rglob("README.md"))
    for readme in readmes:
        path = str(readme.relative_to(ROOT))
        issues += check_links(path, readme.read_text(encoding="utf-8"), lambda p: (ROOT / p).exists())
    clang_format = find_clang_format()
    if clang_format:
        issues += check_format(clang_format, [str(f) for f in files if f.suffix != ".py"])
    print(*issues, sep="\n", end="\n" if issues else "")
    unchecked = "" if clang_format else "; format not checked: clang-format 14 is not installed"
    print(f"{len(files)} files, {len(issues)} issues (tests/lint/check_files.py){unchecked}")
    return 1 if issues or not files else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Checks that every header compiles on its own: check_headers.py COMPILER [INCLUDE_DIR...]

The bodies that Highway compiles once per instruction set (*-inl.h) are no headers in this sense.
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("kernels", "kvcache", "engine", "server")


def compile_alone(compiler, includes, header):
    command = [compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-include", str(header)]
    command += [f"-I{directory}" for directory in (ROOT, *includes)] + [os.devnull]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode == 0:
        return []
    return [line for line in result.stderr.splitlines() if "error:" in line][:1] or [f"{header}: {result.stderr}"]


def main():
    compiler, *includes = sys.argv[1:]
    headers = [
        header.relative_to(ROOT)
        for folder in FOLDERS
        for header in sorted((ROOT / folder).rglob("*.h"))
        if not header.name.endswith("-inl.h")
    ]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        issues = sum(pool.map(lambda h: compile_alone(compiler, includes, h), headers), [])
    print(*issues, sep="\n", end="\n" if issues else "")
    print(f"{len(headers)} headers, {len(issues)} not self-contained (tests/lint/check_headers.py)")
    return 1 if issues or not headers else 0


if __name__ == "__main__":
    sys.exit(main())

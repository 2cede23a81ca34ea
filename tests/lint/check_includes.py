#!/usr/bin/env python3
"""Checks who includes whom. The table below is the layering.

Every folder may include itself and what its row names; the longest matching row counts. Third-party
headers have a table of their own: a library that is listed may be included from these folders only.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("kernels", "kvcache", "engine", "server")
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}

KERNEL_SEAM = (
    "kernels/ops.h",
    "kernels/make_ops.h",
    "kernels/base/",
    "kernels/quant/quant_format.h",
    "kernels/attention/paged_kv.h",
    "kernels/rope/rope.h",
)
ENGINE_FACE = (
    "engine/engine.h",
    "engine/request.h",
    "engine/stats.h",
    "engine/log.h",
    "engine/config/",
    "engine/text/",
    "kernels/base/",
)

MAY_INCLUDE = {
    # the lowest layer: an op knows the base, the formats and the seam's plain types
    "kernels/": ("kernels/",),
    "kernels/base/": (),
    "kernels/quant/": ("kernels/base/",),
    # a reverse pass takes what it can from the way there
    "kernels/gradient/": KERNEL_SEAM
    + ("kernels/linear/", "kernels/norm/norm_cuda.cuh", "kernels/rope/rope_cuda.cuh"),
    **{
        f"kernels/{op}/": KERNEL_SEAM
        + ("kernels/quant/", "kernels/attention/paged_kv_cpu.h")
        + ("kernels/attention/paged_kv_cuda.cuh", "kernels/norm/rows_cuda.cuh")
        for op in ("attention", "linear", "moe", "norm", "rope", "sample")
    },
    "kvcache/": ("kernels/base/", "kernels/attention/paged_kv.h"),
    # the engine: libraries that read bytes and text stand below the loop
    "engine/": ("engine/", "kvcache/") + KERNEL_SEAM,
    "engine/calibrate/": ("engine/", "kvcache/", "kernels/gradient/") + KERNEL_SEAM,
    "engine/config/": ("engine/log.h", "kernels/base/"),
    "engine/io/": ("kernels/base/", "kernels/quant/quant_format.h"),
    "engine/text/": ("engine/io/", "kernels/base/"),
    "engine/sample/": ("engine/request.h", "kernels/base/", "kernels/sample/"),
    "engine/model/": ("engine/io/", "engine/text/", "engine/config/", "engine/log.h")
    + KERNEL_SEAM,
    "engine/attention/": (
        "engine/request.h",
        "engine/config/",
        "engine/io/",
        "engine/model/fingerprint.h",
        "engine/model/loaded_model.h",
        "engine/model/model_spec.h",
        "kvcache/",
    )
    + KERNEL_SEAM,
    # the server: transports over one api, the api over the engine's face
    "server/": ENGINE_FACE,
    "server/config/": ("engine/config/", "engine/log.h", "kernels/base/"),
    "server/api/": ("server/config/", "server/lifecycle.h") + ENGINE_FACE,
    "server/http/": ("server/api/", "server/config/", "server/lifecycle.h", "server/metrics.h")
    + ENGINE_FACE,
    "server/grpc/": ("server/api/", "server/config/", "server/lifecycle.h", "headwater/v1/")
    + ENGINE_FACE,
    "server/cli/": ("server/", "engine/") + KERNEL_SEAM,
}

# Inside a folder that may include widely, these pairs stay apart.
MUST_NOT_INCLUDE = {
    "engine/schedule/": ("engine/execute/", "engine/model/"),
    "engine/execute/": ("engine/schedule/scheduler.h",),
}

THIRD_PARTY = {
    "boost/": ("server/",),
    "grpcpp/": ("server/grpc/",),
    "google/protobuf/": ("server/grpc/",),
    "nlohmann/": (
        "server/",
        "engine/config/",
        "engine/text/",
        "engine/io/",
        "engine/model/",
        "engine/attention/head_table",
    ),
    "yaml-cpp/": ("server/config/",),
    "CLI/": ("server/",),
    "prometheus/": ("server/metrics",),
    "openssl/": ("server/",),
    "spdlog/": ("engine/log",),
    "pcre2.h": ("engine/text/",),
    "utf8proc.h": ("engine/text/",),
    "hwy/": ("kernels/",),
    "immintrin.h": ("kernels/",),
    "cuda": ("kernels/",),
    "cublas": ("kernels/",),
    "catch2/": (),
    "benchmark/": (),
}

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')


def longest_row(path, table):
    rows = [prefix for prefix in table if path.startswith(prefix)]
    return max(rows, key=len) if rows else None


def violation(path, quote, target):
    """The sentence about `path` including `target`, or None if it may."""
    if target.startswith(".") or "/../" in target:
        return "includes go by path from the root"
    if target.endswith(".cuh") and not path.startswith("kernels/"):
        return ".cuh files stay inside kernels/"
    library = longest_row(target, THIRD_PARTY)
    if library is not None:
        if path.startswith(THIRD_PARTY[library]):
            return None
        allowed = ", ".join(THIRD_PARTY[library]) or "tests/"
        return f"{library} may be included from {allowed} only"
    if quote == "<" and not target.startswith(FOLDERS):
        return None
    if target.startswith("tests/"):
        return "the product does not include tests"

    apart = MUST_NOT_INCLUDE.get(longest_row(path, MUST_NOT_INCLUDE), ())
    if target.startswith(apart):
        return f"{longest_row(path, MUST_NOT_INCLUDE)} stays apart from {', '.join(apart)}"
    row = longest_row(path, MAY_INCLUDE)
    allowed = (row,) + MAY_INCLUDE[row]
    if target.startswith(allowed) or "/" not in target:
        return None
    return f"{row} may include {', '.join(allowed)}"


def check(path, text):
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            sentence = violation(path, *match.groups())
            if sentence:
                yield f'{path}:{number}: {match.group(2)}: {sentence}'


def main():
    issues, checked = [], 0
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in SUFFIXES:
                checked += 1
                issues += check(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))
    print(*issues, sep="\n", end="\n" if issues else "")
    print(f"{checked} files, {len(issues)} includes against the layering (tests/lint/check_includes.py)")
    return 1 if issues or not checked else 0


if __name__ == "__main__":
    sys.exit(main())

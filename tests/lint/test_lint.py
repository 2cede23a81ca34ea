#!/usr/bin/env python3
"""The lint finds what it should: each rule on an input that breaks it and one that keeps it."""

import unittest

import check_files
import check_includes


def includes(path, line):
    return list(check_includes.check(path, line + "\n"))


class Includes(unittest.TestCase):
    def test_layers_point_downwards(self):
        self.assertTrue(includes("kernels/ops_cpu.cpp", '#include "kvcache/kv_pool.h"'))
        self.assertTrue(includes("kvcache/kv_pool.cpp", '#include "engine/request.h"'))
        self.assertTrue(includes("engine/engine.cpp", '#include "server/lifecycle.h"'))
        self.assertFalse(includes("engine/engine.cpp", '#include "kvcache/kv_manager.h"'))

    def test_the_longest_row_counts(self):
        self.assertTrue(includes("kernels/base/check.cpp", '#include "kernels/ops.h"'))
        self.assertTrue(includes("kernels/norm/rms_norm.h", '#include "kernels/linear/linear.h"'))
        self.assertTrue(includes("engine/io/gguf.cpp", '#include "engine/request.h"'))
        self.assertFalse(includes("engine/io/gguf.cpp", '#include "engine/io/mapped_file.h"'))

    def test_schedule_and_execute_stay_apart(self):
        self.assertTrue(includes("engine/schedule/scheduler.h", '#include "engine/execute/executor.h"'))

    def test_the_server_sees_the_face_of_the_engine_only(self):
        self.assertTrue(includes("server/api/submit.cpp", '#include "engine/schedule/scheduler.h"'))
        self.assertTrue(includes("server/http/session.cpp", '#include "kernels/ops.h"'))
        self.assertFalse(includes("server/api/submit.cpp", '#include "engine/engine.h"'))

    def test_libraries_stay_in_their_folders(self):
        self.assertTrue(includes("engine/engine.cpp", "#include <boost/asio.hpp>"))
        self.assertTrue(includes("kvcache/kv_pool.cpp", "#include <nlohmann/json.hpp>"))
        self.assertTrue(includes("server/http/session.cpp", "#include <spdlog/spdlog.h>"))
        self.assertFalse(includes("server/http/session.cpp", "#include <boost/beast.hpp>"))
        self.assertFalse(includes("kvcache/kv_pool.cpp", "#include <vector>"))

    def test_paths_from_the_root(self):
        self.assertTrue(includes("engine/text/bpe.cpp", '#include "../io/gguf.h"'))
        self.assertTrue(includes("engine/engine.cpp", '#include "kernels/base/cuda_check.cuh"'))


class Files(unittest.TestCase):
    def issues(self, path, text):
        return list(check_files.check(path, text))

    def test_length(self):
        self.assertTrue(self.issues("a.cpp", "x\n" * 801))
        self.assertFalse(self.issues("a.cpp", "x\n" * 800))

    def test_headers_are_guarded(self):
        self.assertTrue(self.issues("a.h", "int x;\n"))
        self.assertFalse(self.issues("a.h", "#pragma once\n"))

    def test_blanks(self):
        self.assertTrue(self.issues("a.cpp", "\tx\n"))
        self.assertTrue(self.issues("a.cpp", "x \n"))
        self.assertTrue(self.issues("a.cpp", "x"))

    def test_links(self):
        def issues(text):
            return list(check_files.check_links("a/README.md", text, lambda p: str(p) == "a/b.h"))

        self.assertTrue(issues("[x](c.h)"))
        self.assertFalse(issues("[x](b.h), [y](b.h#part), [z](https://example.org/q)"))


if __name__ == "__main__":
    unittest.main()

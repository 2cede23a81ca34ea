#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <set>

#include "engine/config/config_check.h"
#include "engine/log.h"
#include "kernels/base/status.h"
#include "server/config/config.h"
#include "server/config/option_table.h"

namespace headwater {
namespace {

using Catch::Matchers::Contains;
using Words = std::vector<std::string>;

class TempFile {
 public:
  explicit TempFile(const std::string& text)
      : path_(std::filesystem::temp_directory_path() /
              ("headwater_config_" + std::to_string(::getpid()) + ".yaml")) {
    std::ofstream(path_) << text;
  }
  ~TempFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

std::string error_of(const Words& args, const std::vector<EnvVar>& env = {}) {
  try {
    load_config(args, env);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

std::string line_of(const LoadedConfig& loaded, const std::string& name) {
  for (const std::string& line : loaded.resolved) {
    if (line.starts_with(name + " ")) return line;
  }
  return "";
}

}  // namespace

TEST_CASE("Config: file, environment and flags, later over earlier", "[server][unit]") {
  const TempFile file("model: a.gguf\nport: 1001\nmax-num-seqs: 3\nthreads: 7\n");
  const auto loaded =
      load_config({"--config", file.path(), "--port=1003"},
                  {{"HEADWATER_PORT", "1002"}, {"HEADWATER_MAX_NUM_SEQS", "5"}, {"PATH", "/bin"}});
  CHECK(loaded.config.engine.model == "a.gguf");
  CHECK(loaded.config.server.port == 1003);
  CHECK(loaded.config.engine.max_num_seqs == 5);
  CHECK(loaded.config.engine.threads == 7);
  CHECK(loaded.config.server.drain_timeout == ServerConfig{}.drain_timeout);
  CHECK_THAT(line_of(loaded, "port"), Contains("1003  (flag)"));
  CHECK_THAT(line_of(loaded, "max-num-seqs"), Contains("5  (environment)"));
  CHECK_THAT(line_of(loaded, "threads"), Contains("7  (" + file.path() + ")"));
  CHECK_THAT(line_of(loaded, "block-size"), Contains("16  (default)"));
}

TEST_CASE("Config: the file can be named by the environment", "[server][unit]") {
  const TempFile file("model: b.gguf\n");
  CHECK(load_config({}, {{"HEADWATER_CONFIG", file.path()}}).config.engine.model == "b.gguf");
}

TEST_CASE("Config: unknown names are refused with the nearest known one", "[server][unit]") {
  CHECK_THAT(error_of({"m", "--max-num-seq", "3"}),
             Contains("unknown flag --max-num-seq, did you mean --max-num-seqs?"));
  CHECK_THAT(error_of({"m"}, {{"HEADWATER_THREAD", "3"}}),
             Contains("HEADWATER_THREAD, did you mean HEADWATER_THREADS?"));
  const TempFile file("model: m\nprt: 3\n");
  CHECK_THAT(error_of({"--config", file.path()}),
             Contains(":2: unknown key prt, did you mean port?"));
  CHECK_THAT(error_of({"m", "-p", "3"}), Contains("unknown flag -p"));
}

TEST_CASE("Config: all issues at once", "[server][unit]") {
  const TempFile file("port: many\nmodel: [1, 2]\nthreads: 1\nthreads: 2\n");
  const std::string error = error_of({"--config", file.path(), "--frobnicate", "--max-queue"},
                                     {{"HEADWATER_IO_THREADS", "two"}});
  CHECK_THAT(error, Contains(":1: port: must be a whole number"));
  CHECK_THAT(error, Contains(":2: model must be one value"));
  CHECK_THAT(error, Contains(":4: threads was set before, in line 3"));
  CHECK_THAT(error,
             Contains("HEADWATER_IO_THREADS: must be a whole number below 2^31, got \"two\""));
  CHECK_THAT(error, Contains("unknown flag --frobnicate"));
  CHECK_THAT(error, Contains("--max-queue: a value must follow"));
}

TEST_CASE("Config: bounds name option, value and source", "[server][unit]") {
  const std::string error =
      error_of({"m", "--port", "65536", "--block-size=20"}, {{"HEADWATER_DEVICE", "tpu"}});
  CHECK_THAT(error, Contains("port: must be between 0 and 65535, got 65536 (set by flag)"));
  CHECK_THAT(error, Contains("block-size: must be a multiple of 16, got 20 (set by flag)"));
  CHECK_THAT(
      error,
      Contains("device: must be one of auto, cuda, cpu, ref, got \"tpu\" (set by environment)"));
  CHECK_THAT(error_of({}), Contains("model: must name a GGUF file"));
  CHECK_THAT(error_of({"m", "--port", "99999999999"}), Contains("below 2^31"));
  CHECK_THAT(error_of({"m", "--grpc-port", "8000"}), Contains("grpc-port: must differ from port"));
  CHECK_THAT(error_of({"m", "second"}), Contains("\"second\""));
}

TEST_CASE("Config: switches, byte sizes and secrets", "[server][unit]") {
  const auto loaded = load_config({"m",
                                   "--no-enable-prefix-caching",
                                   "--check-invariants",
                                   "--kv-cache-bytes",
                                   "2GiB",
                                   "--api-key",
                                   "s3cret",
                                   "--deprecated-metrics=off"},
                                  {{"HEADWATER_MAX_BODY_BYTES", "512K"}});
  CHECK_FALSE(loaded.config.engine.enable_prefix_caching);
  CHECK(loaded.config.engine.check_invariants);
  CHECK(loaded.config.engine.kv_cache_bytes == int64_t{2} << 30);
  CHECK(loaded.config.server.max_body_bytes == 512 << 10);
  CHECK_FALSE(loaded.config.server.deprecated_metrics);
  CHECK(loaded.config.server.api_key == "s3cret");
  for (const std::string& line : loaded.resolved) CHECK_THAT(line, !Contains("s3cret"));
  CHECK_THAT(error_of({"m", "--kv-cache-bytes", "9999999999T"}), Contains("a number of bytes"));
  CHECK_THAT(error_of({"m", "--gpu-memory-utilization", "1.5"}),
             Contains("gpu-memory-utilization: must be above 0 and at most 1"));
  CHECK_THAT(error_of({"m", "--no-port"}), Contains("unknown flag --no-port"));
}

TEST_CASE("Config: what Kubernetes and the tests set is not for us", "[server][unit]") {
  CHECK(error_of({"m"},
                 {{"HEADWATER_PORT", "tcp://10.0.0.7:8000"},
                  {"HEADWATER_SERVICE_HOST", "10.0.0.7"},
                  {"HEADWATER_SERVICE_PORT_HTTP", "8000"},
                  {"HEADWATER_PORT_8000_TCP_ADDR", "10.0.0.7"},
                  {"HEADWATER_SHARED", "/somewhere"}}) == "");
}

TEST_CASE("Config: broken files give one clear line", "[server][unit]") {
  CHECK_THAT(error_of({"--config", "/nonexistent/x.yaml"}),
             Contains("config file /nonexistent/x.yaml: cannot be read"));
  const TempFile broken("model: m\n  port: : 3\n");
  CHECK_THAT(error_of({"--config", broken.path()}), Contains("not YAML"));
}

TEST_CASE("Config: a list is not a map", "[server][unit]") {
  const TempFile list("- a\n- b\n");
  CHECK_THAT(error_of({"--config", list.path()}), Contains("must be a map of options"));
}

TEST_CASE("Config: the example in configs/ is valid", "[server][unit]") {
  CHECK(error_of({"--config", std::string(HW_SOURCE_DIR) + "/configs/server.yaml"}) == "");
}

TEST_CASE("Config: every option is in the help once", "[server][unit]") {
  Config config;
  OptionTable table;
  describe_engine(config.engine, table);
  describe_server(config.server, table);
  const std::string help = serve_help();
  std::set<std::string> names;
  for (const Option& option : table.options()) {
    INFO(option.name);
    CHECK(names.insert(option.name).second);
    const bool turns_off = option.is_switch && option.default_value == "true";
    const std::string flag = "\n  --" + std::string(turns_off ? "[no-]" : "") + option.name;
    size_t count = 0;
    for (const char* end : {" ", "\n"}) {
      for (size_t at = help.find(flag + end); at != std::string::npos;
           at = help.find(flag + end, at + 1)) {
        ++count;
      }
    }
    CHECK(count == 1);
  }
}

TEST_CASE("Log: a value cannot forge a line", "[server][unit]") {
  CHECK(log::format("http",
                    "request finished",
                    {{"id", "a\nb \"c\""}, {"tokens", 3}, {"ok", true}, {"s", 0.25}, {"e", ""}}) ==
        R"(http: request finished id="a\nb \"c\"" tokens=3 ok=true s=0.25 e="")");
}

}  // namespace headwater

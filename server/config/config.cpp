#include "server/config/config.h"

#include <limits>

#include "engine/config/config_issues.h"
#include "server/config/option_table.h"

namespace headwater {
namespace {

const std::vector<OptionGroup>& serve_groups() {
  static const std::vector<OptionGroup> groups = {
      {"Model", {"model", "served-model-name", "chat-template", "max-model-len"}},
      {"Device and batching",
       {"device",
        "deterministic",
        "threads",
        "max-num-seqs",
        "max-num-batched-tokens",
        "max-itl-stretch",
        "max-queue",
        "seed"}},
      {"KV cache",
       {"kv-cache-bytes",
        "gpu-memory-utilization",
        "kv-cache-dtype",
        "block-size",
        "enable-prefix-caching",
        "check-invariants"}},
      {"Attention: what each head keeps",
       {"attention",
        "head-table",
        "retrieval-ratio",
        "duo-sparsity",
        "window-sinks",
        "window-recent",
        "window-growth",
        "window-block",
        "s2-stride",
        "s2-dense-heads",
        "prefill-mode",
        "allow-dense-requests",
        "max-kv-budget"}},
      {"Listening",
       {"host", "port", "grpc-port", "grpc-reflection", "api-key", "cors-origin", "io-threads"}},
      {"Requests",
       {"default-max-tokens", "max-logprobs", "max-choices", "request-timeout", "drain-timeout"}},
      {"Bounds against bad clients",
       {"max-connections",
        "max-header-bytes",
        "max-body-bytes",
        "max-send-buffer-bytes",
        "header-timeout",
        "body-timeout",
        "idle-timeout",
        "write-timeout",
        "sse-ping-interval"}},
      {"Watching", {"log-level", "deprecated-metrics"}},
      {"File", {"config"}},
  };
  return groups;
}

}  // namespace

std::vector<std::string> check_server_config(const ServerConfig& c) {
  constexpr int64_t kDay = 86400;
  ConfigIssues issues;
  if (c.host.empty()) issues.add("host: must be an address such as 127.0.0.1 or 0.0.0.0, got \"\"");
  issues.range("port", c.port, 0, 65535);
  issues.range("grpc-port", c.grpc_port, 0, 65535);
  if (c.port != 0 && c.port == c.grpc_port) {
    issues.add("grpc-port: must differ from port, both are " + std::to_string(c.port));
  }
  if (c.api_key.find_first_of(" \t\r\n") != std::string::npos) {
    issues.add("api-key: must not contain blanks or line ends");
  }
  issues.range("io-threads", c.io_threads, 1, 256);
  issues.range("drain-timeout", c.drain_timeout, 0, kDay);
  issues.range("max-connections", c.max_connections, 1, 1 << 20);
  issues.range("max-header-bytes", c.max_header_bytes, 1 << 10, 1 << 20);
  issues.range("max-body-bytes", c.max_body_bytes, 1 << 10, std::numeric_limits<int32_t>::max());
  issues.range("max-send-buffer-bytes", c.max_send_buffer_bytes, 1 << 14, 1 << 30);
  issues.range("header-timeout", c.header_timeout, 1, kDay);
  issues.range("body-timeout", c.body_timeout, 1, kDay);
  issues.range("idle-timeout", c.idle_timeout, 1, kDay);
  issues.range("write-timeout", c.write_timeout, 1, kDay);
  issues.range("sse-ping-interval", c.sse_ping_interval, 1, kDay);
  issues.range("request-timeout", c.request_timeout, 0, kDay);
  issues.range("default-max-tokens", c.default_max_tokens, 0, 1 << 24);
  issues.range("max-logprobs", c.max_logprobs, 0, 1000);
  issues.range("max-choices", c.max_choices, 1, 1024);
  issues.one_of("log-level", c.log_level, {"debug", "info", "warn", "error", "off"});
  return issues.take();
}

std::string serve_help() {
  Config config;
  std::string path;
  OptionTable table;
  describe_engine(config.engine, table);
  describe_server(config.server, table);
  table("config", path, "YAML file with any of these options");
  return "Serve one model over HTTP (OpenAI's API) and gRPC.\n"
         "\n"
         "Usage: headwater serve MODEL [options]\n"
         "       headwater serve --config FILE [options]\n"
         "\n"
         "Examples\n"
         "  headwater serve model.gguf\n"
         "      the model's own settings, on 127.0.0.1:8000 and gRPC on 8001\n"
         "  headwater serve model.gguf --host 0.0.0.0 --api-key s3cret --max-model-len 4096\n"
         "      for other machines, with a key, and shorter contexts\n"
         "  HEADWATER_PORT=9000 headwater serve --config configs/server.yaml --threads 4\n"
         "      three sources: a flag wins over the environment, which wins over the file\n"
         "\n"
         "An option \"max-model-len\" is the flag --max-model-len N, the variable\n"
         "HEADWATER_MAX_MODEL_LEN and the YAML key max-model-len. Defaults are in brackets.\n" +
         format_options(table, serve_groups());
}

}  // namespace headwater

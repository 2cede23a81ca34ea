// ServerConfig: what the front ends are told, and how both configurations are read. The sources
// are, later over earlier: the defaults, a YAML file (--config), the environment (HEADWATER_*), the
// flags. One list of fields (describe_engine, describe_server) drives all of them, --help and the
// start-up print. Used before any thread starts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/config/engine_config.h"

namespace headwater {

struct ServerConfig {
  std::string host = "127.0.0.1";
  int32_t port = 8000;       // 0 = any free one, printed at start-up
  int32_t grpc_port = 8001;  // 0 = no gRPC
  bool grpc_reflection = true;
  std::string api_key;  // "" = none asked for
  int32_t io_threads = 2;
  int32_t drain_timeout = 30;  // seconds
  int32_t max_connections = 10000;
  int64_t max_header_bytes = 64 << 10;
  int64_t max_body_bytes = 16 << 20;
  int64_t max_send_buffer_bytes = 1 << 20;  // per stream: a client that reads slower is dropped
  int32_t header_timeout = 15;              // seconds
  int32_t body_timeout = 60;
  int32_t idle_timeout = 120;
  int32_t write_timeout = 60;
  int32_t sse_ping_interval = 15;
  int32_t request_timeout = 0;     // seconds; 0 = none
  int32_t default_max_tokens = 0;  // chat without max_tokens; 0 = what fits
  int32_t max_logprobs = 20;
  int32_t max_choices = 16;  // n
  std::string cors_origin;   // "" = no CORS headers
  bool deprecated_metrics = true;
  std::string log_level = "info";
};

// As describe_engine of engine/config/engine_config.h.
template <typename Config, typename Visitor>
void describe_server(Config& c, Visitor&& visit) {
  visit("host", c.host, "address to listen on; 0.0.0.0 = every interface");
  visit("port", c.port, "HTTP port; 0 = any free one");
  visit("grpc-port", c.grpc_port, "gRPC port; 0 = no gRPC");
  visit("grpc-reflection", c.grpc_reflection, "answer gRPC server reflection (grpcurl)");
  visit("api-key", c.api_key, "key that requests must carry (Authorization: Bearer KEY)");
  visit("io-threads", c.io_threads, "threads that serve connections");
  visit("drain-timeout", c.drain_timeout, "seconds that running requests get after SIGTERM");
  visit("max-connections", c.max_connections, "HTTP connections open at once");
  visit("max-header-bytes", c.max_header_bytes, "largest HTTP request header");
  visit("max-body-bytes", c.max_body_bytes, "largest HTTP request body or gRPC message");
  visit("max-send-buffer-bytes",
        c.max_send_buffer_bytes,
        "unsent output of one stream before its client counts as gone");
  visit("header-timeout", c.header_timeout, "seconds to receive a request's header");
  visit("body-timeout", c.body_timeout, "seconds to receive a request's body");
  visit("idle-timeout", c.idle_timeout, "seconds a kept-alive connection may be idle");
  visit("write-timeout", c.write_timeout, "seconds one write may take");
  visit("sse-ping-interval", c.sse_ping_interval, "seconds of silence before a stream gets a ping");
  visit("request-timeout", c.request_timeout, "seconds one request may take; 0 = no bound");
  visit("default-max-tokens",
        c.default_max_tokens,
        "output bound of chat requests that name none; 0 = what fits the context");
  visit("max-logprobs", c.max_logprobs, "most logprobs a request may ask for");
  visit("max-choices", c.max_choices, "largest n of a request");
  visit("cors-origin", c.cors_origin, "origin that browsers may call from (* = any); empty = none");
  visit("deprecated-metrics",
        c.deprecated_metrics,
        "also export metric names that older dashboards chart");
  visit("log-level", c.log_level, "debug, info, warn, error or off");
}

struct Config {
  EngineConfig engine;
  ServerConfig server;
};

// A variable of the process environment; passed in, since nothing below main reads it.
struct EnvVar {
  std::string name;
  std::string value;
};

// The configuration with where each value came from.
struct LoadedConfig {
  Config config;
  std::vector<std::string> resolved;  // one "name = value  (source)" per field, secrets masked
};

// Merges file, environment and flags and checks every field. args: the words after the command.
// Throws ConfigError that lists every issue found, one a line.
LoadedConfig load_config(const std::vector<std::string>& args, const std::vector<EnvVar>& env);

// Bounds and names of ServerConfig; each issue names the option, the value and what is allowed.
std::vector<std::string> check_server_config(const ServerConfig& config);

// The text of `headwater serve --help`.
std::string serve_help();

}  // namespace headwater

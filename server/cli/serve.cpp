#include "server/cli/serve.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <optional>

#include "engine/engine.h"
#include "engine/log.h"
#include "server/api/service.h"
#include "server/cli/load_progress.h"
#include "server/grpc/grpc_server.h"
#include "server/http/listener.h"
#include "server/lifecycle.h"
#include "server/metrics.h"

namespace headwater::cli {
namespace {

constexpr std::chrono::seconds kWriteOutGrace{5};  // for replies that are complete but not yet sent

void print_config(const LoadedConfig& loaded) {
  std::printf("Headwater %s, configuration:\n", HEADWATER_VERSION);
  for (const std::string& line : loaded.resolved) std::printf("  %s\n", line.c_str());
  std::fflush(stdout);
}

std::string authority(const std::string& host, int port) {
  const bool is_ipv6 = host.find(':') != std::string::npos;
  return (is_ipv6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

void print_banner(const Engine& engine, const std::string& http, const std::string& grpc) {
  const ModelInfo& info = engine.model_info();
  const EngineStats stats = engine.stats();
  std::printf("Ready\n");
  std::printf("  model    %s: %s, %.1f M parameters, context %d tokens\n",
              info.id.c_str(),
              info.architecture.c_str(),
              static_cast<double>(info.num_parameters) / 1e6,
              info.max_model_len);
  std::printf("  weights  %s, %.1f MB\n",
              info.weight_format.c_str(),
              static_cast<double>(info.weight_bytes) / 1e6);
  std::printf("  device   %s\n", info.device.c_str());
  std::printf("  KV       %lld pages of %lld tokens, %.1f MB, %s, prefix reuse %s\n",
              static_cast<long long>(stats.kv_pages_total),
              static_cast<long long>(stats.page_tokens),
              static_cast<double>(stats.kv_bytes_total) / 1e6,
              stats.kv_format.c_str(),
              stats.prefix_caching ? "on" : "off");
  std::printf("  policy   %s%s%s\n",
              info.attention.c_str(),
              info.head_table.empty() ? "" : ", head table ",
              info.head_table.c_str());
  std::printf(
      "  heads    %d keep every token, %d are compressed; a sequence of %d tokens holds "
      "%.1f MB of KV, dense %.1f MB\n",
      info.num_full_heads,
      info.num_kv_heads - info.num_full_heads,
      info.max_model_len,
      static_cast<double>(info.kv_sequence_bytes) / 1e6,
      static_cast<double>(info.kv_sequence_bytes_dense) / 1e6);
  if (engine.chat_template() == nullptr) {
    std::printf(
        "  chat     off: this model has no chat template, so it completes text only; give one with "
        "--chat-template FILE\n");
  }
  std::printf("  HTTP     http://%s/v1\n", http.c_str());
  std::printf("  gRPC     %s\n", grpc.c_str());
  std::fflush(stdout);
}

// Loads on a thread of its own, so that a signal still ends the process.
std::unique_ptr<Engine> load(const EngineConfig& config,
                             const EngineMaker& make_engine,
                             ShutdownSignals& signals) {
  auto loading =
      std::async(std::launch::async, [&] { return make_engine(config, make_load_progress()); });
  const auto is_loading = [&] {
    return loading.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  };
  if (signals.wait(is_loading) != 0) {
    log::info("serve", "ended by a signal while loading");
    std::_Exit(EXIT_SUCCESS);  // nothing was accepted, and loading cannot be broken off
  }
  return loading.get();
}

}  // namespace

int run_serve(const std::vector<std::string>& args, const std::vector<EnvVar>& env) {
  return serve(load_config(args, env),
               [](const EngineConfig& config, const LoadProgress& progress) {
                 return headwater::make_engine(config, progress);
               });
}

int serve(const LoadedConfig& loaded, const EngineMaker& make_engine) {
  const ServerConfig& config = loaded.config.server;
  log::set_level(config.log_level);
  print_config(loaded);

  ShutdownSignals signals;  // before any thread
  Lifecycle lifecycle;
  HttpMetrics metrics;
  std::unique_ptr<Engine> engine;  // outlives the front ends
  api::Service service(lifecycle, config);
  http::Listener listener({service, metrics});
  std::optional<GrpcServer> grpc;
  if (config.grpc_port != 0) grpc.emplace(service);

  const auto load_start = Clock::now();
  engine = load(loaded.config.engine, make_engine, signals);
  service.attach(*engine);
  if (grpc) grpc->set_serving(true);
  print_banner(*engine,
               authority(config.host, listener.port()),
               grpc ? authority(config.host, grpc->port()) : "off");
  const std::chrono::duration<double> load_time = Clock::now() - load_start;
  log::info("serve", "ready", {{"model", engine->model_info().id}, {"load_s", load_time.count()}});

  const int signal = signals.wait([&] { return engine->healthy(); });
  const bool failed = signal == 0;
  if (failed) {
    lifecycle.set_failed();
    log::error("serve", "the engine failed");
  } else {
    signals.release();
    lifecycle.set_draining();
    log::info("serve", "draining", {{"signal", signal}, {"timeout_s", config.drain_timeout}});
  }
  if (grpc) grpc->set_serving(false);
  const bool complete = engine->drain(std::chrono::seconds(failed ? 0 : config.drain_timeout));
  listener.stop(kWriteOutGrace);
  if (grpc) grpc->shutdown(kWriteOutGrace);
  log::info("serve", "stopped", {{"all_requests_finished", complete}});
  return failed ? 1 : 0;
}

}  // namespace headwater::cli

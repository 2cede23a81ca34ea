#include "server/cli/load_progress.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>

namespace headwater::cli {
namespace {

constexpr int kBarWidth = 40;

class Bar {
 public:
  void show(const std::string& stage, int64_t done, int64_t total) {
    const int filled =
        total <= 0 ? kBarWidth
                   : static_cast<int>(std::clamp<int64_t>(done, 0, total) * kBarWidth / total);
    if (stage == stage_ && filled == filled_) return;
    if (stage != stage_) start(stage);
    filled_ = filled;
    const std::string rate = stage == "weights" ? bytes_so_far(done) : "";
    if (is_tty_) {
      const std::string bar(static_cast<size_t>(filled), '#');
      std::fprintf(stderr,
                   "\r\033[K%-20s [%-*s] %3d%% %s",
                   stage.c_str(),
                   kBarWidth,
                   bar.c_str(),
                   filled * 100 / kBarWidth,
                   rate.c_str());
    } else if (done >= total && !rate.empty()) {
      std::fprintf(stderr, "%s: %s\n", stage.c_str(), rate.c_str());
    }
  }
  ~Bar() {
    if (is_tty_ && !stage_.empty()) std::fputc('\n', stderr);
  }

 private:
  using Clock = std::chrono::steady_clock;

  void start(const std::string& stage) {
    if (!is_tty_) {
      std::fprintf(stderr, "%s ...\n", stage.c_str());
    } else if (!stage_.empty()) {
      std::fputc('\n', stderr);
    }
    stage_ = stage;
    begin_ = Clock::now();
  }
  std::string bytes_so_far(int64_t bytes) const {
    const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
    char text[64];
    std::snprintf(text,
                  sizeof(text),
                  "%.2f GB in %.1f s, %.1f GB/s",
                  static_cast<double>(bytes) / 1e9,
                  seconds,
                  static_cast<double>(bytes) / 1e9 / std::max(seconds, 1e-3));
    return text;
  }

  const bool is_tty_ = isatty(STDERR_FILENO) == 1;
  std::string stage_;
  Clock::time_point begin_;
  int filled_ = -1;
};

}  // namespace

LoadProgress make_load_progress() {
  return [bar = std::make_shared<Bar>()](const std::string& stage, int64_t done, int64_t total) {
    bar->show(stage, done, total);
  };
}

}  // namespace headwater::cli

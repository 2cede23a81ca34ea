#include "server/cli/load_progress.h"

#include <unistd.h>

#include <algorithm>
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
    if (!is_tty_) {
      if (stage != stage_) std::fprintf(stderr, "%s ...\n", stage.c_str());
    } else {
      if (stage != stage_ && !stage_.empty()) std::fputc('\n', stderr);
      const std::string bar(static_cast<size_t>(filled), '#');
      std::fprintf(stderr,
                   "\r\033[K%-20s [%-*s] %3d%%",
                   stage.c_str(),
                   kBarWidth,
                   bar.c_str(),
                   filled * 100 / kBarWidth);
    }
    stage_ = stage;
    filled_ = filled;
  }
  ~Bar() {
    if (is_tty_ && !stage_.empty()) std::fputc('\n', stderr);
  }

 private:
  const bool is_tty_ = isatty(STDERR_FILENO) == 1;
  std::string stage_;
  int filled_ = -1;
};

}  // namespace

LoadProgress make_load_progress() {
  return [bar = std::make_shared<Bar>()](const std::string& stage, int64_t done, int64_t total) {
    bar->show(stage, done, total);
  };
}

}  // namespace headwater::cli

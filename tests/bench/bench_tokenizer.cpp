// bench_tokenizer MODEL... : how fast a model's tokenizer encodes on one core, in MB/s of text:
// prose, code, text of several scripts, and a megabyte without a space. One JSON line per model and
// text, the median of five runs with the fastest and the slowest.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "engine/model/text_files.h"
#include "engine/text/tokenizer.h"

namespace headwater {
namespace {

constexpr size_t kBytes = 10 << 20;

std::string repeated(const std::vector<std::string>& parts, size_t bytes) {
  std::mt19937 random(1);
  std::string text;
  while (text.size() < bytes) text += parts[random() % parts.size()];
  return text;
}

// Words by a rank-frequency law, so that caches and branch predictors see what a text shows them.
std::string prose() {
  std::mt19937 random(2);
  std::vector<std::string> words;
  for (int i = 0; i < 20000; ++i) {
    std::string word;
    for (size_t n = 1 + random() % 9; n > 0; --n) {
      word += "etaoinshrdlucmfwygpbvk"[std::min<size_t>(random() % 22, random() % 22)];
    }
    words.push_back(word);
  }
  std::string text;
  while (text.size() < kBytes) {
    const double u = static_cast<double>(random()) / 4294967296.0;
    const auto rank = static_cast<size_t>(20000.0 * u * u * u);
    text += words[rank];
    text += random() % 12 == 0 ? ". " : random() % 200 == 0 ? "\n\n" : " ";
  }
  return text;
}

void measure(const char* model,
             const char* name,
             const Tokenizer& tokenizer,
             const std::string& text) {
  std::vector<double> seconds;
  size_t num_ids = 0;
  for (int run = 0; run < 5; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    num_ids = tokenizer.encode(text, false, true).size();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::ranges::sort(seconds);
  const double megabytes = static_cast<double>(text.size()) * 1e-6;
  std::printf(
      "{\"model\": \"%s\", \"text\": \"%s\", \"bytes\": %zu, \"ids\": %zu, \"mb_per_s\": %.2f, "
      "\"slowest\": %.2f, \"fastest\": %.2f}\n",
      model,
      name,
      text.size(),
      num_ids,
      megabytes / seconds[2],
      megabytes / seconds[4],
      megabytes / seconds[0]);
  std::fflush(stdout);
}

}  // namespace
}  // namespace headwater

int main(int argc, char** argv) {
  using namespace headwater;
  const std::vector<std::pair<const char*, std::string>> texts = {
      {"prose", prose()},
      {"code",
       repeated({"for (int i = 0; i < n; ++i) {\n    sum += values[i] * 0x1F;\n}\n",
                 "def handler(request, *args):\n\treturn {'status': 200, 'body': None}\n\n",
                 "if (x != nullptr && x->size() > 1024) { return std::move(x); }  // done\n"},
                kBytes)},
      {"scripts",
       repeated({"\u4F60\u597D\uFF0C\u4E16\u754C\u3002",
                 "\u043F\u0440\u0438\u0432\u0435\u0442 ",
                 "\u0645\u0631\u062D\u0628\u0627 ",
                 "\u3053\u3093\u306B\u3061\u306F ",
                 "\U0001F468\u200D\U0001F469\u200D\U0001F467 ",
                 "caf\u00E9 na\u00EFve "},
                kBytes)},
      {"no spaces", std::string(1 << 20, 'a')},
  };
  for (int i = 1; i < argc; ++i) {
    const auto tokenizer = make_tokenizer(read_vocabulary(argv[i]));
    for (const auto& [name, text] : texts) measure(argv[i], name, *tokenizer, text);
  }
  return argc > 1 ? 0 : 2;
}

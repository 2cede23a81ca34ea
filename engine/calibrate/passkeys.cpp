#include "engine/calibrate/passkeys.h"

#include <algorithm>
#include <array>
#include <random>
#include <string>
#include <string_view>

#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr std::string_view kAlphabet[] = {
    "alpha",  "bravo", "charlie", "delta",  "echo",     "foxtrot", "golf",   "hotel",  "india",
    "juliet", "kilo",  "lima",    "mike",   "november", "oscar",   "papa",   "quebec", "romeo",
    "sierra", "tango", "uniform", "victor", "whiskey",  "xray",    "yankee", "zulu"};
constexpr std::string_view kOrdinals[] = {"first",
                                          "second",
                                          "third",
                                          "fourth",
                                          "fifth",
                                          "sixth",
                                          "seventh",
                                          "eighth",
                                          "ninth",
                                          "tenth",
                                          "eleventh",
                                          "twelfth"};
constexpr std::string_view kAdjectives[] = {
    "quiet", "narrow", "wooden", "early", "distant", "heavy", "yellow", "careful", "empty", "old"};
constexpr std::string_view kNouns[] = {"river",
                                       "teacher",
                                       "lantern",
                                       "bridge",
                                       "garden",
                                       "sailor",
                                       "market",
                                       "window",
                                       "painter",
                                       "valley",
                                       "doctor",
                                       "wagon",
                                       "harbour",
                                       "letter",
                                       "farmer",
                                       "tower"};
constexpr std::string_view kVerbs[] = {
    "crossed", "remembered", "followed", "painted", "carried", "noticed", "repaired", "visited"};
constexpr std::string_view kPlaces[] = {"before the rain",
                                        "in the morning",
                                        "near the old mill",
                                        "without a word",
                                        "behind the hill",
                                        "after the long winter"};
constexpr int32_t kLeastWords = 4;
constexpr std::string_view kOpening =
    "Passkeys are hidden in the following text. They are asked for at its end.\n";
constexpr std::string_view kQuestion = "\nQuestion: What are the passkeys?\nAnswer:\n";

// Bounded draws that are the same on every machine (std::uniform_int_distribution is not).
class Draw {
 public:
  explicit Draw(uint64_t seed) : generator_(seed) {}
  size_t below(size_t bound) { return static_cast<size_t>(generator_() % bound); }
  template <typename Words>
  std::string_view from(const Words& words) {
    return words[below(std::size(words))];
  }

 private:
  std::mt19937_64 generator_;
};

std::string sentence(Draw& draw) {
  std::string text = "The ";
  for (const std::string_view part : {draw.from(kAdjectives),
                                      draw.from(kNouns),
                                      draw.from(kVerbs),
                                      std::string_view("the"),
                                      draw.from(kNouns),
                                      draw.from(kPlaces)})
    text.append(part).append(" ");
  text.back() = '.';
  return text + " ";
}

std::string label(size_t idx) { return "The " + std::string(kOrdinals[idx]) + " passkey is:"; }

std::string passkey(Draw& draw, int32_t words) {
  std::string text;
  for (int32_t i = 0; i < words; ++i) text.append(" ").append(draw.from(kAlphabet));
  return text;
}

using Tokens = std::vector<int32_t>;

void append(Tokens& to, const Tokens& from) { to.insert(to.end(), from.begin(), from.end()); }

}  // namespace

CalibrationSample make_passkeys(const Tokenizer& tokenizer, const PasskeyOptions& options) {
  const auto encode = [&](std::string_view text) { return tokenizer.encode(text, false, false); };
  Draw draw(options.seed);
  const Tokens opening = encode(kOpening), question = encode(kQuestion);
  const auto per_word = static_cast<double>(encode(passkey(draw, 100)).size()) / 100;
  const auto per_label = static_cast<double>(encode(label(6) + ".\n").size());
  const double room = (options.length - static_cast<double>(opening.size() + question.size())) / 2;

  // Fewer words first, then fewer passkeys: each is stated once and answered once.
  int32_t count = std::min<int32_t>(options.num_passkeys, std::size(kOrdinals));
  const auto words_that_fit = [&] {
    return static_cast<int32_t>((room / (2 * std::max(count, 1)) - per_label) / per_word);
  };
  while (count > 1 && words_that_fit() < std::min(kLeastWords, options.words)) --count;
  const int32_t words = std::min(options.words, words_that_fit());
  if (count < 1 || words < std::min(kLeastWords, options.words) || words < 1)
    throw ConfigError("a text of " + std::to_string(options.length) +
                      " tokens has no room for a passkey; use longer ones");

  std::vector<std::string> keys;
  Tokens answers;
  std::vector<int32_t> answer_rows;  // counted from the first answer
  for (int32_t i = 0; i < count; ++i) {
    keys.push_back(passkey(draw, words));
    append(answers, encode(label(static_cast<size_t>(i))));
    const Tokens key = encode(keys.back());
    for (size_t k = 0; k < key.size(); ++k)
      answer_rows.push_back(static_cast<int32_t>(answers.size() + k) - 1);
    append(answers, key);
    append(answers, encode(".\n"));
  }

  // The haystack, with the passkeys at even depths from 5 to 95 % of it, in random order.
  std::vector<size_t> order(keys.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw.below(i)]);
  std::vector<Tokens> needles;
  size_t fixed = 1 + opening.size() + question.size() + answers.size();  // one for BOS
  for (const size_t idx : order) {
    needles.push_back(encode(label(idx) + keys[idx] + ". "));
    fixed += needles.back().size();
  }
  const size_t haystack =
      static_cast<size_t>(options.length) - std::min(fixed, static_cast<size_t>(options.length));

  CalibrationSample sample;
  if (tokenizer.adds_bos() && tokenizer.bos() >= 0) sample.tokens.push_back(tokenizer.bos());
  append(sample.tokens, opening);
  size_t filled = 0, placed = 0;
  for (;;) {
    while (placed < needles.size() &&
           static_cast<double>(filled) >=
               static_cast<double>(haystack) *
                   (0.05 + 0.9 * static_cast<double>(placed) / static_cast<double>(needles.size())))
      append(sample.tokens, needles[placed++]);
    const Tokens more = encode(sentence(draw));
    if (filled + more.size() > haystack) break;
    append(sample.tokens, more);
    filled += more.size();
  }
  while (placed < needles.size()) append(sample.tokens, needles[placed++]);
  append(sample.tokens, question);
  for (const int32_t row : answer_rows)
    sample.rows.push_back(row + static_cast<int32_t>(sample.tokens.size()));
  append(sample.tokens, answers);
  return sample;
}

}  // namespace headwater

#include "engine/calibrate/retrieval_prompts.h"

#include <algorithm>
#include <array>
#include <random>
#include <set>

#include "engine/calibrate/razor_scores.h"
#include "kernels/base/check.h"

namespace headwater {
namespace {

// Draws that are the same everywhere, which the standard distributions are not.
class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}
  int32_t below(int32_t bound) {
    return static_cast<int32_t>(random_() % static_cast<uint64_t>(bound));
  }
  template <typename List>
  const auto& of(const List& list) {
    return list[static_cast<size_t>(below(static_cast<int32_t>(std::size(list))))];
  }
  std::string digits(int32_t count) {
    std::string text(1, static_cast<char>('1' + below(9)));
    while (static_cast<int32_t>(text.size()) < count) text += static_cast<char>('0' + below(10));
    return text;
  }
  std::string letters(int32_t count, char first) {
    std::string text;
    for (int32_t i = 0; i < count; ++i) text += static_cast<char>(first + below(26));
    return text;
  }
  // A word that no text contains: two or three syllables.
  std::string name() {
    static constexpr std::array kOnsets = {"b", "br", "d", "dr", "f", "fl", "g",  "gl",
                                           "k", "kr", "l", "m",  "n", "p",  "pl", "r",
                                           "s", "st", "t", "tr", "v", "w",  "z"};
    static constexpr std::array kVowels = {"a", "e", "i", "o", "u", "ai", "ea", "ou", "oo"};
    static constexpr std::array kCodas = {"", "l", "n", "r", "s", "st", "ck", "nd", "m"};
    std::string word;
    for (int32_t i = 2 + below(2); i > 0; --i) word = word + of(kOnsets) + of(kVowels) + of(kCodas);
    return word;
  }
  std::string sentence() {
    static constexpr std::array kNouns = {
        "river",   "window", "teacher", "engine",   "garden",    "letter", "bridge",
        "market",  "doctor", "winter",  "mountain", "kitchen",   "farmer", "ship",
        "road",    "forest", "story",   "harbour",  "neighbour", "clock",  "painter",
        "village", "lamp",   "horse",   "library",  "train",     "table"};
    static constexpr std::array kVerbs = {"crossed",
                                          "watched",
                                          "repaired",
                                          "described",
                                          "followed",
                                          "carried",
                                          "opened",
                                          "painted",
                                          "remembered",
                                          "visited",
                                          "measured",
                                          "forgot",
                                          "found",
                                          "passed",
                                          "left"};
    static constexpr std::array kAdjectives = {"old",
                                               "quiet",
                                               "narrow",
                                               "bright",
                                               "heavy",
                                               "green",
                                               "distant",
                                               "broken",
                                               "early",
                                               "small",
                                               "warm",
                                               "empty",
                                               "careful",
                                               "tall"};
    static constexpr std::array kEnds = {"before the rain",
                                         "in the evening",
                                         "near the station",
                                         "without a word",
                                         "after the meeting",
                                         "on the other side",
                                         "for the second time",
                                         "since last year"};
    const auto thing = [&] { return std::string(of(kAdjectives)) + " " + of(kNouns); };
    switch (below(4)) {
      case 0:
        return "The " + thing() + " " + of(kVerbs) + " the " + of(kNouns) + " " + of(kEnds) + ".";
      case 1:
        return "There are " + std::to_string(10 + below(90)) + " of them beside the " + thing() +
               ".";
      case 2:
        return "A " + thing() + " is not as " + of(kAdjectives) + " as the " + of(kNouns) + ".";
      default:
        return "When the " + std::string(of(kNouns)) + " " + of(kVerbs) + " it, everyone " +
               of(kVerbs) + " the " + thing() + ".";
    }
  }
  uint64_t bits() { return random_(); }

 private:
  std::mt19937_64 random_;
};

// A question about a text: sentences that carry the answer, in order, among others.
struct Question {
  std::vector<std::string> needles;
  std::string text;
  std::string answer;
};

std::string magic(const std::string& key, const std::string& value) {
  return "One of the special magic numbers for " + key + " is: " + value + ".";
}

Question one_needle(Draw& draw) {
  const std::string key = draw.name() + "-" + draw.name();
  const std::string value = draw.digits(7);
  return {{magic(key, value)},
          "What is the special magic number for " + key + " mentioned in the provided text?",
          value};
}

Question several_values(Draw& draw) {
  const std::string key = draw.name() + "-" + draw.name();
  Question question{{}, "What are all the special magic numbers for " + key + "?", ""};
  for (int32_t i = 3 + draw.below(2); i > 0; --i) {
    const std::string value = draw.digits(7);
    question.needles.push_back(magic(key, value));
    question.answer += (question.answer.empty() ? "" : ", ") + value;
  }
  return question;
}

Question table_row(Draw& draw) {
  const std::string key = draw.name() + "_" + draw.name();
  const std::string value = draw.letters(2, 'A') + "-" + draw.digits(4);
  return {{key + "\t" + value}, "What is the value of " + key + "?", value};
}

Question record(Draw& draw) {
  const std::string key = draw.name() + "-" + draw.name();
  const std::string value = draw.letters(24, 'a');
  return {{"Record " + key + ": " + value + "."}, "Repeat record " + key + ".", value};
}

std::string plain(Draw& draw) { return draw.sentence(); }
// Every second sentence could answer a question like the one asked.
std::string other_number(Draw& draw) {
  return draw.below(2) == 0 ? draw.sentence()
                            : magic(draw.name() + "-" + draw.name(), draw.digits(7));
}
std::string other_row(Draw& draw) { return table_row(draw).needles[0]; }
std::string other_record(Draw& draw) {
  return draw.below(4) == 0 ? record(draw).needles[0] : draw.sentence();
}

struct Task {
  std::string_view name;
  Question (*ask)(Draw&);
  std::string (*filler)(Draw&);
  std::string_view separator;
};

constexpr Task kTasks[] = {
    {"single", one_needle, plain, " "},
    {"multi_key", one_needle, other_number, " "},
    {"multi_value", several_values, other_number, " "},
    {"key_value", table_row, other_row, "\n"},
    {"copy_record", record, other_record, " "},
};
constexpr std::string_view kCopyBlock = "copy_block";
constexpr int32_t kCopied = 32;  // tokens of a block that are asked for
constexpr int32_t kLeadIn = 16;  // and those before them that say where the copy is

std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::string& text) {
  return tokenizer.encode(text, true, false);
}

RetrievalPrompt ask(const Tokenizer& tokenizer, const Task& task, int32_t num_tokens, Draw& draw) {
  const Question question = task.ask(draw);
  const std::string tail = "\nQuestion: " + question.text + "\nAnswer:";
  const auto length = [&](const std::string& text) {
    return static_cast<int32_t>(tokenizer.encode(text, false, false).size());
  };
  int32_t room = num_tokens - length(tail) - 1;
  for (const std::string& needle : question.needles) room -= length(needle) + 1;
  std::vector<std::string> sentences;
  while (true) {
    std::string sentence = task.filler(draw);
    room -= length(sentence) + 1;
    if (room < 0) break;
    sentences.push_back(std::move(sentence));
  }
  // Where the needles go: any places, in order.
  std::vector<size_t> places;
  for (size_t i = 0; i < question.needles.size(); ++i)
    places.push_back(draw.bits() % (sentences.size() + 1));
  std::ranges::sort(places);
  std::string text;
  const auto add = [&](const std::string& sentence) {
    if (!text.empty()) text += task.separator;
    text += sentence;
  };
  size_t needle = 0;
  for (size_t i = 0; i <= sentences.size(); ++i) {
    for (; needle < places.size() && places[needle] == i; ++needle) add(question.needles[needle]);
    if (i < sentences.size()) add(sentences[i]);
  }
  RetrievalPrompt prompt;
  prompt.task = task.name;
  prompt.tokens = encode(tokenizer, text + tail);
  prompt.expected = question.answer;
  return prompt;
}

RetrievalPrompt copy_block(const Tokenizer& tokenizer, int32_t num_tokens, Draw& draw) {
  const std::vector<int32_t> ids = ordinary_tokens(tokenizer);
  const int32_t block = num_tokens - kLeadIn - 1;
  RetrievalPrompt prompt;
  prompt.task = kCopyBlock;
  prompt.tokens =
      repeated_block(ids, tokenizer.adds_bos() ? tokenizer.bos() : -1, block, 1, draw.bits());
  const size_t first = prompt.tokens.size() - static_cast<size_t>(block);
  const size_t from = first + draw.bits() % static_cast<size_t>(block - kLeadIn - kCopied);
  const auto begin = prompt.tokens.begin() + static_cast<std::ptrdiff_t>(from);
  const std::vector<int32_t> lead(begin, begin + kLeadIn);
  prompt.answer.assign(begin + kLeadIn, begin + kLeadIn + kCopied);
  prompt.tokens.insert(prompt.tokens.end(), lead.begin(), lead.end());
  return prompt;
}

}  // namespace

std::vector<std::string> retrieval_tasks() {
  std::vector<std::string> names;
  for (const Task& task : kTasks) names.emplace_back(task.name);
  names.emplace_back(kCopyBlock);
  return names;
}

RetrievalPrompt make_retrieval_prompt(const Tokenizer& tokenizer,
                                      std::string_view name,
                                      int32_t num_tokens,
                                      uint64_t seed) {
  Draw draw(seed);
  if (name == kCopyBlock) return copy_block(tokenizer, num_tokens, draw);
  const Task* task = std::ranges::find(kTasks, name, &Task::name);
  HW_CHECK(task != std::end(kTasks), "a task of retrieval_tasks()", std::string(name));
  RetrievalPrompt prompt = ask(tokenizer, *task, num_tokens, draw);
  // Joined text may split into more tokens than its parts did: ask for that much less.
  for (auto over = static_cast<int32_t>(prompt.tokens.size()) - num_tokens, less = over; over > 0;
       over = static_cast<int32_t>(prompt.tokens.size()) - num_tokens, less += over) {
    draw = Draw(seed);
    prompt = ask(tokenizer, *task, num_tokens - less, draw);
  }
  return prompt;
}

}  // namespace headwater

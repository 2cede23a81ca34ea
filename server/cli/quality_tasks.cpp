#include "server/cli/quality_tasks.h"

#include <algorithm>
#include <iterator>
#include <random>
#include <set>

namespace headwater::cli {
namespace {

using Random = std::mt19937_64;

constexpr const char* kAdjectives[] = {
    "amber", "bitter", "brisk",  "calm",  "clever", "cold",   "crimson", "dusty",
    "eager", "faint",  "gentle", "green", "hollow", "humble", "idle",    "jolly",
    "keen",  "lively", "loud",   "mild",  "narrow", "noble",  "odd",     "pale",
    "plain", "proud",  "quiet",  "rapid", "rough",  "silent", "tall",    "warm"};
constexpr const char* kNouns[] = {
    "anchor",  "badger", "barrel", "basket", "beacon",  "bridge", "candle", "carpet",
    "castle",  "cedar",  "cradle", "engine", "falcon",  "ferry",  "garden", "hammer",
    "harbor",  "island", "kettle", "ladder", "lantern", "market", "meadow", "mirror",
    "orchard", "otter",  "pebble", "pillow", "quarry",  "ribbon", "saddle", "temple"};
constexpr const char* kVerbs[] = {"carries",
                                  "follows",
                                  "guards",
                                  "hides",
                                  "leaves",
                                  "measures",
                                  "moves",
                                  "notices",
                                  "paints",
                                  "passes",
                                  "repairs",
                                  "watches"};
constexpr const char* kPlaces[] = {"at the river",
                                   "behind the mill",
                                   "by the old wall",
                                   "in the valley",
                                   "near the station",
                                   "on the hill",
                                   "under the roof",
                                   "beside the road"};

template <size_t N>
std::string pick(const char* const (&words)[N], Random& random) {
  return words[random() % N];
}

// Every draw is a statement of its own: the order of evaluation within one is the compiler's.
std::string sentence(Random& random) {
  const uint64_t kind = random() % 3;
  if (kind == 0) {
    std::string text = "There are ";
    text += std::to_string(random() % 90 + 10);
    text += " of them ";
    text += pick(kPlaces, random);
    text += ", and one is ";
    text += pick(kAdjectives, random);
    return text + ".";
  }
  std::string text = "The ";
  text += pick(kAdjectives, random);
  text += " ";
  text += pick(kNouns, random);
  text += " ";
  text += kind == 1 ? pick(kVerbs, random) : "is as " + pick(kAdjectives, random) + " as";
  text += " the ";
  text += pick(kNouns, random);
  if (kind == 1) {
    text += " ";
    text += pick(kPlaces, random);
  }
  return text + ".";
}

std::string digits(Random& random) { return std::to_string(random() % 9'000'000 + 1'000'000); }

// Names that do not repeat within one prompt.
class Names {
 public:
  explicit Names(Random& random) : random_(random) {}
  std::string key() {
    return unique([&] {
      std::string name = pick(kAdjectives, random_) + "-";
      return name += pick(kNouns, random_);
    });
  }
  std::string letters(size_t length, char first) {
    return unique([&] {
      std::string word(length, ' ');
      for (char& c : word) c = static_cast<char>(first + random_() % 26);
      return word;
    });
  }

 private:
  template <typename Make>
  std::string unique(Make make) {
    for (int tries = 0;; ++tries) {
      std::string name = make();
      if (tries > 100) name += std::to_string(random_() % 1000);
      if (used_.insert(name).second) return name;
    }
  }

  Random& random_;  // not owned
  std::set<std::string> used_;
};

int64_t size_of(const std::string& text) { return static_cast<int64_t>(text.size()); }

// Sentences up to so many characters in all, with the facts spread over them: the first at depth,
// the rest at equal steps from there to the end, in order.
std::string spread(const std::vector<std::string>& facts,
                   int64_t chars,
                   double depth,
                   Random& random) {
  int64_t filler = chars;
  for (const std::string& fact : facts) filler -= size_of(fact) + 1;
  filler = std::max<int64_t>(filler, 0);
  const double count = static_cast<double>(facts.size());
  std::string text;
  int64_t used = 0;
  size_t next = 0;
  while (next < facts.size() || used < filler) {
    const double at = depth + (1 - depth) * static_cast<double>(next) / count;
    const bool due =
        next < facts.size() &&
        (used >= filler || static_cast<double>(used) >= at * static_cast<double>(filler));
    const std::string line = due ? facts[next++] : sentence(random);
    if (!due) used += size_of(line) + 1;
    text += line + " ";
  }
  if (!text.empty()) text.pop_back();
  return text;
}

// Facts about other keys everywhere, and these ones at their depth.
std::string among(const std::vector<std::string>& facts,
                  const std::vector<std::string>& others,
                  int64_t chars,
                  double depth,
                  Random& random) {
  std::vector<std::string> all = others;
  const auto begin = static_cast<size_t>(depth * static_cast<double>(others.size()));
  for (size_t i = facts.size(); i-- > 0;) {
    const size_t room = others.size() - begin;
    all.insert(all.begin() + static_cast<std::ptrdiff_t>(begin + room * i / facts.size()),
               facts[i]);
  }
  return spread(all, chars, 0, random);
}

std::string number_fact(const std::string& key, const std::string& value) {
  return "One of the special magic numbers for " + key + " is: " + value + ".";
}

std::vector<std::string> other_numbers(int64_t chars, Names& names, Random& random) {
  std::vector<std::string> facts;
  for (int64_t i = 0; i < std::max<int64_t>(3, chars / 400); ++i) {
    const std::string key = names.key();
    facts.push_back(number_fact(key, digits(random)));
  }
  return facts;
}

std::string number_question(const std::string& key) {
  return "\nQuestion: What is the special magic number for " + key +
         " mentioned in the provided text?\nAnswer:";
}

QualityPrompt needle(int64_t chars, double depth, uint64_t seed) {
  Random random(seed);
  Names names(random);
  const std::string key = names.key(), value = digits(random);
  return {spread({number_fact(key, value)}, chars, depth, random), number_question(key), {value}};
}

QualityPrompt multikey(int64_t chars, double depth, uint64_t seed) {
  Random random(seed);
  Names names(random);
  const std::string key = names.key(), value = digits(random);
  const auto others = other_numbers(chars, names, random);
  return {among({number_fact(key, value)}, others, chars, depth, random),
          number_question(key),
          {value}};
}

QualityPrompt multivalue(int64_t chars, double depth, uint64_t seed) {
  Random random(seed);
  Names names(random);
  const std::string key = names.key();
  const std::vector<std::string> values = {digits(random), digits(random), digits(random)};
  std::vector<std::string> facts;
  for (const std::string& value : values) facts.push_back(number_fact(key, value));
  return {among(facts, other_numbers(chars, names, random), chars, depth, random),
          "\nQuestion: What are all the special magic numbers for " + key + "?\nAnswer:",
          values};
}

QualityPrompt multiturn(int64_t chars, double depth, uint64_t seed) {
  Random random(seed);
  Names names(random);
  const std::string first = names.key(), second = names.key();
  const std::string first_value = digits(random), second_value = digits(random);
  const auto others = other_numbers(chars, names, random);
  return {among({number_fact(second, second_value), number_fact(first, first_value)},
                others,
                chars,
                depth,
                random),
          number_question(first) + " " + first_value + number_question(second),
          {second_value}};
}

QualityPrompt variables(int64_t chars, double depth, uint64_t seed) {
  Random random(seed);
  Names names(random);
  constexpr int kHops = 3;
  std::vector<std::string> chain, decoys;
  std::string name = names.letters(5, 'A');
  const std::string value = std::to_string(random() % 90'000 + 10'000);
  chain.push_back("VAR " + name + " = " + value + ".");
  for (int hop = 1; hop < kHops; ++hop) {
    const std::string next = names.letters(5, 'A');
    chain.push_back("VAR " + next + " = VAR " + name + ".");
    name = next;
  }
  for (int64_t i = 0; i < std::max<int64_t>(2, chars / 1500); ++i) {
    std::string other = names.letters(5, 'A');
    decoys.push_back("VAR " + other + " = " + std::to_string(random() % 90'000 + 10'000) + ".");
    const std::string next = names.letters(5, 'A');
    decoys.push_back("VAR " + next + " = VAR " + other + ".");
  }
  return {among(chain, decoys, chars, depth, random),
          "\nQuestion: What is the value of VAR " + name + "?\nAnswer:",
          {value}};
}

QualityPrompt copy(int64_t chars, double depth, uint64_t seed) {
  Random random(seed);
  Names names(random);
  const auto record = [&](const std::string& key, const std::string& text) {
    return "Record " + key + ": " + text + ".";
  };
  const std::string key = names.key(), text = names.letters(16, 'a');
  std::vector<std::string> others;
  for (int64_t i = 0; i < std::max<int64_t>(3, chars / 400); ++i) {
    const std::string other = names.key();
    others.push_back(record(other, names.letters(16, 'a')));
  }
  return {among({record(key, text)}, others, chars, depth, random),
          "\nQuestion: Repeat record " + key + ".\nAnswer:",
          {text}};
}

// Three words come six times as often as the rest; they are everywhere, so depth has no meaning.
QualityPrompt words(int64_t chars, double /*depth*/, uint64_t seed) {
  Random random(seed);
  std::vector<std::string> bag(std::begin(kNouns), std::end(kNouns));
  for (size_t i = bag.size() - 1; i > 0; --i) std::swap(bag[i], bag[random() % (i + 1)]);
  const std::vector<std::string> frequent(bag.begin(), bag.begin() + 3);
  for (int i = 1; i < 6; ++i) bag.insert(bag.end(), frequent.begin(), frequent.end());
  std::string text = "Below is a list of words.";
  while (size_of(text) < chars) text += " " + bag[random() % bag.size()];
  return {text + ".",
          "\nQuestion: Which three words are the most common ones in the list?\nAnswer:",
          frequent};
}

constexpr QualityTask kTasks[] = {
    {"needle", "one number in a long text", needle},
    {"multikey", "the same among numbers of other keys", multikey},
    {"multivalue", "three numbers of one key", multivalue},
    {"variables", "a value through two assignments", variables},
    {"words", "the three most common words of a list", words},
    {"copy", "a string of random letters", copy},
    {"multiturn", "a second number, asked for after the first was answered", multiturn},
};

}  // namespace

std::span<const QualityTask> quality_tasks() { return kTasks; }

const QualityTask* find_quality_task(std::string_view name) {
  for (const QualityTask& task : kTasks)
    if (task.name == name) return &task;
  return nullptr;
}

std::string quality_task_names() {
  std::string names;
  for (const QualityTask& task : kTasks)
    names += (names.empty() ? "" : ", ") + std::string(task.name);
  return names;
}

double recall_of(const std::vector<std::string>& expected, std::string_view answer) {
  answer.remove_prefix(std::min(answer.find_first_not_of(" \n"), answer.size()));
  const std::string_view line = answer.substr(0, answer.find('\n'));
  const auto held = std::count_if(expected.begin(), expected.end(), [&](const std::string& text) {
    return line.find(text) != std::string_view::npos;
  });
  return static_cast<double>(held) / static_cast<double>(expected.size());
}

std::string filler_text(int64_t chars, uint64_t seed) {
  Random random(seed);
  return spread({}, chars, 0, random);
}

}  // namespace headwater::cli

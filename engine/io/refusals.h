// Refusals: why a model's files cannot be loaded. A server stops at the first reason; `inspect`
// collects them and reads on with what is there. The readers are the same code for both.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/status.h"

namespace headwater {

class Refusals {
 public:
  // The first reason is thrown as a LoadError.
  static Refusals thrown() { return Refusals(nullptr); }
  // Reasons are appended to the list, each once. Not owned.
  static Refusals collected(std::vector<std::string>& list) { return Refusals(&list); }

  bool collects() const { return list_ != nullptr; }
  void add(std::string sentence) {
    if (list_ == nullptr) throw LoadError(sentence);
    if (std::find(list_->begin(), list_->end(), sentence) == list_->end()) {
      list_->push_back(std::move(sentence));
    }
  }
  // Runs one step of reading; false: it was refused, and what it would have filled is not to be
  // relied on.
  template <typename Step>
  bool attempt(Step&& step) {
    if (list_ == nullptr) {
      step();
      return true;
    }
    try {
      step();
      return true;
    } catch (const LoadError& error) {
      add(error.what());
      return false;
    }
  }

 private:
  explicit Refusals(std::vector<std::string>* list) : list_(list) {}
  std::vector<std::string>* list_;
};

}  // namespace headwater

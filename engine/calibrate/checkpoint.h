// Checkpoint: what a calibration has found so far, kept in a file so that the same command goes on
// where it was stopped. Named lists of numbers under one key that says which calibration they are
// of. Thread: the caller's.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace headwater {

class Checkpoint {
 public:
  Checkpoint() = default;  // in memory only
  // Reads the file if it is there and of the same key. Otherwise starts empty; the file is written
  // over by the first save().
  Checkpoint(std::string path, std::string key);

  bool resumed() const { return resumed_; }
  // Empty if there is none.
  std::vector<double> get(const std::string& name) const;
  void set(const std::string& name, std::vector<double> values) {
    lists_[name] = std::move(values);
  }
  // Whole or not at all: written beside, then renamed. Throws std::runtime_error.
  void save() const;
  void remove() const;  // the file, if there is one

 private:
  std::string path_, key_;
  bool resumed_ = false;
  std::map<std::string, std::vector<double>> lists_;
};

}  // namespace headwater

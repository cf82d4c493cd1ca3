// Records of accepted steps, as many as come. Not a standard container: its code would be compiled for every
// instruction set and merged by the linker.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../problem.h"

namespace jkoflow::cpu {

class StepLog {
 public:
  explicit StepLog(int64_t record_bytes) : record_bytes_(record_bytes) {}
  StepLog(const StepLog&) = delete;
  StepLog& operator=(const StepLog&) = delete;
  ~StepLog();

  // Memory for one more record, until the next call; null if there is none, as for all after it.
  char* append();
  bool out_of_memory() const { return out_of_memory_; }
  RowFailure failure;  // of the rows whose steps are logged
  int64_t count() const { return count_; }
  int64_t bytes() const { return record_bytes_ * count_; }
  // Copies the records to `out`; `offset` is added to the places to which they refer.
  void write(char* out, int64_t offset) const;

 private:
  int64_t record_bytes_, count_ = 0, room_ = 0;
  char* records_ = nullptr;
  bool out_of_memory_ = false;
};

}  // namespace jkoflow::cpu

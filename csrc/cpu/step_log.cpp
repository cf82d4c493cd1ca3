#include "step_log.h"

#include <cstdlib>
#include <cstring>

namespace jkoflow::cpu {

StepLog::~StepLog() { std::free(records_); }

char* StepLog::append() {
  if (count_ == room_) {
    const int64_t room = room_ == 0 ? 256 : 2 * room_;
    void* larger = std::realloc(records_, static_cast<size_t>(room * record_bytes_));
    if (larger == nullptr) out_of_memory_ = true;
    if (out_of_memory_) return nullptr;
    records_ = static_cast<char*>(larger);
    room_ = room;
  }
  return records_ + record_bytes_ * count_++;
}

void StepLog::write(char* out, int64_t offset) const {
  if (count_ == 0) return;
  std::memcpy(out, records_, static_cast<size_t>(bytes()));
  for (int64_t i = 0; i < count_; ++i) {
    StepRecord* record = reinterpret_cast<StepRecord*>(out + i * record_bytes_);
    if (record->previous >= 0) record->previous += offset;
  }
}

}  // namespace jkoflow::cpu

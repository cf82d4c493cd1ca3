#include "step_log.h"

#include <cstdlib>
#include <cstring>

#include "sanitizers.h"

namespace jkoflow::cpu {

StepLog::~StepLog() { std::free(records_); }

char* StepLog::append() {
  if (out_of_memory_) return nullptr;  // even if there were some again: rows have lost records
  if (count_ == room_) {
    const int64_t room = room_ == 0 ? 256 : 2 * room_;
    void* larger = std::realloc(records_, static_cast<size_t>(room * record_bytes_));
    if (larger == nullptr) {
      out_of_memory_ = true;
      return nullptr;
    }
    records_ = static_cast<char*>(larger);
    room_ = room;
#ifdef JKOFLOW_ADDRESS_SANITIZER
    ASAN_POISON_MEMORY_REGION(records_ + bytes(), static_cast<size_t>(record_bytes_ * (room_ - count_)));
#endif
  }
  char* record = records_ + record_bytes_ * count_++;
#ifdef JKOFLOW_ADDRESS_SANITIZER
  ASAN_UNPOISON_MEMORY_REGION(record, static_cast<size_t>(record_bytes_));  // this record alone
#endif
  return record;
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

// Pieces of one block of memory. Under AddressSanitizer a guard lies behind each piece, so that an overrun into the
// next one is reported.
#pragma once

#include <cstddef>
#include <cstring>

#include "sanitizers.h"

#ifdef JKOFLOW_ADDRESS_SANITIZER
#include <atomic>

namespace jkoflow::cpu {
// For tests/native: the piece of every Arena that gets only half its size, if any, and how often one has.
inline std::atomic<int> shortened_piece{-1}, shortened_pieces{0};
}  // namespace jkoflow::cpu
#endif

namespace jkoflow::JKOFLOW_ISA {
namespace {

// Hands out aligned pieces of a block of memory; with a null block it only counts.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}

  template <class Real>
  Real* take(ptrdiff_t count) {
    char* piece = base_ == nullptr ? nullptr : base_ + used_;
    const size_t bytes = static_cast<size_t>(count) * sizeof(Real);
    const size_t room = (bytes + kAlignment - 1) / kAlignment * kAlignment + kGuard;
    used_ += room;
#ifdef JKOFLOW_ADDRESS_SANITIZER
    if (piece != nullptr) {
      const bool shortened = pieces_++ == cpu::shortened_piece && bytes > 0;
      const size_t granted = shortened ? bytes / 2 : bytes;
      cpu::shortened_pieces += shortened ? 1 : 0;
      ASAN_UNPOISON_MEMORY_REGION(piece, granted);
      ASAN_POISON_MEMORY_REGION(piece + granted, room - granted);
    }
#endif
    return reinterpret_cast<Real*>(piece);
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kAlignment = 64;
#ifdef JKOFLOW_ADDRESS_SANITIZER
  static constexpr size_t kGuard = 256;
  int pieces_ = 0;
#else
  static constexpr size_t kGuard = 0;
#endif
  char* base_;
  size_t used_ = 0;
};

// Zeroes pieces that were taken one after the other.
template <class Real>
void clear_pieces(Real* begin, ptrdiff_t count) {
#ifdef JKOFLOW_ADDRESS_SANITIZER
  char *at = reinterpret_cast<char*>(begin), *end = reinterpret_cast<char*>(begin + count);
  for (constexpr ptrdiff_t kBlock = 64; at < end; at += kBlock) {  // pieces start at whole blocks, guards anywhere
    char* guard = static_cast<char*>(__asan_region_is_poisoned(at, end - at < kBlock ? end - at : kBlock));
    std::memset(at, 0, guard != nullptr ? guard - at : end - at < kBlock ? end - at : kBlock);
  }
#else
  std::memset(begin, 0, sizeof(Real) * static_cast<size_t>(count));
#endif
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA

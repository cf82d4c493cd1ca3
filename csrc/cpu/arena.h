// Pieces of one block of memory. Under AddressSanitizer a guard lies behind each piece, so that an overrun into the
// next one is reported.
#pragma once

#include <cstddef>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#define JKOFLOW_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define JKOFLOW_ADDRESS_SANITIZER 1
#endif
#endif

#ifdef JKOFLOW_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
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
      ASAN_UNPOISON_MEMORY_REGION(piece, bytes);
      ASAN_POISON_MEMORY_REGION(piece + bytes, room - bytes);
    }
#endif
    return reinterpret_cast<Real*>(piece);
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kAlignment = 64;
#ifdef JKOFLOW_ADDRESS_SANITIZER
  static constexpr size_t kGuard = 256;
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
  for (Real* at = begin; at != begin + count; ++at) {
    if (__asan_address_is_poisoned(at) == 0) *at = 0;
  }
#else
  std::memset(begin, 0, sizeof(Real) * static_cast<size_t>(count));
#endif
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA

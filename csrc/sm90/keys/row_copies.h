// Gathering rows with cp.async, by all 128 threads of the producer: thread t copies the 16 bytes at
// column 8 * (t % 8) of every column tile, of rows t / 8 + 16 i.
#pragma once
#include "sm90/core/producer.h"

namespace fmh {

struct RowCopies {
  static constexpr int kRows = 4;

  u32 destination;  // inside a buffer: row and swizzled chunk of this thread
  int row, chunk;

  FMH_DEVICE RowCopies() {
    const int thread = threadIdx.x & (kGroupThreads - 1);
    chunk = thread & 7;
    row = thread >> 3;
    destination = row * 128 + ((chunk ^ (row & 7)) << 4);
  }

  // Column tiles [kFirst, kLast) of a block. Where `counts(i)` is false, zeros.
  template <int kFirst, int kLast, typename Counts, typename Copy>
  FMH_DEVICE void copy(u32 buffer, const u16* const (&source)[kRows], Counts counts,
                       Copy copy_16) const {
#pragma unroll
    for (int t = kFirst; t < kLast; t++) {
#pragma unroll
      for (int i = 0; i < kRows; i++) {
        copy_16(buffer + t * kTileBytes + i * 2048 + destination, source[i] + t * 64,
                counts(i) ? 16 : 0);
      }
    }
  }
};

}  // namespace fmh

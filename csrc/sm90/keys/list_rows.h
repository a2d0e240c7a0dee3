// Rows that a list of slots names, gathered with cp.async. Invalid entries may stand anywhere: they
// are written as zeros, and a bit for each entry tells the math groups which ones count.
#pragma once
#include "sm90/keys/list_blocks.h"
#include "sm90/keys/row_copies.h"

namespace fmh {

// This thread's four rows of a block: where they lie, null where the entry is invalid.
struct ListRows : RowCopies {
  FMH_DEVICE void load(const ListBlocks& at, int (&entry)[kRows]) const {
#pragma unroll
    for (int i = 0; i < kRows; i++) entry[i] = at.entry(row + 16 * i);
  }

  FMH_DEVICE void find(const MlaParams& p, const ListBlocks& block, const int (&entry)[kRows],
                       const u16* (&source)[kRows]) const {
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      source[i] = nullptr;
      if (block.valid(p, entry[i])) {
        source[i] = (const u16*)block.cache(p) + chunk * 8 + block.offset(p, entry[i]);
      }
    }
  }
};

struct ListRowKeys {
  static constexpr int kProducerRegisters = 72;
  static constexpr int kHeldTiles = 0;
  static constexpr bool kByThreads = true;
  FMH_DEVICE static constexpr int full_arrivals(int half) {
    return kGroupThreads + valid_arrivals(half);
  }
  FMH_DEVICE static void produce(char* smem, const Maps& maps, const MlaParams& p,
                                 const Tile& tile);
};

FMH_DEVICE void ListRowKeys::produce(char* smem, const Maps& maps, const MlaParams& p,
                                     const Tile& tile) {
  const ListRows rows{};
  ListBlocks next(smem, p, tile);
  if (!next.exists()) return;
  int entry[ListRows::kRows];
  ValidBits bits;
  rows.load(next, entry);
  bits.load(next);
  u32 parities = 3, parity_q = 1;  // of the two buffers, a bit each
  int odd = 0;
#pragma unroll 1
  for (;;) {
    const u16* source[ListRows::kRows];
    rows.find(p, next, entry, source);
    const u64 valid = bits.gather(next, p);
    const bool first = next.first();
    const int request = next.walk.request;
    next.advance(p, tile);
    // The next block's entries are on their way while this one waits for its buffer.
    if (next.exists()) {
      rows.load(next, entry);
      bits.load(next);
    }
    if (first) {
      odd = 0;
      if (threadIdx.x == 2 * kGroupThreads) {
        barrier_wait(kQEmpty, parity_q);
        load_q(maps.q, p, tile, request);
      }
      parity_q ^= 1;
    }
    const u32 buffer = kSharedBase + (odd ? kOffsetK1 : kOffsetK0), parity = (parities >> odd) & 1;
    const int left = odd ? kK1Left : kK0Left;
    const auto exists = [&](int i) { return source[i] != nullptr; };
    const auto copy_16 = [](u32 to, const u16* from, int n) { copy_16_or_zero(to, from, n); };
    barrier_wait(empty_barrier(left), parity);
    bits.publish(smem, odd, valid);
    rows.copy<0, kLeftTiles>(buffer, source, exists, copy_16);
    barrier_arrive_after_copies(full_barrier(left));
    barrier_wait(empty_barrier(left + 1), parity);
    rows.copy<kLeftTiles, kColumnTiles>(buffer, source, exists, copy_16);
    barrier_arrive_after_copies(full_barrier(left + 1));
    parities ^= 1u << odd;
    odd ^= 1;
    if (!next.exists()) break;
  }
}

}  // namespace fmh

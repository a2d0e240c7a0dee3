// Rows of pages of any size, gathered with cp.async.
#pragma once
#include "sm90/core/producer.h"
#include "sm90/keys/divisor.h"
#include "sm90/keys/row_copies.h"

namespace fmh {

// Rows past the length are written as zeros, not read.
struct PageRows : RowCopies {
  const u16* k;
  u64 policy;
  Divisor page_size;

  FMH_DEVICE PageRows(const MlaParams& p, const Tile& tile, EvictFirst evict)
      : policy(l2_policy(evict)), page_size(p.page_block_size) {
    k = (const u16*)p.k_cache + tile.kv_head * p.k_stride_head + chunk * 8;
  }

  FMH_DEVICE int token(int block, int i) const { return block * kBlockTokens + row + 16 * i; }

  // Page ids of this thread's rows of a block; rows past the length get none.
  FMH_DEVICE void load_pages(const int* table, int block, int length, int (&pages)[kRows]) const {
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      const int t = token(block, i);
      pages[i] = t < length ? table[page_size.quotient(t)] : 0;
    }
  }

  FMH_DEVICE void find_rows(const MlaParams& p, const int (&pages)[kRows], int block,
                            int length, const u16* (&source)[kRows]) const {
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      const int t = token(block, i);
      source[i] = k;
      if (t < length) {
        source[i] += pages[i] * p.k_stride_page + page_size.remainder(t) * p.k_stride_token;
      }
    }
  }

  template <int kFirst, int kLast>
  FMH_DEVICE void copy_half(const u16* const (&source)[kRows], int valid, u32 buffer, int half,
                            u32 parity) const {
    barrier_wait(empty_barrier(half), parity);
    copy<kFirst, kLast>(
        buffer, source, [&](int i) { return 16 * i < valid; },
        [&](u32 to, const u16* from, int bytes) { copy_16_or_zero(to, from, bytes, policy); });
    barrier_arrive_after_copies(full_barrier(half));
  }
};

struct PageRowKeys {
  static constexpr int kProducerRegisters = 56;
  static constexpr int kHeldTiles = 0;
  static constexpr bool kByThreads = true;
  FMH_DEVICE static constexpr int full_arrivals(int) { return kGroupThreads; }
  FMH_DEVICE static void produce(char* smem, const Maps& maps, const MlaParams& p,
                                 const Tile& tile);
};

FMH_DEVICE void PageRowKeys::produce(char* smem, const Maps& maps, const MlaParams& p,
                                     const Tile& tile) {
  constexpr u32 k0 = kSharedBase + kOffsetK0, k1 = kSharedBase + kOffsetK1;
  const ScheduleResult* range = shared_at<const ScheduleResult>(smem, kOffsetSchedule);
  const PageRows gather(p, tile, range->evict);
  u32 parities = 3, parity_q = 1;  // of the two buffers, a bit each
  FragmentWalk<false> walk(smem, p);
  while (walk.next(p, [](int) {})) {
    const int* table = p.block_table + walk.request * p.block_table_stride;
    int pages[PageRows::kRows];
    gather.load_pages(table, walk.begin, walk.length, pages);
    if (threadIdx.x == 2 * kGroupThreads) {
      barrier_wait(kQEmpty, parity_q);
      load_q(maps.q, p, tile, walk.request);
    }
    parity_q ^= 1;
#pragma unroll 1
    for (int j = walk.begin; j < walk.end; j++) {
      const u16* source[PageRows::kRows];
      gather.find_rows(p, pages, j, walk.length, source);
      // The next block's page ids are on their way while this block waits for its buffer.
      if (j + 1 < walk.end) gather.load_pages(table, j + 1, walk.length, pages);
      const int odd = (j - walk.begin) & 1, left = odd ? kK1Left : kK0Left;
      const u32 buffer = odd ? k1 : k0, parity = (parities >> odd) & 1;
      const int valid = walk.length - j * kBlockTokens - gather.row;
      gather.copy_half<0, kLeftTiles>(source, valid, buffer, left, parity);
      gather.copy_half<kLeftTiles, kColumnTiles>(source, valid, buffer, left + 1, parity);
      parities ^= 1u << odd;
    }
  }
}

}  // namespace fmh

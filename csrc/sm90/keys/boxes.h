// Pages of 64 times a power of two tokens, through tensor maps: a block is two boxes.
#pragma once
#include "sm90/core/producer.h"

namespace fmh {

// Where a block lies: page and first token inside it.
struct BlockPlace {
  int page, token;
};

// page_block_size is 64 << shift: a division here, inlined at every use, made a quarter of the
// producer's code.
struct PageTable {
  const int* row;
  int shift;

  FMH_DEVICE BlockPlace operator()(int block) const {
    return {row[block >> shift], (block & ((1 << shift) - 1)) * kBlockTokens};
  }
};

struct BlockCopies {
  const TensorMap *left, *right;
  int head_tile;
  bool hinted;
  u64 policy;

  FMH_DEVICE void load_left(u32 buffer, const BlockPlace& at, int half) const {
    barrier_arrive_expect(full_barrier(half), kLeftTiles * kTileBytes);
    load(buffer, left, at, head_tile, full_barrier(half));
  }
  FMH_DEVICE void load_right(u32 buffer, const BlockPlace& at, int half) const {
    barrier_arrive_expect(full_barrier(half), kRightTiles * kTileBytes);
    load(buffer + kLeftTiles * kTileBytes, right, at, head_tile + kLeftTiles, full_barrier(half));
  }
  // A policy that says "as usual" is not the same as none: 7 % slower at 128 heads, where other
  // tiles read what this one has prefetched.
  FMH_DEVICE void load(u32 to, const TensorMap* map, const BlockPlace& at, int tile,
                       u32 barrier) const {
    if (hinted) {
      tma_load(to, map, 0, at.token, tile, at.page, barrier, policy);
    } else {
      tma_load(to, map, 0, at.token, tile, at.page, barrier);
    }
  }
  // The tiles of a part share K through L2; each pulls its half.
  FMH_DEVICE void prefetch_share(const BlockPlace& at, bool take_right) const {
    if (take_right) {
      tma_prefetch(right, 0, at.token, head_tile + kLeftTiles, at.page);
    } else {
      tma_prefetch(left, 0, at.token, head_tile, at.page);
    }
  }
};

// The first pair of the fragment that follows, across the request's edge too.
FMH_DEVICE void prefetch_next_fragment(const MlaParams& p, const BlockCopies& copies,
                                       PageTable table, const FragmentWalk<false>& walk,
                                       bool take_right) {
#if FMH_BATCH_INVARIANT
  if (walk.end < walk.limit) {
    copies.prefetch_share(table(walk.end), take_right);
    if (walk.end + 1 < walk.limit) copies.prefetch_share(table(walk.end + 1), take_right);
    return;
  }
#endif
  if (walk.next_request >= walk.end_request || walk.next_length <= 0) return;
  table.row = p.block_table + walk.next_request * p.block_table_stride;
  copies.prefetch_share(table(0), take_right);
  const bool last = walk.next_request == walk.range->last_request;
  if (walk.next_length > kBlockTokens && !(last && walk.range->last_block < 2)) {
    copies.prefetch_share(table(1), take_right);
  }
}

struct BoxKeys {
  static constexpr int kProducerRegisters = FMH_BATCH_INVARIANT ? 40 : 24;  // chunks take more
  static constexpr int kHeldTiles = FMH_BATCH_INVARIANT ? 1 : 2;
  static constexpr bool kByThreads = false;
  FMH_DEVICE static constexpr int full_arrivals(int) { return 1; }
  FMH_DEVICE static void produce(char* smem, const Maps& maps, const MlaParams& p,
                                 const Tile& tile);
};

// One thread. The order K0 left, K0 right, K1 left, K1 right is the order of release.
FMH_DEVICE void BoxKeys::produce(char* smem, const Maps& maps, const MlaParams& p,
                                 const Tile& tile) {
  if (threadIdx.x != 2 * kGroupThreads) return;
  constexpr u32 k0 = kSharedBase + kOffsetK0, k1 = kSharedBase + kOffsetK1;
  const ScheduleResult* range = shared_at<const ScheduleResult>(smem, kOffsetSchedule);
  const bool prefetch = range->prefetch;
  const BlockCopies copies{maps.k_left, maps.k_right, tile.kv_head * p.kv_head_tiles,
                           range->evict != kEvictNone, l2_policy(range->evict)};
  const bool take_right = tile.index & 1;
  const int page_shift = 31 - __clz(p.page_block_size / kBlockTokens);
  u32 parity0 = 1, parity1 = 1, parity_q = 1;  // the first pass over the ring returns at once
  FragmentWalk<false> walk(smem, p);
  while (walk.next(p, [](int) {})) {
    PageTable table{p.block_table + walk.request * p.block_table_stride, page_shift};
    BlockPlace x0 = table(walk.begin), x1 = x0;
    if (walk.begin + 1 < walk.end) x1 = table(walk.begin + 1);
    barrier_wait(kQEmpty, parity_q);
    parity_q ^= 1;
    load_q(maps.q, p, tile, walk.request);
#pragma unroll 1
    for (int j = walk.begin; j < walk.end; j += 2) {
      const BlockPlace now0 = x0, now1 = x1;
      if (j + 2 < walk.end) x0 = table(j + 2);  // one pair ahead: the load's latency is hidden
      if (j + 3 < walk.end) x1 = table(j + 3);
      barrier_wait(empty_barrier(kK0Left), parity0);
      copies.load_left(k0, now0, kK0Left);
      barrier_wait(empty_barrier(kK0Right), parity0);
      copies.load_right(k0, now0, kK0Right);
      parity0 ^= 1;
      if (j + 1 < walk.end) {
        barrier_wait(empty_barrier(kK1Left), parity1);
        copies.load_left(k1, now1, kK1Left);
        barrier_wait(empty_barrier(kK1Right), parity1);
        copies.load_right(k1, now1, kK1Right);
        parity1 ^= 1;
      }
      // Exactly one pair ahead and after the pair's own loads: earlier or further was slower
      // than no prefetch at all.
      if (prefetch) {
        if (j + 2 < walk.end) {
          copies.prefetch_share(x0, take_right);
          if (j + 3 < walk.end) copies.prefetch_share(x1, take_right);
        } else {
          prefetch_next_fragment(p, copies, table, walk, take_right);
        }
      }
    }
  }
}

}  // namespace fmh

// The producer warpgroup: keeps Q and the ring of K halves full, request after request.
#pragma once
#include "sm90/decode/dense/epilogue.h"
#include "sm90/ptx/copy.h"
#include "sm90/ptx/fence.h"
#include "sm90/ptx/mbarrier.h"

namespace fmh {

// Q of a tile: one box of all column tiles where the box has 64 rows, else one box a column
// tile. Rows past the tensor's edge arrive as zeros; rows past a smaller box keep what was there,
// which only makes those rows of S and O meaningless.
FMH_DEVICE void load_q(const TensorMap* map, const DenseDecodeParams& p, const Tile& tile,
                       int request) {
  const int token = small_quotient(tile.first_row, p.q_heads);
  const int head = tile.kv_head * p.group + tile.first_row - token * p.q_heads;
  barrier_arrive_expect(kQFull, p.q_boxes * p.q_box_bytes);
#pragma unroll 1
  for (int t = 0; t < p.q_boxes; t++) {
    tma_load(kSharedBase + kOffsetQ + t * kTileBytes, map, 0, head, token, t, request, kQFull);
  }
}

#if FMH_PAGES == 0

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
FMH_DEVICE void prefetch_next_fragment(const DenseDecodeParams& p, const BlockCopies& copies,
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

// One thread. The order K0 left, K0 right, K1 left, K1 right is the order of release.
FMH_DEVICE void produce(char* smem, const TensorMap* q_map, const TensorMap* k_left,
                        const TensorMap* k_right, const DenseDecodeParams& p, const Tile& tile) {
  if (threadIdx.x != 2 * kGroupThreads) return;
  constexpr u32 k0 = kSharedBase + kOffsetK0, k1 = kSharedBase + kOffsetK1;
  const ScheduleResult* range = shared_at<const ScheduleResult>(smem, kOffsetSchedule);
  const bool prefetch = range->prefetch;
  const BlockCopies copies{k_left, k_right, tile.kv_head * p.kv_head_tiles,
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
    load_q(q_map, p, tile, walk.request);
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

#else

// t / d for t < 2^31: a shift, or a multiplication by ceil(2^(31 + bits) / d), which is exact
// there.
struct Divisor {
  u32 divisor, multiplier;
  int bits;  // 2^(bits - 1) < divisor <= 2^bits

  FMH_DEVICE explicit Divisor(u32 d) : divisor(d), multiplier(0) {
    bits = 32 - __clz(d - 1);
    if ((d & (d - 1)) == 0) return;
    u32 rest = 1u << (bits - 1);
#pragma unroll 1
    for (int i = 0; i < 32; i++) {
      rest <<= 1;
      multiplier <<= 1;
      if (rest >= d) rest -= d, multiplier |= 1;
    }
    multiplier += rest != 0;
  }
  FMH_DEVICE u32 quotient(u32 t) const {
    return multiplier ? __umulhi(t, multiplier) >> (bits - 1) : t >> bits;
  }
  FMH_DEVICE u32 remainder(u32 t) const { return t - quotient(t) * divisor; }
};

// All 128 threads gather rows: thread t copies the 16 bytes at column 8 * (t % 8) of every
// column tile, of rows t / 8 + 16 i. Rows past the length are written as zeros, not read.
struct RowGather {
  static constexpr int kRows = 4;

  const u16* k;
  u32 destination;  // inside a buffer: row and swizzled chunk of this thread
  int row;
  u64 policy;
  Divisor page_size;

  FMH_DEVICE RowGather(const DenseDecodeParams& p, const Tile& tile, EvictFirst evict)
      : policy(l2_policy(evict)), page_size(p.page_block_size) {
    const int thread = threadIdx.x & (kGroupThreads - 1), chunk = thread & 7;
    row = thread >> 3;
    k = (const u16*)p.k_cache + tile.kv_head * p.k_stride_head + chunk * 8;
    destination = row * 128 + ((chunk ^ (row & 7)) << 4);
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

  FMH_DEVICE void find_rows(const DenseDecodeParams& p, const int (&pages)[kRows], int block,
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
#pragma unroll
    for (int t = kFirst; t < kLast; t++) {
#pragma unroll
      for (int i = 0; i < kRows; i++) {
        copy_16_or_zero(buffer + t * kTileBytes + i * 2048 + destination, source[i] + t * 64,
                        16 * i < valid ? 16 : 0, policy);
      }
    }
    barrier_arrive_after_copies(full_barrier(half));
  }
};

FMH_DEVICE void produce(char* smem, const TensorMap* q_map, const TensorMap*, const TensorMap*,
                        const DenseDecodeParams& p, const Tile& tile) {
  constexpr u32 k0 = kSharedBase + kOffsetK0, k1 = kSharedBase + kOffsetK1;
  const ScheduleResult* range = shared_at<const ScheduleResult>(smem, kOffsetSchedule);
  const RowGather gather(p, tile, range->evict);
  u32 parities = 3, parity_q = 1;  // of the two buffers, a bit each
  FragmentWalk<false> walk(smem, p);
  while (walk.next(p, [](int) {})) {
    const int* table = p.block_table + walk.request * p.block_table_stride;
    int pages[RowGather::kRows];
    gather.load_pages(table, walk.begin, walk.length, pages);
    if (threadIdx.x == 2 * kGroupThreads) {
      barrier_wait(kQEmpty, parity_q);
      load_q(q_map, p, tile, walk.request);
    }
    parity_q ^= 1;
#pragma unroll 1
    for (int j = walk.begin; j < walk.end; j++) {
      const u16* source[RowGather::kRows];
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

#endif  // FMH_PAGES

}  // namespace fmh

// The blocks of a part's lists, one after the other, across the edges of lists and requests.
#pragma once
#include "sm90/core/producer.h"

namespace fmh {

// A block: 64 entries of one list of one request.
struct ListBlocks {
  FragmentWalk<true> walk;
  int block;         // of the request; -1 behind the last one
  int which;         // list
  const int* slots;  // the block's first entry
  int left;          // entries from there to the end of the list
  long long head;    // offset of the KV head in the cache

  FMH_DEVICE ListBlocks(char* smem, const MlaParams& p, const Tile& tile) : walk(smem, p) {
    enter_fragment(p, tile);
  }

  FMH_DEVICE bool exists() const { return block >= 0; }
  FMH_DEVICE bool first() const { return block == walk.begin; }  // of its fragment

  FMH_DEVICE void advance(const MlaParams& p, const Tile& tile) {
    if (++block == walk.end) return enter_fragment(p, tile);
    if (left <= kBlockTokens) return enter_list(p, tile);
    slots += kBlockTokens;
    left -= kBlockTokens;
  }

  FMH_DEVICE void enter_fragment(const MlaParams& p, const Tile& tile) {
    block = -1;
    if (!walk.next(p, [](int) {})) return;
    block = walk.begin;
    enter_list(p, tile);
  }

  FMH_DEVICE void enter_list(const MlaParams& p, const Tile& tile) {
    const QueryToken at(p, walk.request, 0);
    int offset = block * kBlockTokens, entries = list_entries(p, 0, at.row);
    const int second = length_blocks(entries) * kBlockTokens;
    which = offset >= second;
    if (which) {
      offset -= second;
      entries = list_entries(p, 1, at.row);
    }
    const ListParams& lists = p.lists;
    slots = lists.slots[which] + at.row * lists.slots_stride_row[which] +
            at.token * lists.slots_stride_token[which] +
            tile.kv_head * lists.slots_stride_head[which] + offset;
    left = entries - offset;
    head = tile.kv_head * lists.stride_head[which];
  }

  // The entry of a row, -1 past the list's end.
  FMH_DEVICE int entry(int row) const { return row < left ? slots[row] : -1; }

  FMH_DEVICE bool valid(const MlaParams& p, int entry) const {
    return (u32)entry < (u32)p.lists.limit[which];
  }
  FMH_DEVICE const void* cache(const MlaParams& p) const { return p.lists.cache[which]; }

  // Where a valid entry lies in its cache, in the units of the strides.
  FMH_DEVICE long long offset(const MlaParams& p, int entry) const {
    const ListParams& lists = p.lists;
    const u32 multiplier = lists.page_multiplier[which];
    const int bits = lists.page_bits[which];
    const int page = multiplier ? __umulhi(entry, multiplier) >> (bits - 1) : entry >> bits;
    const int token = entry - page * lists.page_block_size[which];
    return head + page * lists.stride_page[which] + token * lists.stride_token[which];
  }
};

// Which entries of a block count, a bit each: found by the producer's first warp, read by the math
// group that masks the block's scores.
FMH_DEVICE constexpr int valid_arrivals(int half) { return half & 1 ? 0 : 1; }

struct ValidBits {
  int low, high;  // entries `lane` and `lane + 32`

  FMH_DEVICE static bool mine() { return threadIdx.x < 2 * kGroupThreads + 32; }

  FMH_DEVICE void load(const ListBlocks& at) {
    if (!mine()) return;
    low = at.entry(threadIdx.x & 31);
    high = at.entry((threadIdx.x & 31) + 32);
  }

  FMH_DEVICE u64 gather(const ListBlocks& at, const MlaParams& p) const {
    if (!mine()) return 0;
    const u64 upper = __ballot_sync(kAllLanes, at.valid(p, high));
    return upper << 32 | __ballot_sync(kAllLanes, at.valid(p, low));
  }

  // Once the left half of the buffer is empty: whoever read the old bits is done then. An arrival
  // of its own orders the store before the half is full.
  FMH_DEVICE void publish(char* smem, int buffer, u64 valid) const {
    if (threadIdx.x != 2 * kGroupThreads) return;
    shared_at<u64>(smem, kOffsetValid)[buffer] = valid;
    barrier_arrive(full_barrier(buffer ? kK1Left : kK0Left));
  }
};

}  // namespace fmh

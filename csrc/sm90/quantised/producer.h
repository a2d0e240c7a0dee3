// The producer warps: keep the ring full. Warp w takes slots w, w + 4, ... of a fragment, a lane a
// row: one bulk copy of the row as it lies in the cache. Rows that do not count are copied from a
// row of zeros, so nothing that is not a key's reaches a product.
#pragma once
#include "sm90/core/walk.h"
#include "sm90/ptx/copy.h"
#include "sm90/ptx/mbarrier.h"
#include "sm90/keys/divisor.h"
#include "sm90/quantised/query.h"

namespace fmh {

__device__ uint4 zero_row[(kRowPitch + 15) / 16];

FMH_DEVICE void bulk_copy(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

FMH_DEVICE void copy_8(u32 to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}

// Where the row of an entry lies.
struct RowAt {
  const char* values;
  const char* scales;  // model1 only: those of a page's tokens follow all of its values

  FMH_DEVICE RowAt() : values((const char*)zero_row), scales((const char*)zero_row) {}
  FMH_DEVICE RowAt(const char* page, long long stride_token, int page_size, int token)
      : values(page + token * (kFormat == kModel1 ? kRowBytes : stride_token)),
        scales(page + page_size * kRowBytes + token * 8) {}
};

#if FMH_LISTS

// One of the two caches and its list.
struct ListOfSlots {
  const char* cache;
  const int* slots;
  int count;

  FMH_DEVICE ListOfSlots(const MlaParams& p, const Tile& tile, int which)
      : slots(nullptr), count(0) {
    cache = (const char*)p.lists.cache[which] + tile.kv_head * p.lists.stride_head[which];
  }

  FMH_DEVICE void enter(const MlaParams& p, const Tile& tile, int which, const QueryToken& at) {
    count = p.lists.width[which] > 0 ? list_entries(p, which, at.row) : 0;
    slots = p.lists.slots[which] + at.row * p.lists.slots_stride_row[which] +
            at.token * p.lists.slots_stride_token[which] +
            tile.kv_head * p.lists.slots_stride_head[which];
  }

  FMH_DEVICE int look_up(const MlaParams& p, int which, int entry) const {
    if (entry >= count) return -1;
    const int slot = slots[entry];
    return (u32)slot < (u32)p.lists.limit[which] ? slot : -1;
  }

  FMH_DEVICE RowAt row(const MlaParams& p, int which, int slot) const {
    const ListParams& lists = p.lists;
    const u32 multiplier = lists.page_multiplier[which];
    const int bits = lists.page_bits[which], size = lists.page_block_size[which];
    const int page = multiplier ? __umulhi(slot, multiplier) >> (bits - 1) : slot >> bits;
    return RowAt(cache + page * lists.stride_page[which], lists.stride_token[which], size,
                 slot - page * size);
  }
};

struct Entries {
  ListOfSlots first, second;
  int first_blocks;  // blocks of the first list

  FMH_DEVICE Entries(const MlaParams& p, const Tile& tile)
      : first(p, tile, 0), second(p, tile, 1), first_blocks(0) {}

  FMH_DEVICE void enter(const MlaParams& p, const Tile& tile, int request) {
    const QueryToken at(p, request, 0);
    first.enter(p, tile, 0, at);
    second.enter(p, tile, 1, at);
    first_blocks = length_blocks(first.count);
  }

  // The slot that entry `token` of a block names; -1: none.
  FMH_DEVICE int look_up(const MlaParams& p, int block, int token) const {
    if (block < first_blocks) return first.look_up(p, 0, block * kBlockTokens + token);
    return second.look_up(p, 1, (block - first_blocks) * kBlockTokens + token);
  }

  FMH_DEVICE RowAt row(const MlaParams& p, int block, int, int slot) const {
    return block < first_blocks ? first.row(p, 0, slot) : second.row(p, 1, slot);
  }
};

#else

struct Entries {
  Divisor page_size;
  const int* table;
  int length;

  const char* cache;

  FMH_DEVICE Entries(const MlaParams& p, const Tile& tile)
      : page_size(p.page_block_size),
        cache((const char*)p.k_cache + tile.kv_head * p.k_stride_head) {}

  FMH_DEVICE void enter(const MlaParams& p, const Tile&, int request) {
    table = p.block_table + request * p.block_table_stride;
    length = request_length(p, request);
  }

  // The page of a token; -1: past the length.
  FMH_DEVICE int look_up(const MlaParams&, int block, int token) const {
    const int t = block * kBlockTokens + token;
    return t < length ? table[page_size.quotient(t)] : -1;
  }

  FMH_DEVICE RowAt row(const MlaParams& p, int block, int token, int page) const {
    return RowAt(cache + page * p.k_stride_page, p.k_stride_token, p.page_block_size,
                 page_size.remainder(block * kBlockTokens + token));
  }
};

#endif

FMH_DEVICE void produce(char* smem, const MlaParams& p, const QuantisedParams& x,
                        const Tile& tile) {
  const int lane = threadIdx.x & 31, warp = uniform((threadIdx.x - kMathThreads) >> 5);
  const bool copies = lane < kSlotTokens;
  u32* valid = shared_at<u32>(smem, kOffsetValid);
  RingPlace place{warp, 1};  // the first pass over the ring returns at once
  Entries entries(p, tile);
  FragmentWalk<true> walk(smem, p);
  while (walk.next(p, [](int) {})) {
    entries.enter(p, tile, walk.request);
    prefetch_query(p, x, tile, walk.request, threadIdx.x - kMathThreads);
    const int token = warp * kSlotTokens + lane;  // of its block: four warps, four slots a block
    const int blocks = (walk.end - walk.begin + 1) & ~1;
    const auto look_up = [&](int i) {
      const int block = walk.begin + i;
      return copies && block < walk.end ? entries.look_up(p, block, token) : -1;
    };
    int next = look_up(0);
#pragma unroll 1
    for (int i = 0; i < blocks; i++) {
      const int found = next;
      if (i + 1 < blocks) next = look_up(i + 1);
      RowAt row;
      if (found >= 0) row = entries.row(p, walk.begin + i, token, found);
      const u32 counts = __ballot_sync(kAllLanes, found >= 0);
      const u32 to = slot_address(place.slot) + lane * kRowPitch, full = full_barrier(place.slot);
      barrier_wait(empty_barrier(place.slot), place.parity);
      if (lane == 0) {
        valid[place.slot] = counts;
        barrier_arrive_expect(full, kSlotTokens * kRowBytes);
      }
      if (copies) bulk_copy(to, row.values, kRowBytes, full);
      if (kFormat == kModel1) {
        if (copies) copy_8(to + kScaleOffset, row.scales);
        barrier_arrive_after_copies(full);
      }
      place.advance(4);
    }
  }
}

}  // namespace fmh

// From accumulators to global memory, straight from registers: the K ring is not touched, so the
// next request's K streams in meanwhile.
#pragma once
#include "sm90/core/partial.h"
#include "sm90/core/row_result.h"
#include "sm90/core/walk.h"
#include "sm90/ptx/copy.h"

namespace fmh {

// One row of a half of O in the element type. Pairs of lanes exchange to 8 bytes each, so that
// every store fills 32-byte sectors (plain stores took 3x as long); going on to 16 bytes a lane
// costs more selections than it saves stores.
FMH_DEVICE void store_row(u16* out, const float (&o)[128], int h, float factor, int lane,
                          bool live) {
  const bool odd = lane & 1;
  out += (odd ? 8 : 0) + ((lane & 2) ? 4 : 0);
#pragma unroll
  for (int k = 0; k < 16; k++) {
    const float* e = o + 8 * k;
    const u32 a = pack((h ? e[2] : e[0]) * factor, (h ? e[3] : e[1]) * factor);
    const u32 b = pack((h ? e[6] : e[4]) * factor, (h ? e[7] : e[5]) * factor);
    const u32 other = shuffle_xor(odd ? a : b, 1);
    store_8_if(live, out + k * 16, odd ? other : a, odd ? b : other);
  }
}

// Zeros and lse +inf for a request without keys; group kGroup writes its half of the columns.
template <int kGroup>
FMH_DEVICE void store_empty(const MlaParams& p, const Tile& tile, int request, int thread) {
#pragma unroll 1
  for (int i = thread; i < tile.live * 32; i += kGroupThreads) {
    const RowPlace place(p, tile, i >> 5);
    *(uint4*)(place.out(p, request) + kGroup * 256 + (i & 31) * 8) = make_uint4(0, 0, 0, 0);
  }
  if (kGroup == 0 && thread < tile.live) {
    store_row_facts(p, RowPlace(p, tile, thread), request, kNoMax, 0.f);
  }
}

// Stores a finished fragment; `peak` and `sum` are those of a row over both groups and the whole
// quad.
template <int kGroup>
FMH_DEVICE void store_fragment(const MlaParams& p, const Tile& tile,
                               const FragmentWalk<true>& walk, int part, const float (&o)[128],
                               const float (&maximum)[2], const float (&peak)[2],
                               const float (&sum)[2], int row, int lane) {
  if (row - (lane >> 2) >= tile.live) return;  // a warp without a live row
  const bool speaks = (lane & 3) == 0;
  if (walk.is_whole()) {
    // A loop over the two rows, not two copies: half the code to fetch, and fewer values in flight.
#pragma unroll 1
    for (int h = 0; h < 2; h++) {
      const bool live = row + 8 * h < tile.live;
      const RowPlace place(p, tile, row + 8 * h);
      float l = h ? sum[1] : sum[0], m = h ? maximum[1] : maximum[0], moved = 1.f;
      if constexpr (kLists) to_peak(h ? peak[1] : peak[0], m, l, moved);
      const float inverse = moved * row_weight(p, place, m, l, live);
      store_row(place.out(p, walk.request) + kGroup * 256, o, h, inverse, lane, live);
      if (kGroup == 0 && live && speaks) store_row_facts(p, place, walk.request, m, l);
    }
  } else {
    const u32 first = (walk.slot(p, part) * p.lanes + tile.lane) * p.tile_rows + row;
    u16* const partial = (u16*)p.partial_out + (first * (u32)kDimV + kGroup * 256);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const bool live = row + 8 * h < tile.live;
      const PartialScale scale(row_norm(o, h), sum[h]);
      if (live && speaks) {
        float* const stats = p.partial_stats + (first + 8 * h) * 4u;
        float l = sum[h], m = maximum[h], moved = 1.f;
        if constexpr (kLists) to_peak(peak[h], m, l, moved);
        if (kGroup == 0) *(float2*)stats = make_float2(m, l);
        stats[2 + kGroup] = scale.load * moved;
      }
      store_partial_row(partial + 8 * h * kDimV, o, h, scale.store, lane, live);
    }
  }
}

}  // namespace fmh

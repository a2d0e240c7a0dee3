// From accumulators to global memory, straight from registers: the K ring is not touched, so the
// next request's K streams in meanwhile.
#pragma once
#include "sm90/decode/dense/partial.h"
#include "sm90/decode/dense/softmax.h"
#include "sm90/decode/dense/walk.h"
#include "sm90/ptx/copy.h"

namespace fmh {

constexpr float kLn2 = 0.6931471805599453f;

// The rows a CTA computes.
struct Tile {
  int lane, kv_head;
  int index;      // tile of the KV head
  int first_row;  // row of the KV head that is row 0 of the tile
  int live;       // rows of the tile that exist, 1..64

  FMH_DEVICE Tile(const DenseDecodeParams& p, int lane_of_part) : lane(lane_of_part) {
    kv_head = small_quotient(lane, p.tiles);
    index = lane - kv_head * p.tiles;
    first_row = index * p.tile_rows;
    live = min(p.tile_rows, p.rows - first_row);
  }
};

// Token and query head of a row.
struct RowPlace {
  int token, head;
  FMH_DEVICE RowPlace(const DenseDecodeParams& p, const Tile& tile, int row) {
    const int r = tile.first_row + row;
    token = small_quotient(r, p.group);
    head = tile.kv_head * p.group + r - token * p.group;
  }
  FMH_DEVICE u16* out(const DenseDecodeParams& p, int request) const {
    return (u16*)p.out + request * p.out_stride_batch + token * p.out_stride_token +
           head * p.out_stride_head;
  }
  FMH_DEVICE float* lse(const DenseDecodeParams& p, int request) const {
    return p.lse + request * p.lse_stride_batch + head * p.lse_stride_head +
           token * p.lse_stride_token;
  }
};

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
FMH_DEVICE void store_empty(const DenseDecodeParams& p, const Tile& tile, int request, int thread) {
#pragma unroll 1
  for (int i = thread; i < tile.live * 32; i += kGroupThreads) {
    const RowPlace place(p, tile, i >> 5);
    *(uint4*)(place.out(p, request) + kGroup * 256 + (i & 31) * 8) = make_uint4(0, 0, 0, 0);
  }
  if (kGroup == 0 && thread < tile.live) *RowPlace(p, tile, thread).lse(p, request) = infinity();
}

// Stores a finished fragment; `sum` are the row sums over both groups and the whole quad.
template <int kGroup>
FMH_DEVICE void store_fragment(const DenseDecodeParams& p, const Tile& tile,
                               const FragmentWalk<true>& walk, int part, const float (&o)[128],
                               const float (&maximum)[2], const float (&sum)[2], int row,
                               int lane) {
  if (row - (lane >> 2) >= tile.live) return;  // a warp without a live row
  const bool speaks = (lane & 3) == 0;
  if (walk.is_whole()) {
    // A loop over the two rows, not two copies: half the code to fetch, and fewer values in flight.
#pragma unroll 1
    for (int h = 0; h < 2; h++) {
      const bool live = row + 8 * h < tile.live;
      const RowPlace place(p, tile, row + 8 * h);
      const float l = h ? sum[1] : sum[0], m = h ? maximum[1] : maximum[0];
      const float inverse = l > 0 ? 1.f / l : 0.f;
      store_row(place.out(p, walk.request) + kGroup * 256, o, h, inverse, lane, live);
      if (kGroup == 0 && live && speaks) {
        *place.lse(p, walk.request) = l > 0 ? kLn2 * (m + log2_approx(l)) : infinity();
      }
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
        if (kGroup == 0) *(float2*)stats = make_float2(maximum[h], sum[h]);
        stats[2 + kGroup] = scale.load;
      }
      store_partial_row(partial + 8 * h * kDimV, o, h, scale.store, lane, live);
    }
  }
}

}  // namespace fmh

// The two products with tokens (or columns of V) as rows. What comes from the cache goes from the
// ring to registers, is converted there and is the A operand; Q and P lie in shared memory:
//
//   S^T (tokens x rows)    =  K (registers)    Q^T (shared)
//   O^T (columns x rows)  +=  V^T (registers)  P^T (shared)
//
// So K and V are never written to shared memory as 16-bit values, and what a tile of few rows costs
// is what its rows cost. The order of columns inside a product is free as long as both operands
// agree: it is chosen so that a thread reads K in 16-byte pieces (query.h puts Q into that order)
// and ends with eight neighbouring columns of O.
#pragma once
#include "sm90/ptx/mbarrier.h"
#include "sm90/ptx/wgmma_rows.h"
#include "sm90/quantised/convert.h"

namespace fmh {

using Operand = u32[4];

FMH_DEVICE u32 query_tile(int tile, int step) {
  return kSharedBase + kOffsetQ + tile * kTileBytes + step * 32;
}
FMH_DEVICE u32 weight_tile(int block) { return kSharedBase + kOffsetP + block * kTileBytes; }

// The scale of a token for the columns of this thread in a column tile, as it lies in the ring.
// `row` is the token's in shared memory.
FMH_DEVICE u32 load_scale(u32 row, int tile, int t) {
  if (kFloatScales) return load_shared_u32(row + kScaleOffset + tile / 2 * 4);
  // model1: a thread has half of 128 columns, whose scale is one byte
  const int byte = tile < kWideTiles ? tile / 2 * 2 + (t >> 1) : kWideTiles;
  return load_shared_u8(row + kScaleOffset + byte);
}

FMH_DEVICE float scale_of(u32 loaded) {
  return kFormat == kModel1 ? power_of_byte(loaded) : __uint_as_float(loaded);
}

// Where the 16 bytes of a thread for a column tile lie in a row: `lane & 3` is t.
FMH_DEVICE u32 key_piece(int tile, int t) {
  return tile < kWideTiles ? (tile / 2) * 128 + t * 32 + (tile & 1) * 16
                           : kWideTiles * 64 + t * 16;
}

// S^T of the 16 tokens in a warp's slot, 64 in a warpgroup.
FMH_DEVICE void multiply_keys(float (&s)[kAccumulators], u32 slot, int lane) {
  const int t = lane & 3;
  const u32 low = slot + (lane >> 2) * kRowPitch;
  const u32 high = low + 8 * kRowPitch;
  Operand a[2][4];
  uint4 x = load_shared_16(low + key_piece(0, t)), y = load_shared_16(high + key_piece(0, t));
  u32 scale_x = 0, scale_y = 0, next_x = 0, next_y = 0;
  const auto has_own_scale = [](int tile) {
    return !kPerTensor && tile < kQuantisedTiles && (tile % 2 == 0 || tile >= kWideTiles);
  };
  const auto fetch_scales = [&](int tile) {
    if (!has_own_scale(tile)) return;
    next_x = load_scale(low, tile, t);
    next_y = load_scale(high, tile, t);
  };
  fetch_scales(0);
#pragma unroll
  for (int tile = 0; tile < kQuantisedTiles; tile++) {
    if (has_own_scale(tile)) {
      scale_x = halves(scale_of(next_x), scale_of(next_x));
      scale_y = halves(scale_of(next_y), scale_of(next_y));
    }
    if (tile >= 2) wgmma_wait_for_all_but<1>();
    const u32 first[4] = {x.x, x.y, x.z, x.w}, second[4] = {y.x, y.y, y.z, y.w};
    Operand(&into)[4] = a[tile & 1];
#pragma unroll
    for (int step = 0; step < 4; step++) {
      expand_scaled(first[step], scale_x, into[step][0], into[step][2]);
      expand_scaled(second[step], scale_y, into[step][1], into[step][3]);
    }
    if (tile + 1 < kQuantisedTiles) {
      x = load_shared_16(low + key_piece(tile + 1, t));
      y = load_shared_16(high + key_piece(tile + 1, t));
    }
    fetch_scales(tile + 1);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
      multiply_fp16(s, into[step], descriptor_k_major(query_tile(tile, step)), tile + step > 0);
    }
    wgmma_commit();
  }
  if (kHalfPart) {  // bf16 as it is
    constexpr int tile = kColumnTiles - 1;
    u32 piece[2][8];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const u32 at = low + h * 8 * kRowPitch + kHalfOffset + t * 32;
      const uint4 x = load_shared_16(at), y = load_shared_16(at + 16);
      piece[h][0] = x.x, piece[h][1] = x.y, piece[h][2] = x.z, piece[h][3] = x.w;
      piece[h][4] = y.x, piece[h][5] = y.y, piece[h][6] = y.z, piece[h][7] = y.w;
    }
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const Operand now = {piece[0][2 * step], piece[1][2 * step], piece[0][2 * step + 1],
                           piece[1][2 * step + 1]};
      multiply_bf16(s, now, descriptor_k_major(query_tile(tile, step)), true);
    }
    wgmma_commit();
  }
  wgmma_wait();
  pin(s);
}

// Bytes 0 and 1 of two words as (x0 y0 x1 y1), or bytes 2 and 3.
FMH_DEVICE u32 interleave(u32 x, u32 y, bool upper) {
  return __byte_perm(x, y, upper ? 0x7362 : 0x5140);
}

// V of one slot (16 tokens) for this thread's eight columns, as it lies in the ring.
struct RawValues {
  uint2 x[2][2];      // [tokens 2 t or 2 t + 8][the token or the next]
  u32 scale[2][2];
};

// This thread's eight columns of V.
struct ValueColumns {
  u32 column;  // in a row: where the eight columns begin
  u32 scale;   // in a row: where their scale is
  int t;
  bool half;   // columns of the bf16 part

  FMH_DEVICE ValueColumns(int group, int warp, int lane) : t(lane & 3) {
    const int first = group * 256 + warp * 64;
    half = kFormat == kModel1 && first == 448;
    column = half ? kHalfOffset + (lane >> 2) * 16 : first + (lane >> 2) * 8;
    scale = kScaleOffset + (kFormat == kModel1 ? first / 64 : first / 128 * 4);
  }

  FMH_DEVICE void fetch(RawValues& raw, u32 slot) const {
    if (half) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const u32 row = slot + (2 * t + 8 * h + i) * kRowPitch;
        raw.x[h][i] = load_shared_8(row + column);
        if (kFloatScales) raw.scale[h][i] = load_shared_u32(row + scale);
        if (kFormat == kModel1) raw.scale[h][i] = load_shared_u8(row + scale);
      }
    }
  }

  // Operands of four products, whose rows are columns 2 m and 2 m + 1.
  FMH_DEVICE void convert(Operand (&a)[4], const RawValues& raw, u32 slot) const {
    if (half) return convert_half(a, slot);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint2 x = raw.x[h][0], y = raw.x[h][1];
      const u32 scales = kPerTensor ? 0 : halves(scale_of(raw.scale[h][0]), scale_of(raw.scale[h][1]));
#pragma unroll
      for (int m = 0; m < 4; m++) {  // bytes 0, 1 (or 2, 3) of two tokens as (x0 y0 x1 y1)
        const u32 first = m < 2 ? x.x : x.y, second = m < 2 ? y.x : y.y;
        const u32 bytes = __byte_perm(first, second, m & 1 ? 0x7362 : 0x5140);
        expand_scaled(bytes, scales, a[m][2 * h], a[m][2 * h + 1]);
      }
    }
  }

 private:
  FMH_DEVICE void convert_half(Operand (&a)[4], u32 slot) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int m = 0; m < 4; m += 2) {  // four columns at a time: few registers
        const u32 at = slot + (2 * t + 8 * h) * kRowPitch + column + m * 4;
        const uint2 x = load_shared_8(at), y = load_shared_8(at + kRowPitch);
        a[m][2 * h] = half_of_bf16(__byte_perm(x.x, y.x, 0x5410));
        a[m][2 * h + 1] = half_of_bf16(__byte_perm(x.x, y.x, 0x7632));
        a[m + 1][2 * h] = half_of_bf16(__byte_perm(x.y, y.y, 0x5410));
        a[m + 1][2 * h + 1] = half_of_bf16(__byte_perm(x.y, y.y, 0x7632));
      }
    }
  }
};

// O^T += V^T P^T over the pair that starts at `place`; slots go back as soon as they are read. All
// of the pair has arrived: each group has waited for its block, and they have met since.
FMH_DEVICE void multiply_values(float (&o)[4][kAccumulators], const ValueColumns& columns,
                                RingPlace place, int lane) {
  Operand a[2][4];
  RawValues raw;
  columns.fetch(raw, slot_address(place.slot));
#pragma unroll
  for (int step = 0; step < kPairSlots; step++) {
    const RingPlace next = place.after(1);
    if (step >= 2) wgmma_wait_for_all_but<1>();
    columns.convert(a[step & 1], raw, slot_address(place.slot));
    if (step + 1 < kPairSlots) columns.fetch(raw, slot_address(next.slot));
    __syncwarp();
    if (lane == 0) barrier_arrive(empty_barrier(place.slot));
    const u32 weights = weight_tile(step / 4) + step % 4 * 32;
    wgmma_fence();
#pragma unroll
    for (int m = 0; m < 4; m++) {
      multiply_fp16(o[m], a[step & 1][m], descriptor_k_major(weights), true);
    }
    wgmma_commit();
    place = next;
  }
  wgmma_wait();
#pragma unroll
  for (int m = 0; m < 4; m++) pin(o[m]);
}

}  // namespace fmh

// Merging the fragments of one request, the work of a team of eight warps.
#pragma once
#include "sm90/core/fragments.h"
#include "sm90/core/partial.h"
#include "sm90/core/row_result.h"
#include "sm90/ptx/named_barrier.h"

namespace fmh {

// A CTA is two teams, which work by themselves, and reads once what the parts tell: many readers of
// the same few lines wait for each other (528 CTAs of one team: +0.5 us, every warp: +8 us).
constexpr int kTeamThreads = 256;
constexpr int kTeamWarps = kTeamThreads / 32;
constexpr int kTeams = 2;
constexpr int kCombineThreads = kTeams * kTeamThreads;

FMH_DEVICE int team_thread() { return threadIdx.x & (kTeamThreads - 1); }
FMH_DEVICE int team_of_cta() { return uniform(threadIdx.x / kTeamThreads); }
FMH_DEVICE void team_sync() { named_sync(1 + team_of_cta(), kTeamThreads); }

// The fragments of a request: the first at slot row `first`, fragment j > 0 at `rest + j * step`
// (in rows of the workspace; 32 bits: it stays below 2^32 elements). Addresses go forward by
// constant steps: worked out anew for each load they were half of this kernel's instructions.
struct Fragments {
  int request, count;
  u32 first, rest, step;
};

// A row of a slot. Rows past a tile's last live one are merged like any other (their slots hold
// whatever was there) and not stored: where a row belongs is worked out while its loads fly.
struct CombineRow {
  Tile tile;
  int row;

  FMH_DEVICE CombineRow(const MlaParams& p, int slot_row)
      : tile(p, small_quotient(slot_row, p.tile_rows)) {
    row = slot_row - tile.lane * p.tile_rows;
  }
  FMH_DEVICE bool exists() const { return row < tile.live; }
};

FMH_DEVICE float warp_max(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, shuffle_xor(v, o));
  return v;
}

FMH_DEVICE float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += shuffle_xor(v, o);
  return v;
}

// Maximum, sum, scales of the halves of fragment 32 * round + lane.
FMH_DEVICE float4 load_stats(const MlaParams& p, const Fragments& f, int round, int lane,
                             int row) {
  const int j = round * 32 + lane;
  if (j >= f.count) return make_float4(kNoMax, 0.f, 0.f, 0.f);
  const u32 at = f.rest + lane * f.step + round * (32 * f.step);
  return __ldcg((const float4*)p.partial_stats + ((j == 0 ? f.first : at) + row));
}

// A warp merges one of kSlices column slices of a row. Eight loads of four columns are in flight in
// each lane: 4 / kSlices vectors of 2 * kSlices fragments.
template <int kSlices>
FMH_DEVICE void combine_slice(const MlaParams& p, const Fragments& f, int slice_of_rows) {
  constexpr int kVectors = 4 / kSlices, kFlight = 2 * kSlices;
  const int lane = threadIdx.x & 31;
  const int slot_row = slice_of_rows / kSlices, slice = slice_of_rows % kSlices;
  if (slot_row >= p.lanes * p.tile_rows) return;
  const int column = slice * (kDimV / kSlices) + lane * 4;
  const u32 within = slot_row * (u32)kDimV + column, step = f.step * kDimV;
  u32 at = f.rest * kDimV + within;
  const float4 stats = load_stats(p, f, 0, lane, slot_row);
  uint2 x[kFlight][kVectors];
  float4 total[kVectors];
  const auto load = [&](int j, u32 from, bool exists) {
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
      const u16* const source = (const u16*)p.partial_out + from + v * 128;
      x[j][v] = exists ? load4(source) : make_uint2(0, 0);
    }
  };
  load(0, f.first * kDimV + within, true);
#pragma unroll
  for (int j = 1; j < kFlight; j++) load(j, at + j * step, j < f.count);
  const float maximum = warp_max(stats.x);
  const float factor = lane < f.count ? exp2_approx(stats.x - maximum) : 0.f;
  const float sum = warp_sum(factor * stats.y);
  const float left = factor * stats.z, right = factor * stats.w;
  const float own = column < kDimV / 2 ? left : right;  // a slice lies in one half
#pragma unroll
  for (int v = 0; v < kVectors; v++) total[v] = make_float4(0, 0, 0, 0);
#pragma unroll 1
  for (int j0 = 0;;) {
#pragma unroll
    for (int j = 0; j < kFlight; j++) {
#pragma unroll
      for (int v = 0; v < kVectors; v++) {
        const float w = kSlices > 1 ? own : v < kVectors / 2 ? left : right;
        add_scaled(total[v], __shfl_sync(kAllLanes, w, j0 + j), x[j][v]);
      }
    }
    j0 += kFlight;
    if (j0 >= f.count) break;
    at += kFlight * step;
#pragma unroll
    for (int j = 0; j < kFlight; j++) load(j, at + j * step, j0 + j < f.count);
  }
  const CombineRow r(p, slot_row);
  if (!r.exists()) return;
  const RowPlace place(p, r.tile, r.row);
  const float inverse = row_weight(p, place, maximum, sum, true);
  // Lanes two apart exchange a pair of columns: four neighbours each.
  const bool high = lane & 2;
  u16* out = place.out(p, f.request) + partial_column(high ? column - 6 : column);
#pragma unroll
  for (int v = 0; v < kVectors; v++) {
    const u32 a = pack(total[v].x * inverse, total[v].y * inverse);
    const u32 b = pack(total[v].z * inverse, total[v].w * inverse);
    const u32 other = shuffle_xor(high ? a : b, 2);
    *(uint2*)(out + v * 128) = high ? make_uint2(other, b) : make_uint2(a, other);
  }
  if (slice == 0 && lane == 0) store_row_facts(p, place, f.request, maximum, sum);
}

// Up to kFewFragments. The fewer there are, the more columns a warp takes.
FMH_DEVICE int few_slices(int fragments) { return fragments <= 2 ? 1 : fragments <= 4 ? 2 : 4; }

FMH_DEVICE void combine_few(const MlaParams& p, const Fragments& f, int unit) {
  const int slice = uniform(unit * kTeamWarps + (team_thread() >> 5));
  switch (few_slices(f.count)) {
    case 1:
      return combine_slice<1>(p, f, slice);
    case 2:
      return combine_slice<2>(p, f, slice);
    default:
      return combine_slice<4>(p, f, slice);
  }
}

// Eight groups halve the units where they suffice (up to 72 fragments); 16 reach kMaxParts.
constexpr int kManyRounds = 9;
FMH_DEVICE int many_groups(int fragments) { return fragments <= 8 * kManyRounds ? 8 : 16; }
static_assert(16 * kManyRounds >= kMaxParts, "a request has at most one fragment a part");

FMH_DEVICE constexpr int many_columns(int groups) { return 4 * kTeamThreads / groups; }

// Many fragments: a unit is a row and a slice of columns; kGroups groups of threads take
// every kGroups-th fragment each, kManyRounds loads in flight, and meet in shared memory.
template <int kGroups>
FMH_DEVICE void combine_many(const MlaParams& p, const Fragments& f, int unit,
                             float4 (&shared)[kTeamThreads]) {
  constexpr int kColumns = many_columns(kGroups), kSlices = kDimV / kColumns;
  constexpr int kLaneRounds = (kGroups * kManyRounds + 31) / 32;
  const int thread = team_thread(), lane = thread & 31;
  const int slot_row = unit / kSlices, first_column = unit % kSlices * kColumns;
  const int group = thread / (kTeamThreads / kGroups);
  const int column = first_column + thread % (kTeamThreads / kGroups) * 4;
  float4 stats[kLaneRounds];
  float maximum = kNoMax;
#pragma unroll
  for (int k = 0; k < kLaneRounds; k++) {
    stats[k] = load_stats(p, f, k, lane, slot_row);
    maximum = fmaxf(maximum, stats[k].x);
  }
  uint2 x[kManyRounds];
  const u32 within = slot_row * (u32)kDimV + column, step = f.step * kDimV;
  const u32 at = f.rest * kDimV + group * step + within;
  const u32 begin = group == 0 ? f.first * kDimV + within : at;
#pragma unroll
  for (int i = 0; i < kManyRounds; i++) {
    const u16* const source = (const u16*)p.partial_out + (i ? at + i * (kGroups * step) : begin);
    x[i] = i * kGroups + group < f.count ? load4(source) : make_uint2(0, 0);
  }
  maximum = warp_max(maximum);
  float factor[kLaneRounds], sum = 0;
#pragma unroll
  for (int k = 0; k < kLaneRounds; k++) {  // no fragment: maximum kNoMax, sum 0, never added
    factor[k] = exp2_approx(stats[k].x - maximum);
    sum += factor[k] * stats[k].y;
    factor[k] *= first_column < kDimV / 2 ? stats[k].z : stats[k].w;
  }
  sum = warp_sum(sum);
  float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < kManyRounds; i++) {
    const int j = i * kGroups + group;
    add_scaled(total, __shfl_sync(kAllLanes, factor[i * kGroups / 32], j & 31), x[i]);
  }
  shared[thread] = total;
  team_sync();
  const CombineRow r(p, slot_row);
  if (thread < kColumns / 2 && r.exists()) {
    const RowPlace place(p, r.tile, r.row);
    const float inverse = row_weight(p, place, maximum, sum, true);
    const float2* columns = (const float2*)shared + thread;
    float a = 0, b = 0;
#pragma unroll
    for (int i = 0; i < kGroups; i++) {
      const float2 v = columns[i * (kColumns / 2)];
      a += v.x;
      b += v.y;
    }
    u16* out = place.out(p, f.request) + partial_column(first_column + 2 * thread);
    *(u32*)out = pack(a * inverse, b * inverse);
    if (thread == 0 && first_column == 0) store_row_facts(p, place, f.request, maximum, sum);
  }
  team_sync();
}

}  // namespace fmh

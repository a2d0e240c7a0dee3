// Merges the fragments of split requests: out = sum_j 2^(m_j - m) O_j / sum_j 2^(m_j - m) l_j,
// where O_j is its stored fp16 times the scale of the row's half.
//
// Launched behind the main kernel under programmatic dependent launch. Fragments are always added
// in the order of their index, whoever computed them and whenever: the result is bitwise the same
// on every run. Requests that were not split are the main kernel's; nothing is read for them.
#define FMH_D_QK 576  // only fixes the layout of the main kernel, which this file does not use
#define FMH_PAGES 0
#include "sm90/decode/dense/epilogue.h"
#include "sm90/ptx/pdl.h"

namespace fmh {

constexpr int kCombineThreads = 256;
constexpr int kCombineWarps = kCombineThreads / 32;
// The fragments of a request: the first at slot row `first`, fragment j > 0 at `rest + j * step`
// (in rows of the workspace; 32 bits: it stays below 2^32 elements).
struct Fragments {
  int request, count;
  u32 first, rest, step;

  FMH_DEVICE u32 row(int j) const { return j == 0 ? first : rest + j * step; }
};

// A row of a slot. Rows past a tile's last live one are merged like any other (their slots hold
// whatever was there) and not stored: where a row belongs is worked out while its loads fly.
struct CombineRow {
  Tile tile;
  int row;

  FMH_DEVICE CombineRow(const DenseDecodeParams& p, int slot_row)
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

// Maximum, sum, scales of the halves.
FMH_DEVICE float4 load_stats(const DenseDecodeParams& p, const Fragments& f, int j, int row) {
  if (j >= f.count) return make_float4(kNoMax, 0.f, 0.f, 0.f);
  return __ldcg((const float4*)p.partial_stats + (f.row(j) + row));
}

FMH_DEVICE void store_lse(const DenseDecodeParams& p, const RowPlace& place, int request,
                          float maximum, float sum) {
  *place.lse(p, request) = sum > 0 ? kLn2 * (maximum + log2_approx(sum)) : infinity();
}

// A warp merges one of kSlices column slices of a row. Eight loads of four columns are in flight in
// each lane: 4 / kSlices vectors of 2 * kSlices fragments.
template <int kSlices>
FMH_DEVICE void combine_slice(const DenseDecodeParams& p, const Fragments& f, int slice_of_rows) {
  constexpr int kVectors = 4 / kSlices, kFlight = 2 * kSlices;
  const int lane = threadIdx.x & 31;
  const int slot_row = slice_of_rows / kSlices, slice = slice_of_rows % kSlices;
  if (slot_row >= p.lanes * p.tile_rows) return;
  const int column = slice * (kDimV / kSlices) + lane * 4;
  const u16* source = (const u16*)p.partial_out + (slot_row * (u32)kDimV + column);
  const uint2 zero = make_uint2(0, 0);
  const float4 stats = load_stats(p, f, lane, slot_row);
  uint2 x[kFlight][kVectors];
  float4 total[kVectors];
  const auto load = [&](int j0) {
#pragma unroll
    for (int j = 0; j < kFlight; j++) {
      const u16* row = source + f.row(j0 + j) * (u32)kDimV;
#pragma unroll
      for (int v = 0; v < kVectors; v++) x[j][v] = j0 + j < f.count ? load4(row + v * 128) : zero;
    }
  };
  load(0);
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
    load(j0);
  }
  const CombineRow r(p, slot_row);
  if (!r.exists()) return;
  const float inverse = sum > 0 ? 1.f / sum : 0.f;
  const RowPlace place(p, r.tile, r.row);
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
  if (slice == 0 && lane == 0) store_lse(p, place, f.request, maximum, sum);
}

// Up to kFewFragments. The fewer there are, the more columns a warp takes.
FMH_DEVICE int few_slices(int fragments) { return fragments <= 2 ? 1 : fragments <= 4 ? 2 : 4; }

// Units of a CTA, a warp's slice each.
FMH_DEVICE int few_units(const DenseDecodeParams& p, int fragments) {
  const int slices = p.lanes * p.tile_rows * few_slices(fragments);
  return (slices + kCombineWarps - 1) / kCombineWarps;
}

FMH_DEVICE void combine_few(const DenseDecodeParams& p, const Fragments& f, int unit) {
  const int slice = uniform(unit * kCombineWarps + (threadIdx.x >> 5));
  switch (few_slices(f.count)) {
    case 1:
      return combine_slice<1>(p, f, slice);
    case 2:
      return combine_slice<2>(p, f, slice);
    default:
      return combine_slice<4>(p, f, slice);
  }
}

#if FMH_BATCH_INVARIANT

// Every request's chunks lie in its own slots; how many there are follows from its length.
FMH_DEVICE void combine_all(const DenseDecodeParams& p) {
  const int units = few_units(p, kFewFragments);
#pragma unroll 1
  for (int i = blockIdx.x; i < p.batch * units; i += gridDim.x) {
    const int request = i / units;
    const int blocks = uniform(request_blocks(p, request));
    const int chunk = chunk_blocks(p, blocks);
    if (blocks <= chunk) continue;
    const u32 slot_rows = p.lanes * p.tile_rows, first = request * p.max_chunks * slot_rows;
    const Fragments f{request, (blocks + chunk - 1) / chunk, first, first, slot_rows};
    if (i - request * units < few_units(p, f.count)) combine_few(p, f, i - request * units);
  }
}

#else

// More fragments: a unit is a row and a slice of columns; kGroups groups of threads take every
// kGroups-th fragment each, nine loads in flight, and meet in shared memory.
constexpr int kManyRounds = 9;

FMH_DEVICE constexpr int many_columns(int groups) { return 4 * kCombineThreads / groups; }

// Eight groups halve the units where they suffice (up to 72 fragments); 16 reach kMaxParts.
FMH_DEVICE int many_groups(int fragments) { return fragments <= 8 * kManyRounds ? 8 : 16; }
static_assert(16 * kManyRounds >= kMaxParts, "a request has at most one fragment a part");

template <int kGroups>
FMH_DEVICE void combine_many(const DenseDecodeParams& p, const Fragments& f, int unit,
                             float4 (&shared)[kCombineThreads]) {
  constexpr int kColumns = many_columns(kGroups), kSlices = kDimV / kColumns;
  constexpr int kLaneRounds = (kGroups * kManyRounds + 31) / 32;
  const int thread = threadIdx.x, lane = thread & 31;
  const int slot_row = unit / kSlices, first_column = unit % kSlices * kColumns;
  const int group = thread / (kCombineThreads / kGroups);
  const int column = first_column + thread % (kCombineThreads / kGroups) * 4;
  float4 stats[kLaneRounds];
  float maximum = kNoMax;
#pragma unroll
  for (int k = 0; k < kLaneRounds; k++) {
    stats[k] = load_stats(p, f, lane + 32 * k, slot_row);
    maximum = fmaxf(maximum, stats[k].x);
  }
  const uint2 zero = make_uint2(0, 0);
  uint2 x[kManyRounds];
  const u16* source = (const u16*)p.partial_out + (slot_row * (u32)kDimV + column);
#pragma unroll
  for (int i = 0; i < kManyRounds; i++) {
    const int j = i * kGroups + group;
    x[i] = j < f.count ? load4(source + f.row(j) * (u32)kDimV) : zero;
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
  __syncthreads();
  const CombineRow r(p, slot_row);
  if (thread < kColumns / 2 && r.exists()) {
    const RowPlace place(p, r.tile, r.row);
    const float inverse = sum > 0 ? 1.f / sum : 0.f;
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
    if (thread == 0 && first_column == 0) store_lse(p, place, f.request, maximum, sum);
  }
  __syncthreads();
}

FMH_DEVICE int many_units(const DenseDecodeParams& p, int fragments) {
  return p.lanes * p.tile_rows * (kDimV / many_columns(many_groups(fragments)));
}

// Parts announce the requests that they split; the units of all of them form one line.
FMH_DEVICE void combine_all(const DenseDecodeParams& p) {
  __shared__ int through[kCombineThreads];
  __shared__ int2 info[kCombineThreads];
  __shared__ float4 shared[kCombineThreads];
  __shared__ int warp_total[kCombineThreads / 32];
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int slot_rows = p.lanes * p.tile_rows;
  int2 mine = make_int2(-1, 0);
  int units = 0;
  if (thread < p.parts) {
    mine = __ldcg((const int2*)p.part_info + thread);
    if (mine.y > 1) units = mine.y <= kFewFragments ? few_units(p, mine.y) : many_units(p, mine.y);
  }
  int sum = inclusive_scan(units, lane);
  if (lane == 31) warp_total[warp] = sum;
  info[thread] = mine;
  if (!__syncthreads_or(units > 0)) return;  // nothing was split: the usual case of large batches
  int total = 0;
#pragma unroll
  for (int i = 0; i < kCombineThreads / 32; i++) {
    const int t = warp_total[i];
    if (i < warp) sum += t;
    total += t;
  }
  through[thread] = sum;
  __syncthreads();

#pragma unroll 1
  for (int unit = blockIdx.x; unit < total; unit += gridDim.x) {
    int part = 0;  // the number of entries of `through` that are <= unit
#pragma unroll
    for (int step = kCombineThreads / 2; step; step >>= 1) {
      if (through[part + step - 1] <= unit) part += step;
    }
    part = uniform(part);
    const int local = unit - (part ? through[part - 1] : 0);
    const u32 slot = 2 * part * slot_rows;  // walk.h: FragmentWalk::slot
    const Fragments f{info[part].x, uniform(info[part].y), slot + slot_rows, slot, 2u * slot_rows};
    if (f.count <= kFewFragments) {
      combine_few(p, f, local);
    } else if (many_groups(f.count) == 8) {
      combine_many<8>(p, f, local, shared);
    } else {
      combine_many<16>(p, f, local, shared);
    }
  }
}

#endif  // FMH_BATCH_INVARIANT

}  // namespace fmh

extern "C" __global__ void __launch_bounds__(fmh::kCombineThreads, 4)
    fmh_dense_combine(const __grid_constant__ DenseDecodeParams p) {
  fmh::wait_for_predecessors();
  fmh::release_successors();
  fmh::combine_all(p);
}

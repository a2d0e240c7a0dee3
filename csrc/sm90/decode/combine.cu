// Merges the fragments of split requests: out = sum_j 2^(m_j - m) O_j / sum_j 2^(m_j - m) l_j.
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
// Fragment 0 has a slot of its own, fragment j > 0 lies at first + j * step.
struct Fragments {
  int request, count;
  int slot0, first, step;

  // 32 bits: the workspace stays below 2^32 elements.
  FMH_DEVICE u32 row(const DenseDecodeParams& p, int j, int row) const {
    return (u32)(j == 0 ? slot0 : first + j * step) * (u32)(p.lanes * p.tile_rows) + row;
  }
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

FMH_DEVICE float4 load4(const float* p) { return __ldcg((const float4*)p); }

FMH_DEVICE void add_scaled(float4& a, float f, const float4& x) {
  a.x += f * x.x;
  a.y += f * x.y;
  a.z += f * x.z;
  a.w += f * x.w;
}

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

FMH_DEVICE float2 load_max_sum(const DenseDecodeParams& p, const Fragments& f, int j, int row) {
  if (j >= f.count) return make_float2(kNoMax, 0.f);
  return __ldcg((const float2*)p.partial_ml + f.row(p, j, row));
}

FMH_DEVICE void store_lse(const DenseDecodeParams& p, const RowPlace& place, int request,
                          float maximum, float sum) {
  *place.lse(p, request) = sum > 0 ? kLn2 * (maximum + log2_approx(sum)) : infinity();
}

// Two rows a unit, four columns a thread, eight fragments in flight.
FMH_DEVICE void combine_few(const DenseDecodeParams& p, const Fragments& f, int unit) {
  const int thread = threadIdx.x, lane = thread & 31;
  const int slot_row = unit * 2 + (thread >> 7), column = (thread & 127) * 4;
  if (slot_row >= p.lanes * p.tile_rows) return;
  const float2 ml = load_max_sum(p, f, lane, slot_row);
  const float4 zero = make_float4(0, 0, 0, 0);
  float4 x[8], total = zero;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    x[j] = j < f.count ? load4(p.partial_out + f.row(p, j, slot_row) * kDimV + column) : zero;
  }
  const float maximum = warp_max(ml.x);
  const float factor = lane < f.count ? exp2_approx(ml.x - maximum) : 0.f;
  const float sum = warp_sum(factor * ml.y);
#pragma unroll 1
  for (int j0 = 0;;) {
#pragma unroll
    for (int j = 0; j < 8; j++) add_scaled(total, __shfl_sync(kAllLanes, factor, j0 + j), x[j]);
    j0 += 8;
    if (j0 >= f.count) break;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      x[j] = j0 + j < f.count
                 ? load4(p.partial_out + f.row(p, j0 + j, slot_row) * kDimV + column)
                 : zero;
    }
  }
  const CombineRow r(p, slot_row);
  if (!r.exists()) return;
  const float inverse = sum > 0 ? 1.f / sum : 0.f;
  const RowPlace place(p, r.tile, r.row);
  *(uint2*)(place.out(p, f.request) + column) = make_uint2(
      pack(total.x * inverse, total.y * inverse), pack(total.z * inverse, total.w * inverse));
  if ((thread & 127) == 0) store_lse(p, place, f.request, maximum, sum);
}

#if FMH_BATCH_INVARIANT

// Every request's chunks lie in its own slots; how many there are follows from its length.
FMH_DEVICE void combine_all(const DenseDecodeParams& p) {
  const int units = (p.lanes * p.tile_rows + 1) / 2;
#pragma unroll 1
  for (int i = blockIdx.x; i < p.batch * units; i += gridDim.x) {
    const int request = i / units;
    const int blocks = length_blocks(request_length(p, request));
    const int chunk = chunk_blocks(p, blocks);
    if (blocks <= chunk) continue;
    const int first = request * p.max_chunks;
    const Fragments f{request, (blocks + chunk - 1) / chunk, first, first, 1};
    combine_few(p, f, i - request * units);
  }
}

#else

constexpr int kFew = 32;          // up to this many fragments: a lane of a warp for each
constexpr int kMany = kMaxParts;  // fragments of one request, at most one a part
constexpr int kManyGroups = 16;   // groups of 16 threads that share the fragments of a row
constexpr int kManyRounds = (kMany + kManyGroups - 1) / kManyGroups;

// A row and 64 columns a unit: 16 groups of threads take every 16th fragment.
FMH_DEVICE void combine_many(const DenseDecodeParams& p, const Fragments& f, int unit,
                             float4 (&shared)[kCombineThreads]) {
  const int thread = threadIdx.x, lane = thread & 31;
  const int slot_row = unit >> 3, slice = unit & 7;
  const int group = thread >> 4, column = slice * 64 + (thread & 15) * 4;
  constexpr int kLanesRounds = (kMany + 31) / 32;
  float2 ml[kLanesRounds];
  float maximum = kNoMax;
#pragma unroll
  for (int k = 0; k < kLanesRounds; k++) {
    ml[k] = load_max_sum(p, f, lane + 32 * k, slot_row);
    maximum = fmaxf(maximum, ml[k].x);
  }
  const float4 zero = make_float4(0, 0, 0, 0);
  float4 x[kManyRounds];
  const float* source = p.partial_out + column;
#pragma unroll
  for (int i = 0; i < kManyRounds; i++) {
    const int j = i * kManyGroups + group;
    x[i] = j < f.count ? load4(source + f.row(p, j, slot_row) * kDimV) : zero;
  }
  maximum = warp_max(maximum);
  float factor[kLanesRounds], sum = 0;
#pragma unroll
  for (int k = 0; k < kLanesRounds; k++) {  // no fragment: maximum kNoMax, sum 0, never added
    factor[k] = exp2_approx(ml[k].x - maximum);
    sum += factor[k] * ml[k].y;
  }
  sum = warp_sum(sum);
  float4 total = zero;
#pragma unroll
  for (int i = 0; i < kManyRounds; i++) {
    const int j = i * kManyGroups + group;
    add_scaled(total, __shfl_sync(kAllLanes, factor[i >> 1], j & 31), x[i]);
  }
  shared[thread] = total;
  __syncthreads();
  const CombineRow r(p, slot_row);
  if (thread < 32 && r.exists()) {
    const RowPlace place(p, r.tile, r.row);
    const float inverse = sum > 0 ? 1.f / sum : 0.f;
    const float* columns = (const float*)shared;
    float a = 0, b = 0;
#pragma unroll
    for (int i = 0; i < kManyGroups; i++) {
      a += columns[i * 64 + 2 * thread];
      b += columns[i * 64 + 2 * thread + 1];
    }
    *(u32*)(place.out(p, f.request) + slice * 64 + 2 * thread) = pack(a * inverse, b * inverse);
    if (thread == 0 && slice == 0) store_lse(p, place, f.request, maximum, sum);
  }
  __syncthreads();
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
    if (mine.y > 1) units = mine.y <= kFew ? (slot_rows + 1) / 2 : slot_rows * 8;
  }
  int sum = inclusive_scan(units, lane);
  if (lane == 31) warp_total[warp] = sum;
  info[thread] = mine;
  __syncthreads();
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
    const int local = unit - (part ? through[part - 1] : 0);
    const Fragments f{info[part].x, info[part].y, 2 * part + 1, 2 * part, 2};
    if (f.count <= kFew) {
      combine_few(p, f, local);
    } else {
      combine_many(p, f, local, shared);
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

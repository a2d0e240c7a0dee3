// What L2 is told to evict first of what copies read: nothing, every second line, or all of it.
#pragma once

namespace fmh {

enum EvictFirst { kEvictNone, kEvictHalf, kEvictAll };

}  // namespace fmh
